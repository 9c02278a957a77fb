"""Train networks on the same tiles, one after the other, and compare them:

python benchmarks/compare.py -opt options/lnca_gopro.yml --models LatentNAFCA LatentViTCA ViTCA NAFNet Restormer
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from budget_planner import (
    ESTIMATES,
    MIN_ITERATIONS,
    Planner,
    epoch_iterations,
    validation_interval,
    validations_per_phase,
)
from common import check_positive, machine
from compare_report import write_pictures, write_report
from network_configs import (
    MODELS,
    Options,
    add_models_option,
    dataset_digest,
    dataset_options,
    phase_ratios,
    read_networks,
    read_task,
    shared_training,
    training_options,
    with_batch_size,
)
from results_store import ResultsStore, duration, stored_settings, write_text
from tqdm import tqdm
from training_run import EXPERIMENTS, RESULTS, ROOT, folder_hash, logged_iteration, read_scores, run_training

from lnca_model.config.checks import validate_schema
from lnca_model.config.model_checks import check_model
from lnca_model.config.yaml_options import read_options
from lnca_model.evaluation.evaluator import EXIT_BELOW_INPUT
from lnca_utils.errors import ConfigError, LNCAError, install_excepthook

CHECKPOINTS_PER_PHASE, LOG_LINES_PER_PHASE = 4, 20
# Options of datasets.train that may change between calls; the tiles themselves are compared by their digest.
UNCOMPARED_DATASET_KEYS = ('name', 'dataroot_gt', 'dataroot_lq', 'cache', 'num_worker_per_gpu', 'persistent_workers')


def main() -> None:
    install_excepthook()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '-opt', type=Path, required=True, help='option file of the task, such as options/lnca_gopro.yml'
    )
    add_models_option(parser)
    arguments = parse_training_arguments(parser)
    task = with_batch_size(read_task(arguments.opt), arguments.batch)
    networks = read_networks(arguments.models)
    output = arguments.output or RESULTS / task['name']
    compare(task, networks, output, arguments.seeds, arguments.epochs, arguments.budget)


def parse_training_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add the options for the arguments of :func:`compare` and parse the command line.

    Args:
        parser: holds the other options of the command.

    Raises:
        ConfigError: if a value is out of range.
    """
    parser.add_argument('--seeds', type=int, default=1, help='runs per network; mean and deviation are reported')
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--epochs', type=float, help="epochs per phase for all networks; default: the option file's")
    length.add_argument(
        '--budget', type=float, metavar='MINUTES', help='train all networks for fewer epochs, to end within that time'
    )
    parser.add_argument('--batch', type=int, help="batch size; default: the option file's")
    parser.add_argument('--output', type=Path, metavar='FOLDER', help='default: results/NAME_OF_THE_OPTION_FILE')
    arguments = parser.parse_args()
    check_positive(arguments, 'seeds', 'epochs', 'budget')
    if arguments.batch is not None and arguments.batch < 2:
        raise ConfigError(
            f'--batch: must be at least 2, got {arguments.batch}: the negatives of a latent network are other images '
            'of its batch'
        )
    return arguments


