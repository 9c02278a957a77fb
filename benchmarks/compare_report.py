"""What a comparison writes: tables, a chart and a sheet of pictures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import published_results
import torch
from charts import write_bars
from common import in_one_line
from network_configs import ROOT, Options, dataset_of
from results_store import ResultsFolder, command_line, duration, markdown_table, with_deviation

from lnca_data.io.contact_sheet import write_contact_sheet
from lnca_data.io.lmdb_store import TileStore
from lnca_data.tile_dataset import to_image, to_tensor
from lnca_utils import checkpoint
from lnca_utils.errors import ConfigError
from lnca_utils.option_checks import construct

from basicsr.utils.registry import ARCH_REGISTRY

SHEET_TILES = 20
# How many digits a metric is given with, and its unit.
DIGITS, UNITS = {'psnr': 2}, {'psnr': ', dB'}

Record = Mapping[str, Any]


def write_tables(
    folder: ResultsFolder, task: Options, records: Mapping[str, Sequence[Record]], failed: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Write ``table.md``, ``table.csv`` and ``table.json``.

    Args:
        folder: of the results.
        task: the option file.
        records: network → what its finished runs gave, one a seed.
        failed: run → why it failed.

    Returns:
        A row for the corrupted input and one a network.

    Raises:
        ConfigError: networks were scored on different tiles.
    """
    finished = [record for of_network in records.values() for record in of_network]
    corrupted = {metric: score['corrupted'] for metric, score in finished[0]['scores'].items()} if finished else {}
    for record in finished:
        if not all(math.isclose(score['corrupted'], corrupted[name]) for name, score in record['scores'].items()):
            raise ConfigError(f'{folder.path}: {record["network"]} was scored on other tiles than the rest')
    dataset = Path(dataset_of(task, 'test')['dataroot_gt']).parent.name
    metrics = list(folder.settings['metrics'])
    rows = [_row(name, of_network, dataset, folder.settings) for name, of_network in records.items()]
    rows.insert(0, dict.fromkeys(rows[0]) | {'network': 'corrupted input', **corrupted})
    command = command_line()
    content = {'command': command, 'rows': rows, 'failed': failed, 'settings': folder.settings, 'runs': finished}
    folder.write_json('table.json', content)
    folder.write_csv('table.csv', rows)
    notes = _notes(command, folder.settings, {len(of_network) for of_network in records.values()}, failed)
    folder.write_text('table.md', f'# {task["name"]}\n\n{_table(rows, metrics)}\n\n{notes}\n')
    return rows


