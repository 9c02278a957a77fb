"""Write ``docs/options.md`` from ``options/schema.json``: ``python docs/generate_options.py``.

The schema, which is made from the code, supplies names, types, ranges and most defaults; :data:`MEANINGS` the rest.
"""

import json
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / 'options' / 'schema.json'
PAGE = ROOT / 'docs' / 'options.md'

Schema = Mapping[str, Any]
#: Type of a block (``LatentNAFCA``), or '' for a block without types → its options.
Types = dict[str, dict[str, Schema]]

HEAD = """\
<!-- Written by docs/generate_options.py. Edit that file, then run it again. -->

# Options

A training is described by one YAML file, as in BasicSR. [`options/lnca_photos.yml`](../options/lnca_photos.yml) is
complete and commented. All mistakes in a file are reported, one per line, before anything is created. Editors with YAML
support check files and complete names by [`options/schema.json`](../options/schema.json), which the first line of each
option file refers to.

`--force_yml train:ema_decay=0.999 val:suffix=~` changes options for one run. Values are YAML and are never executed.
Relative paths are looked up in the current directory first, then in the project's folder.

In the tables, **required** means that there is no default, and — that the option is off when left out.
"""

# Block → introduction.
INTRODUCTIONS = {
    'Top level': '',
    'datasets.*': 'Options of every dataset. `basicsr/train.py` trains on `datasets.train` and validates on the blocks '
    'named `val…`; `basicsr/test.py` scores all blocks.',
    'datasets.train': 'Further options of the training set.',
    'datasets.val…': 'Further options of validation and test sets.',
    'datasets.train.corruption': 'Corrupts clean tiles during training, anew each time they are read. The difficulty '
    'rises with the progress of the phase.',
    'network_g': '`Autoencoder`, `NAFCA` and `ViTCA`, the parts of these networks, are registered too; NAFNet and '
    'Restormer take the options of their official implementations.',
    'path': 'Checkpoints to start from.',
    'train': 'Options of all models. `LNCAModel` trains in the phases below, `AutomatonModel` in the single phase '
    '`automaton`. `RestorationModel` has no phases: `optim_g`, `scheduler` and any number of losses `NAME_opt` are '
    'options of `train` itself.',
    'train.autoencoder': 'Phase 1: the autoencoder is trained, the automaton bypassed.',
    'train.automaton': 'Phase 2: the automaton is trained, the autoencoder frozen.',
    'train.joint': 'Phase 3, optional and not in the paper: encoder, automaton and decoder are trained together, with '
    'pool and steps of `train.automaton`.',
    'Losses': 'Each `NAME_opt` of a phase takes one of these losses; `~` turns it off. The other losses of BasicSR '
    'work, too.',
    'val': '',
    'val.metrics.NAME': '`calculate_psnr_batch` and `calculate_ssim_batch` score many images at once and '
    'give the values of `calculate_psnr` and `calculate_ssim`.',
    'logger': '',
}

OPTIMIZATION = {
    'iters': ('Iterations of the phase; 0 skips it, if `path.pretrain_network_g` names a checkpoint.', '**required**'),
    'optim_g.type': ('Optimizer: any class of `torch.optim`. Its other arguments may follow.', '**required**'),
    'optim_g.lr': ('Initial learning rate.', '**required**'),
    'scheduler.type': (
        'Learning-rate schedule, stepped once per iteration. A cosine without `periods` falls over the whole phase.',
        'cosine to 0',
    ),
}
AUTOMATON_LOSSES = {
    'reconstruction_opt': 'Loss between the restored image and the ground truth.',
    'ssim_opt': 'Second loss between them, meant for `SSIMLoss`.',
    'output_overflow_opt': 'Overflow loss of the output channels (equation 9).',
    'hidden_overflow_opt': 'Overflow loss of the hidden channels (equation 9).',
}

