"""Train with many seeds and count the runs that diverge:

python benchmarks/stability.py -opt options/lnca_photos.yml --seeds 20
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from charts import write_curves
from common import machine
from network_configs import (
    ROOT,
    Options,
    known_networks,
    options_for,
    read_network,
    read_task,
    shared_training,
    with_batch,
)
from results_store import ResultsFolder, command_line, markdown_table, read_json, with_deviation, write_csv
from tqdm import tqdm

from lnca_model.evaluation.evaluator import EXIT_BELOW_INPUT
from lnca_model.training.phases import Phase, phases_of
from lnca_model.training.preemption import EXIT_CODE as EXIT_INTERRUPTED
from lnca_utils.atomic import atomic_file, write_json
from lnca_utils.errors import ConfigError, install_excepthook

PRINT_FREQ = 10
PHASES = ('autoencoder', 'automaton', 'joint')
CHARTS = {'reconstruction': 'reconstruction loss', 'state_max': 'largest state'}
COLUMNS = ('configuration', 'runs', 'diverged', 'at iteration', 'largest state', 'finished', 'gain', 'least gain')
ITERATION = re.compile(r'epoch:.*, iter:\s*([\d,]+),')
LOGGED = re.compile(r'(?:l_\w+?_)?(reconstruction|latent|hidden_overflow|state_max): (\S+)')
DIVERGED = re.compile(r'train\.(\w+): diverged in iteration ([\d,]+)')
NON_FINITE = re.compile(r'error: the .* in iteration (\d+) of phase (\w+)')


def main() -> None:
    install_excepthook()
    arguments = _arguments()
    opt = _options(arguments)
    name = arguments.name or opt['name']
    output = arguments.output / name.replace(' ', '_')
    environment = {'OMP_NUM_THREADS': str(arguments.threads), 'OMP_WAIT_POLICY': 'PASSIVE'}
    if arguments.uncompiled:
        environment['TORCHDYNAMO_DISABLE'] = '1'
    settings = {
        'name': name,
        'options': {key: value for key, value in opt.items() if key not in ('name', 'manual_seed')},
        'iterations': arguments.iterations,
        'environment': environment,
    }
    folder = ResultsFolder(output, settings, {})
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    missing = [seed for seed in seeds if folder.read_json(f'seed{seed}.json') is None]
    print(f'{name}: {len(seeds)} seeds, {len(seeds) - len(missing)} finished before', flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool, tqdm(total=len(missing), unit='run', desc=name) as bar:
        for record in pool.map(lambda seed: _train(folder, opt, seed, arguments.iterations, environment), missing):
            bar.update()
            bar.set_postfix_str(_in_words(record))
    write_tables(arguments.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', type=Path, required=True, help='option file, such as options/lnca_photos.yml')
    parser.add_argument('--network', help=f"in place of the option file's: {', '.join(known_networks())}")
    parser.add_argument('--seeds', type=int, default=20, help='runs')
    parser.add_argument('--first-seed', type=int, default=0)
    parser.add_argument(
        '--iterations', type=int, help='stop after so many of the phase train.automaton; train to the end by default'
    )
    parser.add_argument('--batch', type=int, help="images a batch, in place of the option file's, for as many epochs")
    parser.add_argument('--rate', type=float, help='initial learning rate of the phase train.automaton')
    parser.add_argument('--paper-exact', action='store_true', help='set train.paper_exact: true')
    parser.add_argument('--pretrained', help='a trained autoencoder; that phase is left out')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs at once')
    parser.add_argument('--threads', type=int, default=1, help='threads of each run')
    parser.add_argument('--uncompiled', action='store_true', help='train without torch.compile')
    parser.add_argument('--name', help="of the configuration, in the table; default: the option file's")
    parser.add_argument('--output', type=Path, default=ROOT / 'results' / 'stability', metavar='FOLDER')
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        raise ConfigError('--seeds: must be at least 1')
    return arguments


def _options(arguments: argparse.Namespace) -> Options:
    opt = with_batch(read_task(arguments.opt), arguments.batch)
    if arguments.network:
        opt = options_for(opt, read_network(arguments.network), shared_training(opt)[1])
    automaton = opt['train'].get('automaton')
    if automaton is None:
        raise ConfigError(f'{arguments.opt}: this option file has no train.automaton block; name one that has')
    if arguments.rate:
        automaton['optim_g']['lr'] = arguments.rate
    if arguments.paper_exact:
        opt['train']['paper_exact'] = True
    if arguments.pretrained:
        opt['path']['pretrain_network_g'] = str(Path(arguments.pretrained).resolve())
        opt['path']['strict_load_g'] = False
        if 'autoencoder' not in opt['train']:
            raise ConfigError(f'--pretrained: {opt["network_g"]["type"]} has no autoencoder; leave it out')
        opt['train']['autoencoder']['iters'] = 0
    opt['train']['total_iter'] = sum(opt['train'][name]['iters'] for name in PHASES if name in opt['train'])
    opt['logger'].update(print_freq=PRINT_FREQ, use_tb_logger=False, keep_last_checkpoints=1)
    return json.loads(json.dumps(opt))


def _phase(opt: Options) -> Phase:
    return next(phase for phase in phases_of(opt['train'], PHASES) if phase.name == 'automaton')


def _train(
    folder: ResultsFolder, opt: Options, seed: int, iterations: int | None, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Train with a seed, from the last checkpoint if there is one, until it is known whether the run diverges.

    Raises:
        ConfigError: the run failed for another reason.
    """
    place = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:6]
    name = f'stability_{folder.path.name}_{place}_seed{seed}'
    options, log = folder.path / f'seed{seed}.yml', folder.path / f'seed{seed}.log'
    options.write_text(yaml.safe_dump({**opt, 'name': name, 'manual_seed': seed}, sort_keys=False), encoding='utf-8')
    first = _phase(opt).first
    command = [sys.executable, str(ROOT / 'basicsr' / 'train.py'), '-opt', str(options), '--auto_resume']
    with (
        open(log, 'a', encoding='utf-8') as lines,
        subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        is_asked = False
        for line in process.stdout or ():
            lines.write(line)
            found = ITERATION.search(line)
            is_known = DIVERGED.search(line) or (found and _number(found[1]) >= first + (iterations or 0) - 1)
            if iterations and is_known and not is_asked:  # a second signal would end it at once
                is_asked = True
                process.terminate()
    text = log.read_text(encoding='utf-8')
    diverged = {(phase, _number(iteration)) for phase, iteration in DIVERGED.findall(text)}
    diverged |= {(phase, _number(iteration)) for iteration, phase in NON_FINITE.findall(text)}
    has_ended = process.returncode in (0, EXIT_BELOW_INPUT)
    if not has_ended and not diverged and not (is_asked and process.returncode == EXIT_INTERRUPTED):
        raise ConfigError(f'{name}: ended with exit code {process.returncode}; see {log}')
    experiment = ROOT / 'experiments' / name
    record = {
        'seed': seed,
        'machine': machine() | {'threads': int(environment['OMP_NUM_THREADS'])},
        'exit code': process.returncode,
        'diverged': sorted(diverged, key=lambda entry: entry[1]),
        'first iteration of the automaton': first,
        'trajectory': _trajectory(text, first),
        'scores': _scores(experiment / 'scores.csv') if has_ended else None,
    }
    folder.write_json(f'seed{seed}.json', record)
    shutil.rmtree(experiment)
    for file in (options, log):
        file.unlink()
    return record


def _number(text: str) -> int:
    return int(text.replace(',', ''))


def _trajectory(text: str, first: int) -> dict[str, list[float]]:
    """What the log says of the automaton: name → a value for each entry of ``'iteration'``. A resumed run may have
    logged an iteration twice; the last counts."""
    rows: dict[int, dict[str, float]] = {}
    for line in text.splitlines():
        found = ITERATION.search(line)
        if found and _number(found[1]) >= first:
            rows[_number(found[1])] = {name: float(value) for name, value in LOGGED.findall(line)}
    names = sorted(set().union(*rows.values())) if rows else []
    table = {name: [rows[iteration].get(name) for iteration in sorted(rows)] for name in names}
    return {'iteration': [iteration - first + 1 for iteration in sorted(rows)], **table}


def _scores(path: Path) -> dict[str, dict[str, float]]:
    """The last scores of every dataset: ``DATASET METRIC`` → restored, corrupted, gain."""
    with open(path, newline='', encoding='utf-8') as file:
        return {
            f'{row["dataset"]} {row["metric"]}': {side: float(row[side]) for side in ('restored', 'corrupted', 'gain')}
            for row in csv.DictReader(file)
        }


def _in_words(record: Mapping[str, Any]) -> str:
    if record['diverged']:
        return f'seed {record["seed"]} diverged'
    gain = gain_of(record)
    return f'seed {record["seed"]}' + ('' if gain is None else f' gained {gain:.3f} SSIM')


def gain_of(record: Mapping[str, Any]) -> float | None:
    """The gain in SSIM on the dataset that was scored last; None of a run that did not end."""
    gains = [scores['gain'] for name, scores in (record['scores'] or {}).items() if name.endswith(' ssim')]
    return gains[-1] if gains else None


# --- tables


def write_tables(output: Path) -> None:
    """Write ``table.md``, ``.csv`` and ``.json``, and the :data:`CHARTS`, of all configurations in a folder."""
    records = {
        folder.name: [read_json(file) for file in sorted(folder.glob('seed*.json'))]
        for folder in sorted(output.iterdir())
        if folder.is_dir()
    }
    rows = [row_of(name, of_name) for name, of_name in records.items() if of_name]
    text = markdown_table(COLUMNS, [[row['text'][column] for column in COLUMNS] for row in rows])
    print(text)
    with atomic_file(output / 'table.md') as temporary:
        temporary.write_text(f'# Stability\n\n{text}\n', encoding='utf-8')
    figures = [row['figures'] for row in rows]
    write_csv(output / 'table.csv', figures)
    write_json(output / 'table.json', {'command': command_line(), 'machine': machine(), 'rows': figures})
    for quantity, label in CHARTS.items():
        curves = {
            name: [
                (record['trajectory']['iteration'], record['trajectory'][quantity], bool(record['diverged']))
                for record in of_name
                if quantity in record['trajectory']
            ]
            for name, of_name in records.items()
        }
        write_curves(output / f'{quantity}.png', label, 'iteration of the automaton', curves)
    print(f'{output}: table.md, table.csv, table.json, reconstruction.png, state_max.png')


def row_of(name: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A configuration's figures, and the same as the table has them."""
    diverged = [record for record in records if record['diverged']]
    onsets = [
        record['diverged'][0][1] - record['first iteration of the automaton'] + 1
        for record in diverged
        if record['diverged'][0][0] != 'autoencoder'
    ]
    gains = [gain for record in records if not record['diverged'] and (gain := gain_of(record)) is not None]
    finished = [gain for record in records if (gain := gain_of(record)) is not None]
    states = [max(_known(record['trajectory'].get('state_max', ()))[-10:], default=None) for record in records]
    states = _known(states)
    figures = {
        'configuration': name,
        'runs': len(records),
        'diverged': len(diverged),
        'first diverged at iteration': min(onsets, default=None),
        'last diverged at iteration': max(onsets, default=None),
        'largest state, median': statistics.median(states) if states else None,
        'finished': len(finished),
        'gain, mean of runs that did not diverge': statistics.mean(gains) if gains else None,
        'gain, deviation': statistics.stdev(gains) if len(gains) > 1 else None,
        'gain, least of all': min(finished, default=None),
    }
    text = {
        'configuration': name.replace('_', ' '),
        'runs': str(len(records)),
        'diverged': str(len(diverged)),
        'at iteration': f'{min(onsets)} to {max(onsets)}' if onsets else '',
        'largest state': f'{figures["largest state, median"]:.0f}' if states else '',
        'finished': str(len(finished)),
        'gain': with_deviation(figures['gain, mean of runs that did not diverge'], figures['gain, deviation'], 3),
        'least gain': with_deviation(figures['gain, least of all'], None, 3),
    }
    return {'figures': figures, 'text': text}


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


if __name__ == '__main__':
    main()