def _row(name: str, records: Sequence[Record], dataset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a network: means over seeds and their deviations; None where there is nothing."""

    def over_seeds(values: Sequence[float]) -> tuple[float | None, float | None]:
        mean = statistics.fmean(values) if values else None
        return mean, statistics.stdev(values) if len(values) > 1 else None

    row: dict[str, Any] = {'network': name, 'seeds': len(records)}
    row['parameters'] = records[0]['parameters'] if records else None
    epochs_an_iteration = settings['epochs a phase'] / settings['iterations a phase']
    row['epochs'] = round(records[0]['iterations'] * epochs_an_iteration, 2) if records else None
    for metric in settings['metrics']:
        scores = [record['scores'][metric] for record in records]
        row[metric], row[f'{metric} deviation'] = over_seeds([score['restored'] for score in scores])
        row[f'{metric} gain'], _ = over_seeds([score['gain'] for score in scores])
    row["paper's ssim"] = published_results.SSIM.get((dataset, name))
    row['training seconds'], _ = over_seeds([record['seconds'] for record in records])
    row['peak training memory bytes'], _ = over_seeds([record['peak_memory_bytes'] for record in records])
    return row


def _table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    with_paper = any(row["paper's ssim"] for row in rows)
    columns = ['network', 'parameters', 'epochs']
    for metric in metrics:
        columns += [f'{metric.upper()}{UNITS.get(metric, "")}', 'gain']
    columns += ["paper's SSIM"] * with_paper + ['training time', 'peak training memory']
    lines = []
    for row in rows:
        line = [row['network'], *('' if row[key] is None else f'{row[key]:,}' for key in ('parameters', 'epochs'))]
        for metric in metrics:
            digits = DIGITS.get(metric, 3)
            line.append(with_deviation(row[metric], row[f'{metric} deviation'], digits))
            line.append(_number(row[f'{metric} gain'], digits, '+'))
        line += [_number(row["paper's ssim"], 3)] * with_paper
        seconds, memory = row['training seconds'], row['peak training memory bytes']
        line += ['', ''] if seconds is None else [duration(seconds), f'{memory / 1e9:.2f} GB']
        lines.append(line)
    return markdown_table(columns, lines)


def _number(value: float | None, digits: int, sign: str = '') -> str:
    return '' if value is None else f'{value:{sign}.{digits}f}'


def _notes(command: str, settings: Mapping[str, Any], seeds: set[int], failed: Mapping[str, str]) -> str:
    """What a reader must know of the figures."""
    epochs, full = settings['epochs a phase'], settings['epochs of the option file']
    count = {kind: f'{tiles["count"]:,}' for kind, tiles in settings['tiles'].items()}
    notes = [
        f'`{command}`',
        f'{count["train"]} training, {count["val"]} validation and {count["test"]} test tiles, the same for all; '
        f'batch {settings["batch"]}; {epochs:g} epochs a phase; {of_seeds(seeds)}. Epochs: over all phases, of which '
        f'latent networks have several. Scored is the best network by {settings["selection"].upper()} on validation. '
        'Training time: iterations alone, of all phases; memory: on a GPU the '
        'tensors, else above what the process had before the network was made.',
        in_one_line(settings['machine']),
    ]
    if epochs != full:
        budget = settings['budget, minutes']
        why = '' if budget is None else f'Budget of {budget:g} minutes: '
        notes.insert(1, f'**{why}{epochs:g} instead of {full:g} epochs a phase, equally for all.**')
    notes += [f'{run} failed: {reason}' for run, reason in failed.items()]
    return '\n\n'.join(notes)


def of_seeds(counts: set[int]) -> str:
    """How many trainings of each network figures are the means of, in words."""
    if max(counts) <= 1:
        return 'one seed'
    number = ' or '.join(str(count) for count in sorted(counts) if count)
    return f'{number} seeds, mean ± standard deviation'


def write_pictures(
    folder: ResultsFolder, task: Options, rows: Sequence[Mapping[str, Any]], records: Mapping[str, Sequence[Record]]
) -> None:
    """Write ``chart.png`` and ``sheet.png``; arguments as for :func:`write_tables`, and its rows."""
    metric = folder.settings['selection']
    corrupted, *rows = rows
    done = {row['network']: row for row in rows if row[metric] is not None}
    if not done:
        return
    write_bars(
        folder.path / 'chart.png',
        task['name'],
        f'{metric.upper()} on the test tiles',
        {name: (row[metric], row[f'{metric} deviation'] or 0.0) for name, row in done.items()},
        (corrupted['network'], corrupted[metric]),
        {name: row["paper's ssim"] for name, row in done.items() if row["paper's ssim"] and metric == 'ssim'},
    )
    _write_sheet(folder, task, {name: records[name][0] for name in done})


def _write_sheet(folder: ResultsFolder, task: Options, records: Mapping[str, Record]) -> None:
    """The same test tiles: corrupted, restored by every network, and the truth."""
    dataset = dataset_of(task, 'test')
    inputs, truths = (TileStore(dataset[f'dataroot_{side}']) for side in ('lq', 'gt'))
    keys = inputs.keys[:: -(-len(inputs) // SHEET_TILES)]
    shape = inputs[keys[0]].shape
    keys = [key for key in keys if inputs[key].shape == shape]  # a sheet is a grid
    columns = {'input': [inputs[key] for key in keys]}
    image = to_tensor(np.stack(columns['input']))
    for name, record in records.items():
        file = ROOT / record['network file']
        if not file.exists():
            print(f'sheet.png: without {name}, whose {file} is gone')
            continue
        torch.manual_seed(task['manual_seed'])  # for cells that update at random
        network = construct(folder.settings['networks'][name]['network_g'], ARCH_REGISTRY, f'{name}: network_g').eval()
        network.load_state_dict(checkpoint.read_weights(network, file, True, 'params_ema'))
        with torch.no_grad():
            columns[name] = [to_image(restored) for restored in network(image)]
    columns['truth'] = [truths[key] for key in keys]
    write_contact_sheet(folder.path / 'sheet.png', columns)
