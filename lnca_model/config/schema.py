"""The JSON Schema of option files, for :func:`check` and for completion in editors.

``options/schema.json`` holds the output of :func:`as_json`. Blocks with a ``type`` are checked if the type is one of
the plug-in's or a common one of BasicSR; BasicSR's other networks, datasets and losses are not checked here.
"""

import inspect
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jsonschema

from lnca_arch import NETWORKS
from lnca_arch.acceleration.fused_rollout import CHECKPOINT_POLICIES
from lnca_data.corruptions import CORRUPTIONS
from lnca_data.tile_dataset import CACHES
from lnca_model.metrics import BATCH_METRICS
from lnca_model.models.automaton_model import AutomatonModel
from lnca_model.models.lnca_model import LNCAModel
from lnca_model.models.restoration_model import PRECISIONS, RestorationModel
from lnca_model.training.optimizers import SCHEDULERS
from lnca_utils.errors import ConfigError
from lnca_utils.option_checks import did_you_mean

from basicsr.utils.registry import LOSS_REGISTRY

Schema = dict[str, Any]

MODELS = (RestorationModel, AutomatonModel, LNCAModel)
LOSSES = (
    *('TripletDistanceLoss', 'MaskedTaskLoss', 'SwapEquivalenceLoss', 'OverflowLoss', 'PSNRLoss', 'SSIMLoss'),
    *('L1Loss', 'MSELoss', 'CharbonnierLoss'),
)
IMAGE_METRICS = ['calculate_psnr', 'calculate_ssim']
BACKENDS = ['disk', 'lmdb', 'memcached']  # of BasicSR's FileClient
BACKEND_ARGUMENTS = ('readonly', 'lock', 'readahead', 'server_list_cfg', 'client_cfg', 'sys_path')
MAX_VALUE_LENGTH = 60  # characters of a value in messages

# JSON Schema accepts 3.0 as an integer, but Python code such as range() does not.
VALIDATOR = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        'integer', lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)

STRING, BOOLEAN, NUMBER, WHOLE = ({'type': name} for name in ('string', 'boolean', 'number', 'integer'))
FOLDER_NAME = {
    'type': 'string',
    'pattern': r'^[^/\\.\x00-\x1f][^/\\\x00-\x1f]*$',
    'maxLength': 200,
    'title': 'a name for a folder',
}
PATH = {'type': ['string', 'null']}
COUNT = {'type': 'integer', 'minimum': 1}
LOSS = {'$ref': '#/$defs/loss'}
NATURAL = {'type': 'integer', 'minimum': 0}


def schema() -> Schema:
    """Return the schema of the option files of the plug-in's models."""
    return {
        '$schema': 'https://json-schema.org/draft/2020-12/schema',
        'title': 'Option file of the LNCA plug-in for BasicSR',
        **_block(
            {
                'name': FOLDER_NAME,
                'model_type': {'type': 'string', 'examples': [model.__name__ for model in MODELS]},
                'num_gpu': {'title': "a whole number of at least 0, or 'auto'", 'anyOf': [NATURAL, {'const': 'auto'}]},
                'manual_seed': {'type': ['integer', 'null'], 'minimum': 0, 'maximum': 2**31},
                'scale': COUNT,
                'find_unused_parameters': BOOLEAN,
                'dist_params': _block({'backend': {'enum': ['gloo', 'nccl']}, 'port': {**COUNT, 'maximum': 65535}}),
                'datasets': {
                    'type': 'object',
                    'properties': {'train': _train_set()},
                    'patternProperties': {'^(val|test)(_.*)?$': _dataset({'final_test': BOOLEAN})},
                    'additionalProperties': False,
                },
                'network_g': _by_type({name: _arguments(kind) for name, kind in NETWORKS.items()}),
                'path': _block(
                    {
                        'pretrain_network_g': PATH,
                        'resume_state': PATH,
                        'strict_load_g': BOOLEAN,
                        'param_key_g': PATH,
                        'experiments_root': PATH,
                        'results_root': PATH,
                        'ignore_resume_networks': {'type': 'array', 'items': STRING},
                    }
                ),
                'train': {'type': 'object'},
                'val': {'type': ['object', 'null'], **_validation()},
                'logger': _logger(),
            }
        ),
        'allOf': [
            {'if': _is('model_type', model.__name__), 'then': {'properties': {'train': _training(model)}}}
            for model in MODELS
        ],
        '$defs': {'loss': _loss()},
    }