#: Block → option → meaning, or (meaning, default) where the schema has no default.
MEANINGS: dict[str, dict[str, str | tuple[str, str]]] = {
    'Top level': {
        'name': ('Name of the run; results are written to `experiments/NAME`.', '**required**'),
        'model_type': (
            '`LNCAModel` trains latent networks, `AutomatonModel` an automaton on pixels, and `RestorationModel` any '
            'other network.',
            '**required**',
        ),
        'num_gpu': ('`auto` uses all GPUs, 0 trains on the CPU.', '**required**'),
        'manual_seed': ('Seed of all random numbers, of the order of the images and of their augmentation.', 'drawn'),
        'scale': ('Upsampling factor of BasicSR; 1 for restoration. `PairedImageDataset` needs it.', '—'),
        'find_unused_parameters': 'Accepted for compatibility with BasicSR; without effect.',
        'dist_params.backend': ('Backend of `torch.distributed`.', 'nccl on GPUs, gloo without'),
        'dist_params.port': ('Port of the first machine, with `--launcher slurm`.', '29500'),
    },
    'datasets.*': {
        'name': ('Name in the log and in `scores.csv`.', '**required**'),
        'type': ('Class of the dataset.', '**required**'),
        'dataroot_gt': 'LMDB of ground-truth tiles.',
        'dataroot_lq': 'LMDB of the same tiles, corrupted. Left out for a training set with a `corruption`.',
        'io_backend.type': 'Storage that `PairedImageDataset` reads; `TileDataset` always reads LMDBs.',
        'io_backend.…': 'Further options of `basicsr.utils.FileClient`.',
        'use_hflip': 'Flip at random, in training.',
        'use_rot': 'Rotate by multiples of 90° at random, in training.',
        'use_channel_jitter': 'Permute and rescale the channels of half of the tiles at random, in training. For '
        'training on few photographs.',
        'cache': '`memory` reads all tiles at once and keeps them, if they fit in half of the free memory. The '
        'workers share them.',
        'pin_memory': 'As in `torch.utils.data.DataLoader`.',
        'persistent_workers': 'As in `torch.utils.data.DataLoader`.',
        'prefetch_mode': 'Prefetching of BasicSR: `cuda` needs `pin_memory: true`.',
        'num_prefetch_queue': ('Batches to prefetch with `prefetch_mode: cpu`.', '1'),
        'meta_info_file': 'List of the images to read.',
        'filename_tmpl': ('Template of the names of corrupted images.', '`{}`'),
        'color': '`y` reads luma only.',
        'mean': 'Mean per channel, subtracted.',
        'std': 'Standard deviation per channel, by which images are divided.',
        'scale': ('Set at the top level.', '—'),
        'gt_size': 'Side of the random crops of `PairedImageDataset`, in training.',
    },
    'datasets.train': {
        'batch_size_per_gpu': ('Batch size of each process.', '**required**'),
        'num_worker_per_gpu': ('Loader workers of each process.', '**required**'),
        'dataset_enlarge_ratio': ('Repetitions of the dataset in an epoch.', '1'),
    },
    'datasets.val…': {
        'final_test': ('Score this dataset once, after training, with the best network.', 'false'),
    },
    'datasets.train.corruption': {
        'type': ('Kind of corruption.', '**required**'),
        'sigma': 'Standard deviation of the Gaussian, the same on all channels of a pixel; images are in [0, 1].',
        'probability': 'Probability that a pixel is corrupted, without a curriculum.',
        'size': 'Length of the blur in pixels, without a curriculum.',
        'full_size': 'Length that the curriculum reaches at the end of the phase, before it is clipped.',
        'curriculum': 'Bounds, in training, of the probability (`noise`) or of the length in pixels (`blur`).',
    },
    'network_g': {
        'type': ('Class of the network.', '**required**'),
        'image_channels': 'Channels of the image.',
        'latent_channels': 'Channels of the latent.',
        'downsamplings': 'How often the encoder halves height and width: 2 or 3.',
        'hidden_channels': 'Hidden channels of the state of the automaton.',
        'embed_channels': 'Width of the rule: of its perception block (NAFCA) or of a token (ViTCA).',
        'ffn_expand': 'Width of the update block, as a multiple of the channels of the state.',
        'dropout': 'Probability of dropout in both blocks.',
        'heads': 'Attention heads; a divisor of `embed_channels`.',
        'mlp_channels': 'Width of the hidden layer of the MLP.',
        'update_rate': 'Probability that a cell is updated in a step, in (0, 1].',
        'blend': 'Blend the decoded image with the input image and its local means, by learned weights. Not in the '
        'paper.',
        'perception': 'How a cell perceives its neighbours: `gate`, a 3×3 convolution to one channel (equation 2), or '
        '`depthwise`, a 3×3 depthwise convolution (not in the paper).',
        'steps': 'Steps of the automaton in inference. `train.automaton.steps` are those of training.',
    },
    'path': {
        'pretrain_network_g': 'Checkpoint to start from, in any phase.',
        'strict_load_g': ('Require that checkpoint and network have the same parameters.', 'true'),
        'param_key_g': ('Key of the parameters in the checkpoint.', '`params`'),
        'experiments_root': 'Folder for experiments; default: `experiments`.',
        'results_root': 'Folder for the results of tests; default: `results`.',
        'resume_state': 'Training state to resume from; `--auto_resume` finds the newest.',
        'ignore_resume_networks': 'As in BasicSR.',
    },
    'train': {
        'total_iter': ('Iterations of all phases: the sum of their `iters`.', '**required**'),
        'warmup_iter': ('Not supported; −1 is accepted, as in files of BasicSR.', '−1'),
        'ema_decay': (
            'Decay of the moving average of the weights, which validation and inference then use; 0: none.',
            '0',
        ),
        'normalize_gradients': ('Divide each gradient tensor by its L2 norm, as the reference does.', 'false'),
        'max_consecutive_nonfinite': (
            'How many optimizer steps in a row may be skipped because a loss or a gradient is not finite, before the '
            'phase counts as diverged. Meanwhile no checkpoint is written.',
            '10',
        ),
        'sync_batch_norm': ('Normalize by the images of all processes.', 'true'),
        'on_divergence': (
            '`rollback` returns a phase that diverges to a snapshot and halves its learning rate; `warn` only logs it. '
            'See [stability](stability.md).',
            '`rollback`; RestorationModel: `warn`',
        ),
        'paper_exact': ('Train exactly as the paper does: no gradient limit, no rollback.', 'false'),
    },
    'train.autoencoder': OPTIMIZATION
    | {
        'swap_noise_std': ('Standard deviation of the noise on swapped latents.', '0.5'),
        'reconstruction_opt': 'Reconstruction loss (equation 3).',
        'distance_opt': 'Distance loss between latents (equation 4).',
        'task_opt': 'Loss on corrupted pixels (equation 5).',
        'equivalence_opt': 'Loss with swapped latents (equation 6), in an optimizer step of its own.',
    },
    'train.automaton': OPTIMIZATION
    | {
        'pool_size': ('States in the sample pool, over all processes.', '1024'),
        'steps': ('Bounds of the number of steps, drawn for every optimizer step.', '[8, 32]'),
        'activation_checkpointing': (
            'Which steps are recomputed in the backward pass: `full` (all), `alternate` (every second) or `none`. Less '
            'memory takes more time.',
            '`none` up to 0.5 GB of activations, else `full`',
        ),
        'max_gradient_growth': 'Limit of gradient growth in backpropagation through time; 1 in all option files. '
        'See [stability](stability.md).',
        'latent_opt': 'Loss between the output of the automaton and the latent of the ground truth (equation 8).',
    }
    | AUTOMATON_LOSSES,
    'train.joint': OPTIMIZATION | AUTOMATON_LOSSES,
    'Losses': {
        'type': ('Class of the loss.', '**required**'),
        'loss_weight': 'Factor of the loss.',
        'reduction': '`mean` or `sum`, over elements.',
        'margin': 'α of equation 4.',
        'low': 'Lower bound of the values without loss.',
        'high': 'Upper bound of the values without loss.',
        'eps': 'Added to the square before the root.',
    },
    'val': {
        'val_freq': ('Iterations between validations.', '**required** in training'),
        'save_img': (
            'Save every restored image. A sheet with some tiles of each dataset is always written.',
            '**required**',
        ),
        'suffix': ('Suffix of saved images.', 'name of the run'),
        'pbar': 'Accepted for compatibility with BasicSR.',
        'batch_size': ('Images restored at once, at most; larger images are restored in smaller batches.', '64'),
        'precision': (
            '`bfloat16` restores with matrix products in bfloat16, faster on hardware that has it.',
            'float32',
        ),
        'selection_metric': ('Metric that selects the best network, `net_g_best.pth`.', '`ssim`'),
        'metrics': 'Metrics by name; see below.',
    },
    'val.metrics.NAME': {
        'type': ('Function of the metric.', '**required**'),
        'better': ('Which scores are better.', '`higher`'),
        'crop_border': ('Pixels cropped from each border.', '**required**'),
        'test_y_channel': ('Compare luma only.', 'false'),
        'input_order': ('As in BasicSR.', '`HWC`'),
    },
    'logger': {
        'print_freq': ('Iterations between lines of the log.', '**required**'),
        'save_checkpoint_freq': ('Iterations between checkpoints.', '**required**'),
        'use_tb_logger': ('Log to TensorBoard, in `tb_logger/NAME`.', '**required**'),
        'keep_last_checkpoints': ('How many checkpoints to keep.', 'all'),
        'wandb.project': 'Project of Weights & Biases.',
        'wandb.resume_id': 'Run of Weights & Biases to resume.',
    },
}


