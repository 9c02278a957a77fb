"""Train with many seeds and count the runs that diverge:

python benchmarks/stability.py -opt options/lnca_photos.yml --seeds 20
"""

import argparse
import json
import os
import re
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from charts import write_curves
from common import check_positive, machine
from network_configs import (
    Options,
    known_networks,
    read_network,
    read_task,
    shared_training,
    training_options,
    with_batch_size,
)
from results_store import (
    ResultsStore,
    command_line,
    markdown_table,
    read_json,
    with_deviation,
    write_tables,
    write_text,
)
from tqdm import tqdm
from training_run import EXPERIMENTS, RESULTS, Process, folder_hash, logged_iteration, read_scores, run_training

from lnca_model import LNCAModel
from lnca_model.evaluation.evaluator import EXIT_BELOW_INPUT
from lnca_model.training.phases import phases_of
from lnca_model.training.preemption import EXIT_CODE as EXIT_PREEMPTED
from lnca_utils.errors import ConfigError, install_excepthook

PRINT_FREQ = 10
PHASES = LNCAModel.phase_names
CHARTS = {'reconstruction': 'reconstruction loss', 'state_max': 'largest state'}
LOGGED = re.compile(r'(?:l_\w+?_)?(reconstruction|latent|hidden_overflow|state_max): (\S+)')
# Messages of the divergence guard and of a run that ends with an error.
DIVERGED = re.compile(r'train\.(?P<phase>\w+): diverged in iteration (?P<iteration>[\d,]+)')
NON_FINITE = re.compile(r'error: the .* in iteration (?P<iteration>\d+) of phase (?P<phase>\w+)')