def as_json() -> str:
    """Return the content of ``options/schema.json``."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + '\n'


def _block(properties: Mapping[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    """Return the schema of a mapping with these keys and no others."""
    return {
        'type': 'object',
        'properties': dict(properties),
        **({'required': list(required)} if required else {}),
        'additionalProperties': False,
    }


def _is(key: str, value: str) -> Schema:
    """Return the schema of a mapping that has this entry, for conditions."""
    return {'properties': {key: {'const': value}}, 'required': [key]}


def _by_type(known: Mapping[str, Schema]) -> Schema:
    """Return the schema of a block with a ``type``.

    Args:
        known: type → schema of its block; blocks of other types are not checked.
    """
    return {
        'type': 'object',
        'properties': {'type': {'type': 'string', 'examples': list(known)}},
        'required': ['type'],
        'allOf': [{'if': _is('type', name), 'then': block} for name, block in known.items()],
    }


def _arguments(kind: Callable) -> Schema:
    """Return the schema of a block with the arguments of a class or function."""
    parameters = inspect.signature(kind).parameters.values()
    hints = get_type_hints(getattr(kind, '__init__') if isinstance(kind, type) else kind)  # noqa: B009
    properties = {'type': STRING}
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        properties[parameter.name] = _argument(hints.get(parameter.name), parameter.default)
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return _block(properties, tuple(required))


def _argument(hint: Any, default: Any) -> Schema:
    """Return the schema of an argument.

    Args:
        hint: its annotation, or None.
        default: its default value, or ``inspect.Parameter.empty``.
    """
    if hint is None and default is not inspect.Parameter.empty:
        # BasicSR has no annotations; use the types of the defaults instead.
        hint = float if type(default) is int else type(default)
    names = {int: WHOLE, float: NUMBER, bool: BOOLEAN, str: STRING}
    if get_origin(hint) is tuple:
        items = [_argument(item, inspect.Parameter.empty) for item in get_args(hint)]
        result = {'type': 'array', 'items': items[0], 'minItems': len(items), 'maxItems': len(items)}
    elif get_origin(hint) is Literal:
        result = {'enum': list(get_args(hint))}
    else:
        result = dict(names.get(hint, {}))
    if default is not inspect.Parameter.empty:
        result['default'] = list(default) if isinstance(default, tuple) else default
    return result


def _dataset(more: Mapping[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    """Return the schema of a dataset.

    Args:
        more: further options: name → schema.
        required: names of the options that must be present, beside ``name`` and ``type``.
    """
    common: dict[str, Schema] = {
        'name': FOLDER_NAME,
        'type': STRING,
        'dataroot_gt': PATH,
        'dataroot_lq': PATH,
        'io_backend': _block({'type': {'enum': BACKENDS}, **{name: {} for name in BACKEND_ARGUMENTS}}, ('type',)),
        'use_hflip': BOOLEAN,
        'use_rot': BOOLEAN,
        'pin_memory': BOOLEAN,
        'persistent_workers': BOOLEAN,
        'prefetch_mode': {'enum': ['cpu', 'cuda', None]},
        'num_prefetch_queue': COUNT,
        **more,
    }
    numbers = {'type': ['array', 'null'], 'items': NUMBER}
    own: dict[str, dict[str, Schema]] = {
        'TileDataset': {'use_channel_jitter': BOOLEAN, 'cache': {'enum': [*CACHES, None]}},
        'PairedImageDataset': {
            'meta_info_file': PATH,
            'filename_tmpl': STRING,
            'gt_size': COUNT,
            'color': {'enum': ['y', None]},
            'mean': numbers,
            'std': numbers,
            'scale': COUNT,
        },
    }
    return {
        'type': 'object',
        'properties': {'type': {'type': 'string', 'examples': list(own)}},
        'required': ['name', 'type', *required],
        'allOf': [{'if': _is('type', name), 'then': _block(common | options)} for name, options in own.items()],
    }


def _train_set() -> Schema:
    corruptions = {name: _arguments(kind) for name, kind in CORRUPTIONS.items()}
    loading = {
        'batch_size_per_gpu': COUNT,
        'num_worker_per_gpu': NATURAL,
        'dataset_enlarge_ratio': {'type': 'number', 'exclusiveMinimum': 0},
        'corruption': _by_type(corruptions),
        'gt_size': COUNT,
    }
    # BasicSR's loader reads these options whatever the type of the dataset.
    return {
        'allOf': [_dataset(loading, ('batch_size_per_gpu', 'num_worker_per_gpu')), {'properties': loading}],
    }


def _loss() -> Schema:
    """Return the schema of a loss, or null, which switches the loss off."""
    return {**_by_type({name: _arguments(LOSS_REGISTRY.get(name)) for name in LOSSES}), 'type': ['object', 'null']}


def _optimization() -> dict[str, Schema]:
    rate = {'type': 'number', 'exclusiveMinimum': 0}
    return {
        'optim_g': {
            'type': 'object',
            'properties': {'type': {'type': 'string', 'examples': ['Adam', 'AdamW', 'SGD']}, 'lr': rate},
            'required': ['type', 'lr'],
        },
        'scheduler': {
            'type': ['object', 'null'],
            'properties': {'type': {'type': 'string', 'examples': list(SCHEDULERS)}},
            'required': ['type'],
        },
    }


def _training(model: type[RestorationModel]) -> Schema:
    """Return the schema of the block ``train`` of a model."""
    shared: dict[str, Schema] = {
        'total_iter': COUNT,
        'warmup_iter': {'type': 'integer', 'maximum': 0, 'title': '-1: warm-up is not supported'},
        'ema_decay': {'type': 'number', 'minimum': 0, 'exclusiveMaximum': 1},
        'normalize_gradients': BOOLEAN,
        'max_consecutive_nonfinite': NATURAL,
        'sync_batch_norm': BOOLEAN,
        'on_divergence': {'enum': ['rollback', 'warn']},
        'paper_exact': BOOLEAN,
    }
    if not model.phase_names:
        block = _block(shared | _optimization(), ('total_iter', 'optim_g'))
        return block | {'patternProperties': {'_opt$': LOSS}}
    phases = {name: _phase(name, model.known_losses[name]) for name in model.phase_names}
    required = (name for name in phases if name not in model.optional_phases)
    return _block(shared | phases, ('total_iter', *required))


def _phase(name: str, known_losses: tuple[str, ...]) -> Schema:
    own: dict[str, dict[str, Schema]] = {
        'autoencoder': {'swap_noise_std': {'type': 'number', 'minimum': 0}},
        'automaton': {
            'pool_size': COUNT,
            'steps': {'type': 'array', 'items': COUNT, 'minItems': 2, 'maxItems': 2, 'title': '[least, most]'},
            'activation_checkpointing': {'enum': [*CHECKPOINT_POLICIES, None]},
            'max_gradient_growth': {'type': ['number', 'null'], 'exclusiveMinimum': 0},
        },
        'joint': {},
    }
    losses = {f'{loss}_opt': LOSS for loss in known_losses}
    return _block({'iters': NATURAL, **_optimization(), **own[name], **losses}, ('iters', 'optim_g'))


def _validation() -> Schema:
    metric: dict[str, Schema] = {'type': STRING, 'better': {'enum': ['higher', 'lower']}}
    of_image_metric = metric | {
        'crop_border': NATURAL,
        'test_y_channel': BOOLEAN,
        'input_order': {'enum': ['HWC', 'CHW']},
    }
    known = dict.fromkeys([*BATCH_METRICS, *IMAGE_METRICS], _block(of_image_metric))
    return _block(
        {
            'val_freq': COUNT,
            'save_img': BOOLEAN,
            'suffix': PATH,
            'pbar': BOOLEAN,
            'batch_size': COUNT,
            'precision': {'enum': list(PRECISIONS)},
            'selection_metric': STRING,
            'metrics': {'type': ['object', 'null'], 'additionalProperties': _by_type(known)},
        },
        ('save_img',),
    )


def _logger() -> Schema:
    return _block(
        {
            'print_freq': COUNT,
            'save_checkpoint_freq': COUNT,
            'use_tb_logger': BOOLEAN,
            'keep_last_checkpoints': {'type': ['integer', 'null'], 'minimum': 1},
            'wandb': {'type': ['object', 'null'], 'properties': {'project': PATH, 'resume_id': PATH}},
        },
        ('print_freq', 'save_checkpoint_freq', 'use_tb_logger'),
    )


# --- validation


def check(opt: Mapping[str, Any]) -> None:
    """Raise ConfigError, with one line per mistake, unless options fit the schema."""
    mistakes = list(_check_json(opt, '')) or [line for error in _errors(opt) for line in _lines(error)]
    if mistakes:
        raise ConfigError('\n'.join(dict.fromkeys(mistakes)))


def valid_datasets(opt: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the datasets that fit the schema; the rest of the options need not fit.

    Returns:
        Name → block; empty if the block ``datasets`` itself does not fit.
    """
    if any(_check_json(opt, '')) or 'datasets' not in opt:
        return {}
    invalid = [tuple(error.absolute_path)[:2] for error in _errors(opt)]
    if ('datasets',) in invalid:
        return {}
    return {name: block for name, block in opt['datasets'].items() if ('datasets', name) not in invalid}