def page() -> str:
    """Return the text of the page.

    Raises:
        KeyError: if an option has no meaning, or a meaning no option.
    """
    sections = [HEAD]
    for title, types in blocks(json.loads(SCHEMA.read_text(encoding='utf-8'))).items():
        introduction = INTRODUCTIONS[title]
        heading = f'## {title}' if title[0].isupper() else f'## `{title}`'
        sections.append('\n\n'.join(filter(None, [heading, introduction, '\n'.join(table(title, types))])) + '\n')
    return '\n'.join(sections)


def blocks(schema: Schema) -> dict[str, Types]:
    """Return the options of each block, by type where the block has types."""
    top = schema['properties']
    train_set = by_type(top['datasets']['properties']['train']['allOf'][0])
    (val_set,) = map(by_type, top['datasets']['patternProperties'].values())
    names, val_names = (set().union(*types.values()) for types in (train_set, val_set))
    corruption = next(iter(train_set.values()))['corruption']
    models = by_type(schema)
    training = {name: properties['train']['properties'] for name, properties in models.items()}
    phases = training['LNCAModel']
    shared = set.intersection(*map(set, training.values()))
    networks = by_type(top['network_g'])
    own_tables = {'datasets', 'network_g', 'path', 'train', 'val', 'logger'}
    return {
        'Top level': {'': only(top, top.keys() - own_tables)},
        'datasets.*': {name: only(options, names & val_names) for name, options in train_set.items()},
        'datasets.train': {'': only(train_set['TileDataset'], names - val_names - {'corruption'})},
        'datasets.val…': {'': only(val_set['TileDataset'], val_names - names)},
        'datasets.train.corruption': by_type(corruption),
        'network_g': {name: networks[name] for name in ('LatentNAFCA', 'LatentViTCA', 'PixelViTCA')},
        'path': {'': top['path']['properties']},
        'train': {'': only(phases, shared)},
        **{f'train.{name}': {'': phases[name]['properties']} for name in ('autoencoder', 'automaton', 'joint')},
        'Losses': by_type(schema['$defs']['loss']),
        'val': {'': top['val']['properties']},
        'val.metrics.NAME': by_type(top['val']['properties']['metrics']['additionalProperties']),
        'logger': {'': top['logger']['properties']},
    }


