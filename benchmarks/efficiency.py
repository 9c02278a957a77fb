"""Memory and time of training, and time of inference: tables 3, 4 and 5 and figures 2, 3 and 4 of the paper.

python benchmarks/efficiency.py           in full, for hours without a GPU; what is finished is not measured again
python benchmarks/efficiency.py --quick   the smallest images and few of them: minutes on a processor
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import measure_process
import psutil
from common import machine
from efficiency_report import (
    GROWTH_BATCH,
    GROWTH_NETWORK,
    TRAINING_SHARE,
    Protocol,
    cell_name,
    growth_name,
    write_report,
)
from network_configs import ROOT, Options, add_models_option, read_networks, shared_training, uses_gpu
from results_store import ResultsFolder
from tqdm import tqdm

from lnca_model.config.yaml_options import read_options
from lnca_utils.errors import ConfigError, install_excepthook

TASK = ROOT / 'options' / 'lnca_photos.yml'  # whose optimiser, schedule and noise are used
GROWTH_EPOCHS = 4
# Of the free memory, for a cell; the system would end another program if there were no limit.
MEMORY_SHARE = 0.9


FULL = Protocol()
QUICK = Protocol(
    sizes=(32,), batches=(8,), growth=(32, 64, 128, 256), images=40, epochs=3, runs=4, steps=measure_process.MEAN_STEPS
)


def main() -> None:
    install_excepthook()
    arguments = _arguments()
    protocol = QUICK if arguments.quick else FULL
    task = read_options(TASK)
    networks = read_networks(arguments.models)
    settings = {
        'protocol': vars(protocol),
        'train': shared_training(task)[0],
        'corruption': task['datasets']['train']['corruption'],
        'memory limit, GB': arguments.memory_limit,
        'machine': machine(),
    }
    default = ROOT / 'results' / ('efficiency_quick' if arguments.quick else 'efficiency')
    folder = ResultsFolder(arguments.output or default, settings, networks)
    if arguments.quick:
        print(f'quick: {protocol}')

    cells = {name: (network, one) for name, network, one in _cells(task, networks, protocol)}
    measured, errors = {}, {}
    with tqdm(cells.items(), unit='cell') as bar:
        for name, (network, one) in bar:
            bar.set_postfix_str(name)
            figures = folder.read_json(_record_of(name))
            if figures is None or figures.get('timeout', arguments.cell_timeout) < arguments.cell_timeout:
                one.memory_limit = _memory_limit(arguments.memory_limit, task)
                figures = measure_process.run(one, arguments.cell_timeout) | {'memory_limit_bytes': one.memory_limit}
                if 'error' in figures:
                    errors[name] = figures['error']
                    bar.write(f'{name} failed: {figures["error"]}', file=sys.stderr)
                else:
                    folder.has_results_of(network)
                    folder.write_json(_record_of(name), figures)
            measured[name] = figures
    write_report(folder, protocol, list(networks), measured)
    if errors:
        raise ConfigError(f'{len(errors)} of {len(cells)} cells failed; the same command tries them again')


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models_option(parser)
    parser.add_argument('--quick', action='store_true', help=f'32×32 pixels, batch 8, {QUICK.images} images an epoch')
    parser.add_argument(
        '--cell-timeout', type=float, default=3600, metavar='SECONDS', help='a dash for what takes longer'
    )
    parser.add_argument('--memory-limit', type=float, metavar='GB', help='a dash for what takes more')
    parser.add_argument('--output', type=Path, metavar='FOLDER', help='default: results/efficiency')
    arguments = parser.parse_args()
    for name in ('cell_timeout', 'memory_limit'):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise ConfigError(f'--{name.replace("_", "-")} must be a positive number')
    return arguments


def _memory_limit(limit: float | None, task: Options) -> int | None:
    """In bytes; without one that was asked for, what is free, unless the GPU's own limit holds."""
    if limit is not None:
        return int(limit * 1e9)
    return None if uses_gpu(task) else int(MEMORY_SHARE * psutil.virtual_memory().available)


def _cells(
    task: Options, networks: Mapping[str, Options], protocol: Protocol
) -> Iterable[tuple[str, str, measure_process.Cell]]:
    """Name, network and what to measure, the small before the large."""
    train = round(TRAINING_SHARE * protocol.images)
    for size in protocol.sizes:
        for batch in protocol.batches:
            for name, network in networks.items():
                shape = (size, batch, train, protocol.images - train)
                one = measure_process.Cell(task, network, *shape, protocol.epochs, protocol.runs, protocol.steps)
                yield cell_name(name, size, batch), name, one
    if GROWTH_NETWORK in networks:
        for size in protocol.growth:
            shape = (size, GROWTH_BATCH, GROWTH_BATCH, 0)
            one = measure_process.Cell(
                task, networks[GROWTH_NETWORK], *shape, GROWTH_EPOCHS, GROWTH_EPOCHS, measure_process.MEAN_STEPS
            )
            yield growth_name(size), GROWTH_NETWORK, one


def _record_of(name: str) -> str:
    """Where the results folder has the figures of a cell."""
    return f'cells/{name}.json'


if __name__ == '__main__':
    main()
