"""The tables and charts of an efficiency measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import published_results
from charts import write_lines
from common import in_one_line
from measure_process import reason
from results_store import ResultsFolder, markdown_table

TRAINING_SHARE = 0.8
IMAGES = 1000  # of the paper's epoch, to which those of fewer images are scaled
# The figures of a cell that are the paper's quantities, and the paper's units.
FIGURES = {
    'training memory, GB': ('training_bytes', 1e-9),
    'training epoch, s': ('epoch_seconds', 1),
    'inference, s': ('inference_seconds', 1),
}
CHARTS = dict(zip(FIGURES, ('memory.png', 'training.png', 'inference.png'), strict=True))
GROWTH_NETWORK, GROWTH_BATCH = 'LatentNAFCA', 2
GROWTH_FIGURES = {
    'inference, ns': ('inference_seconds', 1e9),
    'inference, bytes': ('inference_bytes', 1),
    'training iteration of both phases, ns': ('iteration_seconds', 1e9),
    'training, bytes': ('training_bytes', 1),
}


@dataclass(frozen=True)
class Protocol:
    """How much is measured.

    Attributes:
        sizes, batches: of the images; the networks are measured at each of one with each of the other.
        growth: sizes at which LatentNAFCA is measured, in batches of two.
        images: of an epoch, four fifths of them for training.
        epochs, runs: of which the first is not counted.
        steps: of an automaton in training; drawn anew each time if None.
    """

    sizes: tuple[int, ...] = published_results.SIZES
    batches: tuple[int, ...] = published_results.BATCHES
    growth: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    images: int = IMAGES
    epochs: int = 10
    runs: int = 10
    steps: int | None = None


def cell_name(network: str, size: int, batch: int) -> str:
    """What the figures of a network at a size and batch are known by."""
    return f'{network}_{size}_{batch}'


def growth_name(size: int) -> str:
    """What the figures of LatentNAFCA at a size are known by, for its growth."""
    return f'growth_{size}'


def write_report(
    folder: ResultsFolder, protocol: Protocol, names: Sequence[str], measured: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the tables and charts.

    Args:
        folder: of the results.
        protocol: what was measured.
        names: of the networks.
        measured: cell → its figures.
    """
    rows = [
        _row(quantity, name, size, batch, measured[cell_name(name, size, batch)], protocol)
        for quantity in FIGURES
        for name in names
        for size in protocol.sizes
        for batch in protocol.batches
    ]
    growth = [_growth_row(size, measured[growth_name(size)]) for size in protocol.growth if GROWTH_NETWORK in names]
    folder.write_csv('table.csv', rows)
    folder.write_json('table.json', {'rows': rows, 'growth': growth, 'settings': folder.settings})
    text = _markdown(rows, growth, names, protocol, folder.settings['machine'])
    folder.write_text('table.md', text)

    shapes = [(size, batch) for size in protocol.sizes for batch in protocol.batches]
    for quantity, chart in CHARTS.items():
        ours = {(row['network'], row['size'], row['batch']): row['ours'] for row in rows if row['quantity'] == quantity}
        lines = {name: [ours[(name, *shape)] for shape in shapes] for name in names}
        positions = [f'{size}²\n×{batch}' for size, batch in shapes]
        write_lines(folder.path / chart, quantity, quantity, positions, lines, 'pixels × batch')
    files = ['table.md', 'table.csv', 'table.json', *CHARTS.values()]
    if growth:
        folder.write_csv('growth.csv', growth)
        lines = {name: [row[name] for row in growth] for name in GROWTH_FIGURES}
        sizes = [f'{row["size"]}²' for row in growth]
        title = f'{GROWTH_NETWORK}: time and memory per pixel'
        write_lines(folder.path / 'growth.png', title, 'ns or bytes a pixel', sizes, lines, 'pixels')
        files += ['growth.csv', 'growth.png']
    print(text)
    print(f'{folder.path}: {", ".join(files)}')


def _row(
    quantity: str, name: str, size: int, batch: int, figures: Mapping[str, Any], protocol: Protocol
) -> dict[str, Any]:
    """A cell of a table: ours, in the paper's unit, the paper's, and their ratio."""
    key, unit = FIGURES[quantity]
    ours = figures[key] * unit if key in figures else None
    if key == 'epoch_seconds' and ours is not None:
        ours *= IMAGES / protocol.images
    published = published_results.EFFICIENCY.get((quantity, name, size, batch))
    return {
        'quantity': quantity,
        'network': name,
        'size': size,
        'batch': batch,
        'ours': ours,
        'paper': published,
        'ratio': ours / published if ours is not None and published else None,
        'dash': reason(figures) if ours is None else None,
    }


def _growth_row(size: int, figures: Mapping[str, Any]) -> dict[str, Any]:
    pixels = GROWTH_BATCH * size**2
    per_pixel = {
        name: figures[key] * unit / pixels if key in figures else None for name, (key, unit) in GROWTH_FIGURES.items()
    }
    return {'size': size, **per_pixel, 'dash': reason(figures)}


def _markdown(
    rows: Sequence[Mapping[str, Any]],
    growth: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    protocol: Protocol,
    where: Mapping[str, Any],
) -> str:
    shapes = [(size, batch) for size in protocol.sizes for batch in protocol.batches]
    parts = ['# Efficiency']
    for quantity in FIGURES:
        cells = {(r['network'], r['size'], r['batch']): _cell_text(r) for r in rows if r['quantity'] == quantity}
        lines = [[name, *(cells[(name, *shape)] for shape in shapes)] for name in names]
        columns = ['', *(f'{size}² × {batch}' for size, batch in shapes)]
        parts.append(f'## {quantity[0].upper()}{quantity[1:]}\n\n{markdown_table(columns, lines)}')
    scaled = '' if protocol.images == IMAGES else f', measured with {protocol.images} and scaled'
    parts.append(
        "Ours (the paper's on an A100 of 80 GB, ours ÷ the paper's). – : out of memory or of time. An epoch is of "
        f'{IMAGES} images{scaled}: {TRAINING_SHARE:.0%} for training, the rest for validation; median of '
        f'{protocol.epochs - 1} after the first; the phases of latent networks are summed. Inference: as many steps of '
        f'an automaton as its network takes by itself, 64 in the paper; median of {protocol.runs - 1} runs after the '
        'first. Memory: on a GPU the peak of the tensors, else that of the process above what it had before the '
        'network was made; an automaton taking its most steps.'
    )
    if growth:
        lines = [[f'{row["size"]}²', *(_significant(row[name]) for name in GROWTH_FIGURES)] for row in growth]
        table = markdown_table(['', *GROWTH_FIGURES], lines)
        parts.append(f'## {GROWTH_NETWORK}, per pixel, batch {GROWTH_BATCH}\n\n{table}')
    parts.append(in_one_line(where))
    return '\n\n'.join(parts) + '\n'


def _cell_text(row: Mapping[str, Any]) -> str:
    published = '–' if row['paper'] is None else f'{row["paper"]:g}'
    ratio = '' if row['ratio'] is None else f', ×{row["ratio"]:.2g}'
    return f'{_significant(row["ours"])} ({published}{ratio})'


def _significant(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return '–'
    return f'{value:,.0f}' if value >= 100 else f'{value:#.3g}'
