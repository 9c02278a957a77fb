"""Memory and time of training, and time of inference: tables 3, 4 and 5 and figures 2, 3 and 4 of the paper.

python benchmarks/efficiency.py           all sizes: hours on a CPU; a second call keeps what the first has measured
python benchmarks/efficiency.py --quick   the smallest images, and few of them: minutes on a CPU
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import measure_process
import psutil
from common import check_positive, machine
from efficiency_report import (
    GROWTH_BATCH,
    GROWTH_NETWORK,
    TRAIN_RATIO,
    Protocol,
    growth_name,
    measurement_name,
    write_report,
)
from network_configs import ROOT, Options, add_models_option, read_networks, shared_training, uses_gpu
from results_store import ResultsStore
from tqdm import tqdm

from lnca_model.config.yaml_options import read_options
from lnca_utils.errors import ConfigError, install_excepthook

TASK = ROOT / 'options' / 'lnca_photos.yml'  # gives the optimizer, scheduler and noise
GROWTH_EPOCHS = 4
# Default limit, relative to the free memory: without one the operating system might end another program.
MEMORY_RATIO = 0.9

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
    store = ResultsStore(arguments.output or default, settings, networks)
    if arguments.quick:
        print(f'quick: {protocol}')

    measurements = list(_measurements(task, networks, protocol))
    measured, failures = {}, 0
    with tqdm(measurements, unit='measurement') as bar:
        for name, network, measurement in bar:
            bar.set_postfix_str(name)
            record = f'measurements/{name}.json'
            figures = store.read(record)
            if figures is None or figures.get('timeout', arguments.cell_timeout) < arguments.cell_timeout:
                limit = _memory_limit(arguments.memory_limit, task)
                measurement.memory_limit = limit
                figures = measure_process.run(measurement, arguments.cell_timeout) | {'memory_limit_bytes': limit}
                if 'error' in figures:
                    failures += 1
                    bar.write(f'{name} failed: {figures["error"]}', file=sys.stderr)
                else:
                    store.write(record, figures, network)
            measured[name] = figures
    write_report(store, protocol, list(networks), measured)
    if failures:
        raise ConfigError(
            f'{failures} of {len(measurements)} measurements failed; run the same command again to retry them'
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models_option(parser)
    parser.add_argument('--quick', action='store_true', help=f'32×32 pixels, batch 8, {QUICK.images} images per epoch')
    parser.add_argument(
        '--cell-timeout', type=float, default=3600, metavar='SECONDS', help='print a dash for what takes longer'
    )
    parser.add_argument('--memory-limit', type=float, metavar='GB', help='print a dash for what takes more')
    parser.add_argument('--output', type=Path, metavar='FOLDER', help='default: results/efficiency')
    arguments = parser.parse_args()
    check_positive(arguments, 'cell_timeout', 'memory_limit')
    return arguments


def _memory_limit(limit: float | None, task: Options) -> int | None:
    """Return the memory limit in bytes; the default is most of the free memory on a CPU, and none on a GPU."""
    if limit is not None:
        return int(limit * 1e9)
    return None if uses_gpu(task) else int(MEMORY_RATIO * psutil.virtual_memory().available)


def _measurements(
    task: Options, networks: Mapping[str, Options], protocol: Protocol
) -> Iterable[tuple[str, str, measure_process.Measurement]]:
    """Yield name, network and measurement, small ones first."""
    train = round(TRAIN_RATIO * protocol.images)
    counts = (train, protocol.images - train, protocol.epochs, protocol.runs, protocol.steps)
    for shape in protocol.shapes:
        for name, network in networks.items():
            measurement = measure_process.Measurement(task, network, *shape, *counts)
            yield measurement_name(name, *shape), name, measurement
    if GROWTH_NETWORK in networks:
        counts = (GROWTH_BATCH, 0, GROWTH_EPOCHS, GROWTH_EPOCHS, measure_process.MEAN_STEPS)
        for size in protocol.growth:
            measurement = measure_process.Measurement(task, networks[GROWTH_NETWORK], size, GROWTH_BATCH, *counts)
            yield growth_name(size), GROWTH_NETWORK, measurement


if __name__ == '__main__':
    main()
