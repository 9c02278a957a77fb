"""The report of a comparison: tables, a chart and a contact sheet."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import published_results
import torch
from charts import write_bars
from common import machine_line
from network_configs import ROOT, Options, dataset_options
from results_store import ResultsStore, command_line, duration, markdown_table, with_deviation, write_tables

from lnca_data.io.contact_sheet import write_contact_sheet
from lnca_data.io.lmdb_store import TileStore
from lnca_data.tile_dataset import to_image, to_tensor
from lnca_utils import checkpoint
from lnca_utils.errors import ConfigError
from lnca_utils.option_checks import construct

from basicsr.utils.registry import ARCH_REGISTRY

SHEET_TILES = 20
DIGITS, UNITS = {'psnr': 2}, {'psnr': ', dB'}  # of metrics; 3 digits and no unit for others

Record = Mapping[str, Any]


def write_report(
    store: ResultsStore, task: Options, records: Mapping[str, Sequence[Record]], failed: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Write ``table.md``, ``table.csv`` and ``table.json``.

    Args:
        store: the results.
        task: the option file.
        records: network → records of its finished runs, one per seed.
        failed: run → why it failed.

    Returns:
        A row for the corrupted input and one per network.

    Raises:
        ConfigError: if networks were scored on different tiles.
    """
    finished = [record for records_of_network in records.values() for record in records_of_network]
    corrupted = {metric: score['corrupted'] for metric, score in finished[0]['scores'].items()} if finished else {}
    for record in finished:
        if not all(math.isclose(score['corrupted'], corrupted[name]) for name, score in record['scores'].items()):
            raise ConfigError(
                f'{store.path}: {record["network"]} was scored on other tiles than the rest; choose another --output'
            )
    dataset = Path(dataset_options(task, 'test')['dataroot_gt']).parent.name
    rows = [_row(name, of_network, dataset, store.settings) for name, of_network in records.items()]
    rows.insert(0, dict.fromkeys(rows[0]) | {'network': 'corrupted input', **corrupted})
    command = command_line()
    notes = _notes(command, store.settings, {len(of_network) for of_network in records.values()}, failed)
    text = f'# {task["name"]}\n\n{_table(rows, list(store.settings["metrics"]))}\n\n{notes}\n'
    content = {'command': command, 'rows': rows, 'failed': failed, 'settings': store.settings, 'runs': finished}
    write_tables(store.path, text, rows, content)
    return rows