def compare(
    task: Options,
    networks: Mapping[str, Options],
    output: Path,
    seeds: int,
    epochs: float | None = None,
    budget: float | None = None,
) -> list[dict[str, Any]]:
    """Train networks on a task, then write and print the results. Runs that an earlier call finished are kept.

    Args:
        task: from :func:`network_configs.read_task`.
        networks: network → its options, from :func:`network_configs.read_network`.
        output: folder of the results.
        seeds: runs per network.
        epochs: epochs per phase; None for those of the option file.
        budget: minutes for all runs, instead of ``epochs``.

    Returns:
        The rows of ``table.json``.

    Raises:
        ConfigError: if options are invalid, the folder holds results of other settings, or a run failed.
    """
    print(_describe_networks(networks))
    for name, network in networks.items():
        options = training_options(task, network, MIN_ITERATIONS)
        validate_schema(options, name, is_train=True)
        check_model(MODELS[network['model_type']], options | {'is_train': True})
    tiles = {split: dataset_digest(dataset_options(task, split)) for split in ('train', 'val', 'test')}

    stored = stored_settings(output)
    planner = Planner(task, networks, {split: count for split, (count, _) in tiles.items()}, output)
    # The first call decides the number of iterations. ResultsStore refuses other epochs.
    iters = (stored or {}).get('iterations a phase') if epochs is None else None
    iters = iters or planner.iterations(seeds, epochs, budget)
    store = ResultsStore(output, _settings(task, tiles, iters, budget), networks)
    print(_describe_settings(store.settings))

    runs = [(name, seed) for seed in range(seeds) for name in networks]
    left = {(name, seed): 0.0 for name, seed in runs if not store.read(_record_name(name, seed))}
    planner.measure(dict.fromkeys(name for name, _ in left))
    store.write(ESTIMATES, planner.estimates)
    left = {(name, seed): planner.seconds(name, iters) for name, seed in left}
    if stored and budget is not None and sum(left.values()) > 60 * budget:
        print(
            f'note: this takes about {duration(sum(left.values()))}, more than --budget: the first call that wrote to '
            f'{output} decided how long each network trains',
            file=sys.stderr,
        )
    failed: dict[str, str] = {}
    for number, (name, seed) in enumerate(runs, 1):
        title = f'{name}, seed {seed}'
        print(f'[{number}/{len(runs)}] {title}: ', end='')
        if (name, seed) not in left:
            print('finished before')
            continue
        print(f'about {duration(left[name, seed])}, {duration(sum(left.values()))} with the remaining runs')
        del left[name, seed]
        options = _run_options(task, networks[name], iters, _experiment_name(output, name, seed), seed)
        try:
            figures = _train(store, options, _record_name(name, seed), title)
        except LNCAError as error:
            failed[title] = str(error)
            print(f'{title} failed: {error}', file=sys.stderr)
        else:
            store.write(_record_name(name, seed), {'network': name, 'seed': seed, **figures}, name)
            _remove_training_states(options)
        write_report(store, task, _records(store, networks), failed)
    records = _records(store, networks)
    rows = write_report(store, task, records, failed)
    print((output / 'table.md').read_text(encoding='utf-8'))
    write_pictures(store, task, rows, records)
    print(f'{output}: table.md, table.csv, table.json, chart.png, sheet.png')
    if failed:
        raise ConfigError(f'{len(failed)} of {len(runs)} runs failed; run the same command again to retry them')
    return rows


def _record_name(name: str, seed: int) -> str:
    """Return the path of the record of a finished run in the results store."""
    return f'runs/{name}_seed{seed}.json'


def _records(store: ResultsStore, names: Iterable[str]) -> dict[str, list[Any]]:
    """Return network → records of its finished runs, for the named networks and those of earlier calls."""
    records: dict[str, list[Any]] = {name: [] for name in (*names, *store.settings['networks'])}
    for file in sorted((store.path / 'runs').glob('*.json')):
        record = store.read(f'runs/{file.name}')
        records[record['network']].append(record)
    return records


def _experiment_name(output: Path, name: str, seed: int) -> str:
    """Return the name of a run below ``experiments/``, with a hash unless the results are in the default place."""
    is_default = output.resolve().parent == RESULTS
    return f'{output.name}{"" if is_default else f"_{folder_hash(output)}"}_{name}_seed{seed}'


def _settings(task: Options, tiles: Mapping[str, tuple[int, str]], iters: int, budget: float | None) -> Options:
    """Return the settings that all results of a comparison share."""
    shared, most = shared_training(task)
    train_set = dataset_options(task, 'train')
    per_epoch = epoch_iterations(task, tiles['train'][0])
    return {
        'task': task['name'],
        'tiles': {split: {'count': count, 'sha256': digest} for split, (count, digest) in tiles.items()},
        'training data': {key: value for key, value in train_set.items() if key not in UNCOMPARED_DATASET_KEYS},
        'batch': train_set['batch_size_per_gpu'],
        'iterations a phase': iters,
        'epochs a phase': round(iters / per_epoch, 2),
        'epochs of the option file': round(most / per_epoch, 2),
        'budget, minutes': budget,
        'train': shared,
        'validations a phase': validations_per_phase(task, iters),
        'metrics': task['val']['metrics'],
        'precision of validation': task['val'].get('precision', 'float32'),
        'selection': task['val']['selection_metric'],
        'first seed': task['manual_seed'],
        'machine': machine(),
    }