def _errors(opt: Mapping[str, Any]) -> Iterator[jsonschema.ValidationError]:
    return VALIDATOR(schema()).iter_errors(opt)


def _check_json(value: Any, where: str) -> Iterator[str]:
    """Yield a message for each value that JSON does not allow: infinite or NaN, or a key that is not a string."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f'{where} must be a finite number, got {value}'
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                yield f'{where or "the file"}: a key must be text, got {_short(key)}; put it in quotes'
            else:
                yield from _check_json(entry, f'{where}.{key}' if where else key)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _check_json(entry, f'{where}[{index}]')


def _lines(error: Any) -> Iterator[str]:
    """Yield the message of a validation error, one line per mistake."""
    where = ''
    for step in error.absolute_path:
        where += f'[{step}]' if isinstance(step, int) else f'.{step}' if where else str(step)
    value, rule = _short(error.instance), error.validator_value
    match error.validator:
        case 'additionalProperties':
            known = error.schema.get('properties', {})
            patterns = error.schema.get('patternProperties', {})
            for key in error.instance:
                if key not in known and not any(re.search(pattern, key) for pattern in patterns):
                    yield f'{f"{where}." if where else ""}{key} is unknown. {did_you_mean(key, known)}'
        case 'required':
            for key in rule:
                if key not in error.instance:
                    yield f'{f"{where}." if where else ""}{key} is missing'
        case 'enum':
            yield f'{where} {value} is unknown. {did_you_mean(error.instance, [str(entry) for entry in rule if entry])}'
        case _:
            yield f'{where} must be {error.schema.get("title") or _describe(error.schema)}, got {value}'


def _describe(rules: Schema) -> str:
    """Describe the values that a schema allows, for messages."""
    names = {
        'object': 'a block of options',
        'array': 'a list',
        'string': 'text',
        'boolean': 'true or false',
        'number': 'a number',
        'integer': 'a whole number',
        'null': '~',
    }
    types = rules.get('type', [])
    text = ' or '.join(names[name] for name in ([types] if isinstance(types, str) else types)) or 'something else'
    bounds = {
        'minimum': 'of at least',
        'exclusiveMinimum': 'above',
        'maximum': 'of at most',
        'exclusiveMaximum': 'below',
    }
    text = ' '.join([text, *(f'{bound} {rules[name]}' for name, bound in bounds.items() if name in rules)])
    return f'{text} of {rules["minItems"]}' if 'minItems' in rules else text


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), MAX_VALUE_LENGTH, placeholder=' …')