def main() -> None:
    install_excepthook()
    arguments = _arguments()
    opt = _options(arguments)
    name = arguments.name or opt['name']
    environment = {'OMP_NUM_THREADS': str(arguments.threads), 'OMP_WAIT_POLICY': 'PASSIVE'}
    if arguments.uncompiled:
        environment['TORCHDYNAMO_DISABLE'] = '1'
    settings = {
        'name': name,
        'options': {key: value for key, value in opt.items() if key not in ('name', 'manual_seed')},
        'iterations': arguments.iterations,
        'environment': environment,
    }
    store = ResultsStore(arguments.output / name.replace(' ', '_'), settings, {})
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    missing = [seed for seed in seeds if store.read(f'seed{seed}.json') is None]
    print(f'{name}: {len(seeds)} seeds, {len(seeds) - len(missing)} finished before', flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool, tqdm(total=len(missing), unit='run', desc=name) as bar:
        for record in pool.map(lambda seed: _train(store, opt, seed, arguments.iterations, environment), missing):
            bar.update()
            bar.set_postfix_str(_progress_text(record))
    write_report(arguments.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', type=Path, required=True, help='option file, such as options/lnca_photos.yml')
    parser.add_argument('--network', help=f"replaces the option file's network: {', '.join(known_networks())}")
    parser.add_argument('--seeds', type=int, default=20, help='number of runs')
    parser.add_argument('--first-seed', type=int, default=0)
    parser.add_argument('--iterations', type=int, help='stop after these iterations of the phase train.automaton')
    parser.add_argument('--batch', type=int, help="batch size, for as many epochs; default: the option file's")
    parser.add_argument('--rate', type=float, help='initial learning rate of the phase train.automaton')
    parser.add_argument('--paper-exact', action='store_true', help='set train.paper_exact: true')
    parser.add_argument('--pretrained', help='checkpoint of a trained autoencoder; its phase is skipped')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='number of concurrent runs')
    parser.add_argument('--threads', type=int, default=1, help='threads per run')
    parser.add_argument('--uncompiled', action='store_true', help='train without torch.compile')
    parser.add_argument('--name', help="name of the configuration in the table; default: the option file's")
    parser.add_argument('--output', type=Path, default=RESULTS / 'stability', metavar='FOLDER')
    arguments = parser.parse_args()
    check_positive(arguments, 'seeds')
    return arguments


def _options(arguments: argparse.Namespace) -> Options:
    opt = with_batch_size(read_task(arguments.opt), arguments.batch)
    if arguments.network:
        opt = training_options(opt, read_network(arguments.network), shared_training(opt)[1])
    automaton = opt['train'].get('automaton')
    if automaton is None:
        raise ConfigError(f'{arguments.opt}: train.automaton is missing; choose another option file')
    if arguments.rate:
        automaton['optim_g']['lr'] = arguments.rate
    if arguments.paper_exact:
        opt['train']['paper_exact'] = True
    if arguments.pretrained:
        if 'autoencoder' not in opt['train']:
            raise ConfigError(f'--pretrained: {opt["network_g"]["type"]} has no autoencoder; leave the option out')
        opt['path']['pretrain_network_g'] = str(Path(arguments.pretrained).resolve())
        opt['path']['strict_load_g'] = False
        opt['train']['autoencoder']['iters'] = 0
    opt['train']['total_iter'] = sum(opt['train'][name]['iters'] for name in PHASES if name in opt['train'])
    opt['logger'].update(print_freq=PRINT_FREQ, use_tb_logger=False, keep_last_checkpoints=1)
    return json.loads(json.dumps(opt))


def _train(
    store: ResultsStore, opt: Options, seed: int, iterations: int | None, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Train with a seed, resuming from the last checkpoint if there is one; write and return the run's record.

    With ``iterations``, stop after these iterations of the automaton's phase, or as soon as the run diverges.

    Raises:
        ConfigError: if the run failed for another reason than divergence.
    """
    name = f'stability_{store.path.name}_{folder_hash(store.path)}_seed{seed}'
    options, log = store.path / f'seed{seed}.yml', store.path / f'seed{seed}.log'
    write_text(options, yaml.safe_dump({**opt, 'name': name, 'manual_seed': seed}, sort_keys=False))
    first = next(phase.first for phase in phases_of(opt['train'], PHASES) if phase.name == 'automaton')
    is_stopped = False

    def stop_early(process: Process, line: str) -> None:
        nonlocal is_stopped
        is_over = DIVERGED.search(line) or (logged_iteration(line) or 0) >= first + (iterations or 0) - 1
        if iterations and is_over and not is_stopped:  # a second signal would end the process without a checkpoint
            is_stopped = True
            process.terminate()

    exit_code, _ = run_training(options, log, stop_early, environment=environment)
    text = log.read_text(encoding='utf-8')
    diverged = {
        (match['phase'], int(match['iteration'].replace(',', '')))
        for pattern in (DIVERGED, NON_FINITE)
        for match in pattern.finditer(text)
    }
    is_finished = exit_code in (0, EXIT_BELOW_INPUT)
    if not is_finished and not diverged and not (is_stopped and exit_code == EXIT_PREEMPTED):
        raise ConfigError(f'{name}: ended with exit code {exit_code}; see {log}')
    scores = read_scores(EXPERIMENTS / name) if is_finished else None
    record = {
        'seed': seed,
        'machine': machine() | {'threads': int(environment['OMP_NUM_THREADS'])},
        'exit code': exit_code,
        'diverged': sorted(diverged, key=lambda entry: entry[1]),
        'first iteration of the automaton': first,
        'trajectory': _trajectory(text, first),
        'scores': scores and {f'{dataset} {metric}': score for (dataset, metric), score in scores.items()},
    }
    store.write(f'seed{seed}.json', record)
    shutil.rmtree(EXPERIMENTS / name)
    options.unlink()
    log.unlink()
    return record


def _trajectory(text: str, first: int) -> dict[str, list[float | None]]:
    """Return what a log says of the automaton's phase: name → one value per entry of ``'iteration'``.

    A resumed run may have logged an iteration twice; the last line counts.

    Args:
        text: the log.
        first: first iteration of the phase.
    """
    rows: dict[int, dict[str, float]] = {}
    for line in text.splitlines():
        iteration = logged_iteration(line)
        if iteration is not None and iteration >= first:
            rows[iteration] = {name: float(value) for name, value in LOGGED.findall(line)}
    rows = dict(sorted(rows.items()))
    names = sorted({name for row in rows.values() for name in row})
    return {
        'iteration': [iteration - first + 1 for iteration in rows],
        **{name: [row.get(name) for row in rows.values()] for name in names},
    }


def _progress_text(record: Mapping[str, Any]) -> str:
    if record['diverged']:
        return f'seed {record["seed"]} diverged'
    gain = ssim_gain(record)
    return f'seed {record["seed"]}' + ('' if gain is None else f' gained {gain:.3f} SSIM')


def ssim_gain(record: Mapping[str, Any]) -> float | None:
    """Return the gain in SSIM on the dataset that was scored last, or None if the run did not finish."""
    gains = [scores['gain'] for name, scores in (record['scores'] or {}).items() if name.endswith(' ssim')]
    return gains[-1] if gains else None


# --- report


def write_report(output: Path) -> None:
    """Write the tables and the :data:`CHARTS` of all configurations in a folder."""
    records = {
        folder.name: [read_json(file) for file in sorted(folder.glob('seed*.json'))]
        for folder in sorted(output.iterdir())
        if folder.is_dir()
    }
    rows = [summarize(name, of_name) for name, of_name in records.items() if of_name]
    lines = [table_line(row) for row in rows]
    text = markdown_table(list(lines[0]), [list(line.values()) for line in lines])
    print(text)
    content = {'command': command_line(), 'machine': machine(), 'rows': rows}
    write_tables(output, f'# Stability\n\n{text}\n', rows, content)
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
    print(f'{output}: table.md, table.csv, table.json, {", ".join(f"{quantity}.png" for quantity in CHARTS)}')


def summarize(name: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of a configuration.

    Args:
        name: the configuration.
        records: records of its runs.
    """
    diverged = [record for record in records if record['diverged']]
    onsets = [
        record['diverged'][0][1] - record['first iteration of the automaton'] + 1
        for record in diverged
        if record['diverged'][0][0] != 'autoencoder'
    ]
    gains = _known(ssim_gain(record) for record in records if not record['diverged'])
    finished = _known(ssim_gain(record) for record in records)
    states = _known(max(_known(record['trajectory'].get('state_max', ()))[-10:], default=None) for record in records)
    return {
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


def table_line(row: Mapping[str, Any]) -> dict[str, str]:
    """Return column → text in ``table.md`` for a result of :func:`summarize`."""
    first, last = row['first diverged at iteration'], row['last diverged at iteration']
    return {
        'configuration': row['configuration'].replace('_', ' '),
        'runs': str(row['runs']),
        'diverged': str(row['diverged']),
        'at iteration': '' if first is None else f'{first} to {last}',
        'largest state': with_deviation(row['largest state, median'], None, 0),
        'finished': str(row['finished']),
        'gain': with_deviation(row['gain, mean of runs that did not diverge'], row['gain, deviation'], 3),
        'least gain': with_deviation(row['gain, least of all'], None, 3),
    }


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


if __name__ == '__main__':
    main()
