"""Train networks on the same tiles, one after the other, and compare them:

python benchmarks/compare.py -opt options/lnca_gopro.yml --models LatentNAFCA LatentViTCA ViTCA NAFNet Restormer
"""

import argparse
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from budget_planner import (
    ESTIMATES,
    LEAST_ITERATIONS,
    Planner,
    iterations_between,
    iterations_of_an_epoch,
    validations_of,
)
from common import machine
from compare_report import write_pictures, write_tables
from network_configs import (
    MODELS,
    ROOT,
    Options,
    add_models_option,
    dataset_of,
    fingerprint,
    options_for,
    read_networks,
    read_task,
    shared_training,
    shares_of,
    with_batch,
)
from results_store import ResultsFolder, duration, stored_settings
from tqdm import tqdm

from lnca_model.config.checks import validate_schema
from lnca_model.config.yaml_options import read_options
from lnca_model.evaluation.evaluator import EXIT_BELOW_INPUT
from lnca_utils.errors import ConfigError, LNCAError, install_excepthook

RESULTS = ROOT / 'results'
CHECKPOINTS_A_PHASE, LINES_A_PHASE = 4, 20
# Of datasets.train, what may change from call to call: the tiles themselves are told by their bytes.
WITHOUT_EFFECT = ('name', 'dataroot_gt', 'dataroot_lq', 'cache', 'num_worker_per_gpu', 'persistent_workers')


def main() -> None:
    install_excepthook()
    arguments = _arguments()
    task = with_batch(read_task(arguments.opt), arguments.batch)
    networks = read_networks(arguments.models)
    output = arguments.output or RESULTS / task['name']
    compare(task, networks, output, arguments.seeds, arguments.epochs, arguments.budget)


def compare(
    task: Options,
    networks: Mapping[str, Options],
    output: Path,
    seeds: int,
    epochs: float | None = None,
    budget: float | None = None,
) -> list[dict[str, Any]]:
    """Train networks on a task, write and print what came out, and go on where an earlier call was.

    Args:
        task: from :func:`read_task`.
        networks: name → as from :func:`networks.read_network`.
        output: folder of the results.
        seeds: trainings of each network.
        epochs: of a phase; as many as the task says unless given.
        budget: minutes for everything, in place of epochs.

    Returns:
        The rows of ``table.json``.

    Raises:
        ConfigError: options do not fit together, the folder has results of other settings, or a training failed.
    """
    print(_what_differs(networks))
    for name, network in networks.items():
        options = options_for(task, network, LEAST_ITERATIONS)
        validate_schema(options, name, is_train=True)
        MODELS[network['model_type']].check_options(options | {'is_train': True})
    tiles = {kind: fingerprint(dataset_of(task, kind)) for kind in ('train', 'val', 'test')}

    stored = stored_settings(output)
    planner = Planner(task, networks, {kind: count for kind, (count, _) in tiles.items()}, output)
    # A folder of something else is refused below, and one of other epochs.
    iters = (stored or {}).get('iterations a phase') if epochs is None else None
    iters = iters or planner.iterations(seeds, epochs, budget)
    folder = ResultsFolder(output, _settings(task, tiles, iters, budget), networks)
    print(_what_is_the_same(folder.settings))

    runs = [(name, seed) for seed in range(seeds) for name in networks]
    finished = {run for run in runs if folder.read_json(_record_of(*run))}
    planner.measure(dict.fromkeys(name for name, seed in runs if (name, seed) not in finished))
    folder.write_json(ESTIMATES, planner.estimates)
    seconds = sum(planner.seconds(name, iters) for name, seed in runs if (name, seed) not in finished)
    if stored and budget is not None and seconds > 60 * budget:
        print(
            f'note: this takes about {duration(seconds)}, more than --budget: how long each network trains was settled '
            f'by the first call that wrote to {output}',
            file=sys.stderr,
        )
    failed: dict[str, str] = {}
    for number, (name, seed) in enumerate(runs, 1):
        title = f'{name}, seed {seed}'
        print(f'[{number}/{len(runs)}] {title}: ', end='')
        if (name, seed) in finished:
            print('finished before')
            continue
        left = [planner.seconds(of_run[0], iters) for of_run in runs[number - 1 :] if of_run not in finished]
        print(f'about {duration(left[0])}, with all that is left about {duration(sum(left))}')
        options = _options_of_run(task, networks[name], iters, _experiment(output, name, seed), seed)
        try:
            figures = _train(folder, options, _record_of(name, seed), title)
        except LNCAError as error:
            failed[title] = str(error)
            print(f'{title} failed: {error}', file=sys.stderr)
        else:
            folder.has_results_of(name)
            folder.write_json(_record_of(name, seed), {'network': name, 'seed': seed, **figures})
            _tidy_up(options)
        write_tables(folder, task, _records(folder, networks), failed)
    records = _records(folder, networks)
    rows = write_tables(folder, task, records, failed)
    print((output / 'table.md').read_text(encoding='utf-8'))
    write_pictures(folder, task, rows, records)
    print(f'{output}: table.md, table.csv, table.json, chart.png, sheet.png')
    if failed:
        raise ConfigError(f'{len(failed)} of {len(runs)} runs failed; the same command tries them again')
    return rows