def _describe_networks(networks: Mapping[str, Options]) -> str:
    lines = ['What differs:']
    for name, network in networks.items():
        lines.append(f'  {name}: {network["model_type"]}, {_inline_yaml(network["network_g"])}')
        phases = network['train'] if len(phase_ratios(network)) > 1 else {'training': network['train']}
        lines += [f'    {phase}: {_inline_yaml(block)}' for phase, block in phases.items()]
    return '\n'.join(lines)


def _describe_settings(settings: Mapping[str, Any]) -> str:
    lines = ['The same for all:']
    for key, value in settings.items():
        if key not in ('networks', 'tiles') and value is not None:
            lines.append(f'  {key}: {_inline_yaml(value)}')
    for split, tiles in settings['tiles'].items():
        lines.append(f'  {split} tiles: {tiles["count"]:,}, SHA-256 {tiles["sha256"][:16]}…')
    return '\n'.join(lines)


def _inline_yaml(value: Any) -> str:
    """Return options as YAML on one line, without the dots with which PyYAML ends a scalar."""
    return _yaml(value, default_flow_style=True, width=10**6).removesuffix('...\n').rstrip('\n')


def _yaml(value: Any, **style: Any) -> str:
    """Return options as YAML; PyYAML writes plain dictionaries only, not the ordered ones that it was read into."""
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, **style)


# --- training


def _run_options(task: Options, network: Options, iters: int, name: str, seed: int) -> Options:
    """Return the option file of a run; saves and logs often enough for a short one."""
    opt = training_options(task, network, iters)
    opt.update(name=name, manual_seed=task['manual_seed'] + seed)
    opt['val']['val_freq'] = validation_interval(task, network, iters)
    logger = opt['logger']
    logger['save_checkpoint_freq'] = min(logger['save_checkpoint_freq'], -(-iters // CHECKPOINTS_PER_PHASE))
    logger['print_freq'] = min(logger['print_freq'], -(-iters // LOG_LINES_PER_PHASE))
    return opt


def _train(store: ResultsStore, opt: Options, record: str, title: str) -> dict[str, Any]:
    """Train with ``basicsr/train.py``, resuming from the last checkpoint if the options are the same.

    The option file and the log are written beside ``record``.

    Returns:
        The content of ``training.json``; ``'scores'``: metric → scores of the test set; ``'network file'``: path of
        the best network.

    Raises:
        ConfigError: if the training failed, with the reason.
    """
    options = (store.path / record).with_suffix('.yml')
    log = options.with_suffix('.log')
    resume = options.exists() and _compared_options(read_options(options)) == _compared_options(opt)
    options.parent.mkdir(exist_ok=True)
    write_text(options, _yaml(opt))
    with tqdm(total=opt['train']['total_iter'], desc=title, unit='iteration') as bar:

        def advance(_: object, line: str) -> None:
            iteration = logged_iteration(line)
            if iteration is not None:
                bar.update(iteration - bar.n)

        exit_code, last_line = run_training(options, log, advance, resume)
    if exit_code not in (0, EXIT_BELOW_INPUT):
        reason = last_line.strip().removeprefix('error: ')
        if exit_code < 0:
            reason = f'ended by signal {-exit_code}, possibly out of memory'
        raise ConfigError(f'{reason} ({log})')
    experiment = EXPERIMENTS / opt['name']
    figures = json.loads((experiment / 'training.json').read_text())
    test_set = dataset_options(opt, 'test')['name']
    figures['scores'] = {
        metric: scores for (dataset, metric), scores in read_scores(experiment).items() if dataset == test_set
    }
    figures['network file'] = (experiment / 'models' / 'net_g_best.pth').relative_to(ROOT).as_posix()
    return figures


def _compared_options(opt: Options) -> Any:
    """Return the options that must be equal for a run to be resumed."""
    datasets = {
        name: {key: value for key, value in block.items() if key not in UNCOMPARED_DATASET_KEYS}
        for name, block in opt['datasets'].items()
    }
    return json.loads(json.dumps({**opt, 'datasets': datasets}))


def _remove_training_states(opt: Options) -> None:
    """Remove the checkpoints that only an unfinished run needs."""
    experiment = EXPERIMENTS / opt['name']
    shutil.rmtree(experiment / 'training_states')
    for numbered in (experiment / 'models').glob('net_g_[0-9]*.pth'):
        numbered.unlink()


if __name__ == '__main__':
    main()