def _row(name: str, records: Sequence[Record], dataset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a network: means and standard deviations over seeds; None where there are none."""

    def mean(values: Sequence[float]) -> float | None:
        return statistics.fmean(values) if values else None

    epochs_per_iteration = settings['epochs a phase'] / settings['iterations a phase']
    row: dict[str, Any] = {
        'network': name,
        'seeds': len(records),
        'parameters': records[0]['parameters'] if records else None,
        'epochs': round(records[0]['iterations'] * epochs_per_iteration, 2) if records else None,
    }
    for metric in settings['metrics']:
        restored = [record['scores'][metric]['restored'] for record in records]
        row[metric] = mean(restored)
        row[f'{metric} deviation'] = statistics.stdev(restored) if len(restored) > 1 else None
        row[f'{metric} gain'] = mean([record['scores'][metric]['gain'] for record in records])
    row["paper's ssim"] = published_results.SSIM.get((dataset, name))
    row['training seconds'] = mean([record['seconds'] for record in records])
    row['peak training memory bytes'] = mean([record['peak_memory_bytes'] for record in records])
    return row


def _table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    has_published = any(row["paper's ssim"] for row in rows)
    columns = ['network', 'parameters', 'epochs']
    for metric in metrics:
        columns += [f'{metric.upper()}{UNITS.get(metric, "")}', 'gain']
    columns += ["paper's SSIM"] * has_published + ['training time', 'peak training memory']
    lines = []
    for row in rows:
        line = [row['network'], *('' if row[key] is None else f'{row[key]:,}' for key in ('parameters', 'epochs'))]
        for metric in metrics:
            digits, gain = DIGITS.get(metric, 3), row[f'{metric} gain']
            line.append(with_deviation(row[metric], row[f'{metric} deviation'], digits))
            line.append('' if gain is None else f'{gain:+.{digits}f}')
        line += [with_deviation(row["paper's ssim"], None, 3)] * has_published
        seconds, memory = row['training seconds'], row['peak training memory bytes']
        line += ['', ''] if seconds is None else [duration(seconds), f'{memory / 1e9:.2f} GB']
        lines.append(line)
    return markdown_table(columns, lines)


def _notes(command: str, settings: Mapping[str, Any], seeds: set[int], failed: Mapping[str, str]) -> str:
    """Return the notes below the table."""
    epochs, full = settings['epochs a phase'], settings['epochs of the option file']
    count = {split: f'{tiles["count"]:,}' for split, tiles in settings['tiles'].items()}
    notes = [f'`{command}`']
    if epochs != full:
        budget = settings['budget, minutes']
        reason = '' if budget is None else f'Budget of {budget:g} minutes: '
        notes.append(f'**{reason}{epochs:g} instead of {full:g} epochs per phase, equally for all.**')
    notes += [
        f'{count["train"]} training, {count["val"]} validation and {count["test"]} test tiles, the same for all; '
        f'batch size {settings["batch"]}; {epochs:g} epochs per phase; {describe_seeds(seeds)}. Epochs: the sum over '
        f'all phases; latent networks have several. Scores: of the network with the best validation '
        f'{settings["selection"].upper()}. Training time: iterations only, of all phases. Memory: of the tensors on a '
        'GPU, else that of the process above what it took before the network was created.',
        machine_line(settings['machine']),
        *(f'{run} failed: {reason}' for run, reason in failed.items()),
    ]
    return '\n\n'.join(notes)


def describe_seeds(counts: set[int]) -> str:
    """Return how many seeds the figures average, for a note; networks may differ in their number of seeds."""
    if max(counts) <= 1:
        return 'one seed'
    return f'{" or ".join(str(count) for count in sorted(counts) if count)} seeds, mean ± standard deviation'


def write_pictures(
    store: ResultsStore, task: Options, rows: Sequence[Mapping[str, Any]], records: Mapping[str, Sequence[Record]]
) -> None:
    """Write ``chart.png`` and ``sheet.png``.

    Args:
        store, task, records: see :func:`write_report`.
        rows: its result.
    """
    metric = store.settings['selection']
    corrupted, *rows = rows
    done = {row['network']: row for row in rows if row[metric] is not None}
    if not done:
        return
    write_bars(
        store.path / 'chart.png',
        task['name'],
        f'{metric.upper()} on the test tiles',
        {name: (row[metric], row[f'{metric} deviation'] or 0.0) for name, row in done.items()},
        (corrupted['network'], corrupted[metric]),
        {name: row["paper's ssim"] for name, row in done.items() if row["paper's ssim"] and metric == 'ssim'},
    )
    _write_sheet(store, task, {name: records[name][0] for name in done})


def _write_sheet(store: ResultsStore, task: Options, records: Mapping[str, Record]) -> None:
    """Write some test tiles: corrupted, restored by each network, and the ground truth."""
    dataset = dataset_options(task, 'test')
    lq, gt = (TileStore(dataset[f'dataroot_{side}']) for side in ('lq', 'gt'))
    keys = lq.keys[:: -(-len(lq) // SHEET_TILES)]
    keys = [key for key in keys if lq[key].shape == lq[keys[0]].shape]  # the sheet is a regular grid
    columns = {'input': [lq[key] for key in keys]}
    image = to_tensor(np.stack(columns['input']))
    for name, record in records.items():
        file = ROOT / record['network file']
        if not file.exists():
            print(f'sheet.png: {name} left out, {file} no longer exists')
            continue
        torch.manual_seed(task['manual_seed'])  # for update rates below 1
        network = construct(store.settings['networks'][name]['network_g'], ARCH_REGISTRY, f'{name}: network_g').eval()
        network.load_state_dict(checkpoint.read_weights(network, file, True, 'params_ema'))
        with torch.no_grad():
            columns[name] = [to_image(restored) for restored in network(image)]
    columns['truth'] = [gt[key] for key in keys]
    write_contact_sheet(store.path / 'sheet.png', columns)