def _record_of(name: str, seed: int) -> str:
    """Where the results folder has the figures of a run that is finished."""
    return f'runs/{name}_seed{seed}.json'


def _records(folder: ResultsFolder, names: Iterable[str]) -> dict[str, list[Any]]:
    """Network → what its finished runs gave: of those named, and of others that an earlier call compared."""
    records: dict[str, list[Any]] = {name: [] for name in (*names, *folder.settings['networks'])}
    for file in sorted((folder.path / 'runs').glob('*.json')):
        record = folder.read_json(f'runs/{file.name}')
        records[record['network']].append(record)
    return records


def _experiment(output: Path, name: str, seed: int) -> str:
    """The folder under experiments/ of a run. Results that lie elsewhere may have the same name."""
    elsewhere = output.resolve().parent != RESULTS
    place = f'_{hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:6]}' if elsewhere else ''
    return f'{output.name}{place}_{name}_seed{seed}'


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '-opt', type=Path, required=True, help='option file of the task, such as options/lnca_gopro.yml'
    )
    add_models_option(parser)
    return parse_training_options(parser)


def parse_training_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Have a command take what :func:`compare` needs to know, and read its arguments.

    Raises:
        ConfigError: their values make no sense.
    """
    parser.add_argument('--seeds', type=int, default=1, help='trainings of each network: mean and deviation are given')
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--epochs', type=float, help="epochs a phase, in place of the option file's; equally for all")
    length.add_argument(
        '--budget', type=float, metavar='MINUTES', help='train for fewer epochs, equally for all, to end within that'
    )
    parser.add_argument('--batch', type=int, help="images a batch, in place of the option file's")
    parser.add_argument('--output', type=Path, metavar='FOLDER', help="default: results/ and the option file's name")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        raise ConfigError('--seeds must be at least 1')
    if arguments.batch is not None and arguments.batch < 2:
        raise ConfigError('--batch must be at least 2: the negatives of a latent network are other images of its batch')
    for name, value in (('--budget', arguments.budget), ('--epochs', arguments.epochs)):
        if value is not None and not value > 0:
            raise ConfigError(f'{name} must be a positive number')
    return arguments


def _settings(task: Options, tiles: Mapping[str, tuple[int, str]], iters: int, budget: float | None) -> Options:
    """What all results of a comparison share."""
    shared, full = shared_training(task)
    training = dataset_of(task, 'train')
    batch = training['batch_size_per_gpu']
    an_epoch = iterations_of_an_epoch(task, tiles['train'][0])
    return {
        'task': task['name'],
        'tiles': {kind: {'count': number, 'sha256': digest} for kind, (number, digest) in tiles.items()},
        'training data': {key: value for key, value in training.items() if key not in WITHOUT_EFFECT},
        'batch': batch,
        'iterations a phase': iters,
        'epochs a phase': round(iters / an_epoch, 2),
        'epochs of the option file': round(full / an_epoch, 2),
        'budget, minutes': budget,
        'train': shared,
        'validations a phase': validations_of(task, iters),
        'metrics': task['val']['metrics'],
        'precision of validation': task['val'].get('precision', 'float32'),
        'selection': task['val']['selection_metric'],
        'first seed': task['manual_seed'],
        'machine': machine(),
    }


def _what_differs(networks: Mapping[str, Options]) -> str:
    lines = ['What differs:']
    for name, network in networks.items():
        lines.append(f'  {name}: {network["model_type"]}, {_plain(network["network_g"])}')
        phases = network['train'] if len(shares_of(network)) > 1 else {'training': network['train']}
        lines += [f'    {phase}: {_plain(block)}' for phase, block in phases.items()]
    return '\n'.join(lines)


def _what_is_the_same(settings: Mapping[str, Any]) -> str:
    lines = ['The same for all:']
    for key, value in settings.items():
        if key not in ('networks', 'tiles') and value is not None:
            lines.append(f'  {key}: {_plain(value)}')
    for kind, tiles in settings['tiles'].items():
        lines.append(f'  {kind} tiles: {tiles["count"]:,}, SHA-256 {tiles["sha256"][:16]}…')
    return '\n'.join(lines)


def _plain(value: Any) -> str:
    """Options in one line."""
    # YAML ends what is no block with a line of dots.
    return _as_yaml(value, default_flow_style=True, width=10**6).removesuffix('...\n').rstrip('\n')


def _as_yaml(value: Any, **style: Any) -> str:
    """Options as YAML. What was read from YAML are ordered mappings, which it writes as Python's own."""
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, **style)