def by_type(block: Schema) -> Types:
    """Return the options of a block for each value of its ``type`` or ``model_type``."""
    return {
        next(iter(case['if']['properties'].values()))['const']: case['then']['properties'] for case in block['allOf']
    }


def only(options: Mapping[str, Schema], names: Set[str]) -> dict[str, Schema]:
    """Return the options that have one of the names, in their order."""
    return {name: rules for name, rules in options.items() if name in names}


def table(title: str, types: Types) -> Iterator[str]:
    """Yield the lines of a block's table."""
    meanings = dict(MEANINGS[title])
    flat = {kind: dict(flatten(options)) for kind, options in types.items()}
    yield '| option | type or range | default | meaning |'
    yield '|---|---|---|---|'
    for name in dict.fromkeys(name for options in flat.values() for name in options):
        if name not in meanings:
            raise KeyError(f'{title}: {name} has no meaning; add one to MEANINGS')
        meaning = meanings.pop(name)
        text, default = meaning if isinstance(meaning, tuple) else (meaning, None)
        found = {kind: options[name] for kind, options in flat.items() if name in options}
        if len(found) < len(flat):
            text = f'{", ".join(f"`{kind}`" for kind in found)}: {text}'
        ranges = dict.fromkeys(type_of(rules) for rules in found.values())
        if name == 'type' and '' not in types:
            ranges = {', '.join(f'`{kind}`' for kind in types): None}
        yield f'| `{name}` | {" or ".join(ranges)} | {default or default_of(found)} | {text} |'
    if meanings:
        raise KeyError(f'{title}: no option {", ".join(meanings)} in {SCHEMA.name}; remove the meaning')


