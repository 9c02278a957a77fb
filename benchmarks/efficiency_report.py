"""The report of an efficiency measurement: tables and charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import published_results
from charts import write_lines
from common import machine_line
from measure_process import failure_reason
from results_store import ResultsStore, markdown_table, write_csv, write_tables

TRAIN_RATIO = 0.8
EPOCH_IMAGES = 1000  # of the paper; measurements with fewer are scaled
# Quantity of the paper, in its unit → figure of a measurement, and its factor.
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
    """What is measured.

    Attributes:
        sizes, batches: image sizes and batch sizes; the networks are measured with all pairs of them.
        growth: image sizes for the growth of :data:`GROWTH_NETWORK`, with batches of :data:`GROWTH_BATCH`.
        images: images per epoch, of which :data:`TRAIN_RATIO` are training images.
        epochs, runs: training epochs and inference runs; the first is not counted.
        steps: steps of an automaton in training; None to draw them in each iteration.
    """

    sizes: tuple[int, ...] = published_results.SIZES
    batches: tuple[int, ...] = published_results.BATCHES
    growth: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    images: int = EPOCH_IMAGES
    epochs: int = 10
    runs: int = 10
    steps: int | None = None

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """All pairs of image size and batch size."""
        return [(size, batch) for size in self.sizes for batch in self.batches]


def measurement_name(network: str, size: int, batch: int) -> str:
    """Return the name of the measurement of a network at an image size and batch size."""
    return f'{network}_{size}_{batch}'


def growth_name(size: int) -> str:
    """Return the name of the growth measurement at an image size."""
    return f'growth_{size}'


def write_report(
    store: ResultsStore, protocol: Protocol, networks: Sequence[str], measured: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write and print the tables, and write the charts.

    Args:
        store: the results.
        protocol: what was measured.
        networks: names of the networks.
        measured: name of a measurement → its figures.
    """
    rows = [
        _row(quantity, network, *shape, measured[measurement_name(network, *shape)], protocol)
        for quantity in FIGURES
        for network in networks
        for shape in protocol.shapes
    ]
    growth = [_growth_row(size, measured[growth_name(size)]) for size in protocol.growth if GROWTH_NETWORK in networks]
    # (quantity, network) → one row per shape, as in the tables and charts.
    series = {
        (quantity, network): [row for row in rows if (row['quantity'], row['network']) == (quantity, network)]
        for quantity in FIGURES
        for network in networks
    }
    text = _markdown(series, growth, networks, protocol, store.settings['machine'])
    write_tables(store.path, text, rows, {'rows': rows, 'growth': growth, 'settings': store.settings})
    for quantity, chart in CHARTS.items():
        lines = {network: [row['ours'] for row in series[quantity, network]] for network in networks}
        positions = [f'{size}²\n×{batch}' for size, batch in protocol.shapes]
        write_lines(store.path / chart, quantity, quantity, positions, lines, 'pixels × batch')
    files = ['table.md', 'table.csv', 'table.json', *CHARTS.values()]
    if growth:
        write_csv(store.path / 'growth.csv', growth)
        lines = {name: [row[name] for row in growth] for name in GROWTH_FIGURES}
        sizes = [f'{row["size"]}²' for row in growth]
        title = f'{GROWTH_NETWORK}: time and memory per pixel'
        write_lines(store.path / 'growth.png', title, 'ns or bytes per pixel', sizes, lines, 'pixels')
        files += ['growth.csv', 'growth.png']
    print(text)
    print(f'{store.path}: {", ".join(files)}')


def _row(
    quantity: str, network: str, size: int, batch: int, figures: Mapping[str, Any], protocol: Protocol
) -> dict[str, Any]:
    """Return our figure in the paper's unit, the paper's, and their ratio."""
    key, factor = FIGURES[quantity]
    ours = figures[key] * factor if key in figures else None
    if key == 'epoch_seconds' and ours is not None:
        ours *= EPOCH_IMAGES / protocol.images
    published = published_results.EFFICIENCY.get((quantity, network, size, batch))
    return {
        'quantity': quantity,
        'network': network,
        'size': size,
        'batch': batch,
        'ours': ours,
        'paper': published,
        'ratio': ours / published if ours is not None and published else None,
        'dash': failure_reason(figures) if ours is None else None,
    }


def _growth_row(size: int, figures: Mapping[str, Any]) -> dict[str, Any]:
    pixels = GROWTH_BATCH * size**2
    per_pixel = {
        name: figures[key] * factor / pixels if key in figures else None
        for name, (key, factor) in GROWTH_FIGURES.items()
    }
    return {'size': size, **per_pixel, 'dash': failure_reason(figures)}


def _markdown(
    series: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    growth: Sequence[Mapping[str, Any]],
    networks: Sequence[str],
    protocol: Protocol,
    machine: Mapping[str, Any],
) -> str:
    parts = ['# Efficiency']
    columns = ['', *(f'{size}² × {batch}' for size, batch in protocol.shapes)]
    for quantity in FIGURES:
        lines = [[network, *map(_comparison_text, series[quantity, network])] for network in networks]
        parts.append(f'## {quantity[0].upper()}{quantity[1:]}\n\n{markdown_table(columns, lines)}')
    scaled = '' if protocol.images == EPOCH_IMAGES else f', measured with {protocol.images} and scaled'
    parts.append(
        "Ours (the paper's on an A100 with 80 GB, ours ÷ the paper's). –: out of memory or time. An epoch has "
        f'{EPOCH_IMAGES} images{scaled}: {TRAIN_RATIO:.0%} for training, the rest for validation; median of '
        f'{protocol.epochs - 1} epochs after the first, summed over the phases of latent networks. Inference: with the '
        f"network's default number of steps, 64 in the paper; median of {protocol.runs - 1} runs after the first. "
        'Memory: peak of the tensors on a GPU, else that of the process above what it took before the network was '
        'created; with the largest number of steps of an automaton.'
    )
    if growth:
        lines = [[f'{row["size"]}²', *(_three_digits(row[name]) for name in GROWTH_FIGURES)] for row in growth]
        table = markdown_table(['', *GROWTH_FIGURES], lines)
        parts.append(f'## {GROWTH_NETWORK}, per pixel, batch {GROWTH_BATCH}\n\n{table}')
    parts.append(machine_line(machine))
    return '\n\n'.join(parts) + '\n'


def _comparison_text(row: Mapping[str, Any]) -> str:
    published = '–' if row['paper'] is None else f'{row["paper"]:g}'
    ratio = '' if row['ratio'] is None else f', ×{row["ratio"]:.2g}'
    return f'{_three_digits(row["ours"])} ({published}{ratio})'


def _three_digits(value: float | None) -> str:
    """Return a number with three significant digits and no exponent; a dash for None."""
    if value is None:
        return '–'
    return f'{value:,.0f}' if value >= 100 else f'{value:#.3g}'