# --- training


def _options_of_run(task: Options, network: Options, iters: int, name: str, seed: int) -> Options:
    opt = options_for(task, network, iters)
    opt.update(name=name, manual_seed=task['manual_seed'] + seed)
    opt['val']['val_freq'] = iterations_between(task, network, iters)
    # A short training, too, is saved and reported.
    logger = opt['logger']
    logger['save_checkpoint_freq'] = min(logger['save_checkpoint_freq'], -(-iters // CHECKPOINTS_A_PHASE))
    logger['print_freq'] = min(logger['print_freq'], -(-iters // LINES_A_PHASE))
    return opt


def _train(folder: ResultsFolder, opt: Options, record: str, title: str) -> dict[str, Any]:
    """Train through basicsr/train.py, from the last checkpoint if there is one.

    Returns:
        What training.json says, and the test set's scores: metric → restored, corrupted, gain.

    Raises:
        ConfigError: it failed, with the reason.
    """
    file = Path(record).with_suffix('.yml')
    command = [sys.executable, str(ROOT / 'basicsr' / 'train.py'), '-opt', str(folder.path / file)]
    options = _as_yaml(opt)
    if (folder.path / file).exists() and _with_effect(read_options(folder.path / file)) == _with_effect(opt):
        command.append('--auto_resume')  # else it starts, or starts again since its options changed
    folder.write_text(str(file), options)
    line = ''
    with (
        open(folder.path / file.with_suffix('.log'), 'a', encoding='utf-8') as log,
        tqdm(total=opt['train']['total_iter'], desc=title, unit='iteration') as bar,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        for line in process.stdout:
            log.write(line)
            iteration = re.search(r'epoch:.*, iter:\s*([\d,]+),', line)
            if iteration:
                bar.update(int(iteration[1].replace(',', '')) - bar.n)
    if process.returncode not in (0, EXIT_BELOW_INPUT):
        reason = line.strip().removeprefix('error: ')
        if process.returncode < 0:
            reason = f'ended by signal {-process.returncode}, perhaps for want of memory'
        raise ConfigError(f'{reason} ({folder.path / file.with_suffix(".log")})')
    experiment = ROOT / 'experiments' / opt['name']
    figures = json.loads((experiment / 'training.json').read_text())
    figures['scores'] = _scores(experiment / 'scores.csv', dataset_of(opt, 'test')['name'])
    figures['network file'] = (experiment / 'models' / 'net_g_best.pth').relative_to(ROOT).as_posix()
    return figures


def _with_effect(opt: Options) -> Any:
    """Options without those that may change between a run's start and its end."""
    datasets = opt['datasets'].items()
    kept = {name: {key: value for key, value in block.items() if key not in WITHOUT_EFFECT} for name, block in datasets}
    return json.loads(json.dumps({**opt, 'datasets': kept}))


def _tidy_up(opt: Options) -> None:
    """Remove what only a run that is not finished needs."""
    experiment = ROOT / 'experiments' / opt['name']
    shutil.rmtree(experiment / 'training_states')
    for numbered in (experiment / 'models').glob('net_g_[0-9]*.pth'):
        numbered.unlink()


def _scores(path: Path, dataset: str) -> dict[str, dict[str, float]]:
    with open(path, newline='') as file:
        rows = [row for row in csv.DictReader(file) if row['dataset'] == dataset]
    return {row['metric']: {side: float(row[side]) for side in ('restored', 'corrupted', 'gain')} for row in rows}


if __name__ == '__main__':
    main()