def flatten(options: Mapping[str, Schema]) -> Iterator[tuple[str, Schema]]:
    """Yield options with those of nested blocks as ``BLOCK.OPTION``; the untyped ones of a block as ``BLOCK.…``."""
    for name, rules in options.items():
        if 'properties' not in rules:
            yield name, rules
            continue
        for inner, inner_rules in rules['properties'].items():
            yield f'{name}.{inner if inner_rules else "…"}', inner_rules


def type_of(rules: Schema) -> str:
    """Describe the values that an option takes."""
    if '$ref' in rules:
        return '[loss](#losses)'
    if 'enum' in rules:
        return ', '.join(f'`{value}`' for value in rules['enum'] if value is not None)
    if 'examples' in rules:
        return ', '.join(f'`{value}`' for value in rules['examples']) + ', …' * ('optim' in str(rules))
    if 'anyOf' in rules:
        return 'integer ≥ 0 or `auto`'
    if not rules:
        return 'any'
    kinds = rules['type'] if isinstance(rules['type'], list) else [rules['type']]
    kind = next(kind for kind in kinds if kind != 'null')
    if kind == 'array':
        return f'[{", ".join([type_of(rules["items"])] * rules["minItems"])}]' if 'minItems' in rules else 'list'
    signs = {'minimum': '≥', 'exclusiveMinimum': '>', 'maximum': '≤', 'exclusiveMaximum': '<'}
    words = {'object': 'block'}
    bounds = [f'{sign} {rules[name]}' for name, sign in signs.items() if name in rules]
    return ' '.join([words.get(kind, kind), ', '.join(bounds)]).strip()


def default_of(found: Mapping[str, Schema]) -> str:
    """Return the default of an option: one value, or one per type where they differ."""
    values = {kind: json.dumps(rules['default']) for kind, rules in found.items() if 'default' in rules}
    values = {kind: f'`{value.strip(chr(34)).removesuffix(".0")}`' for kind, value in values.items()}
    if len(set(values.values())) <= 1:
        return next(iter(values.values()), '—')
    return ', '.join(f'{value} ({kind})' for kind, value in values.items())


if __name__ == '__main__':
    PAGE.write_text(page(), encoding='utf-8')
