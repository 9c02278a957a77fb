"""Charts that are readable in black and white: hatches, markers and line styles besides shades of grey."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lnca_utils.atomic import atomic_file
from lnca_utils.errors import InstallationError, install_excepthook

try:
    import matplotlib
except ModuleNotFoundError:
    install_excepthook()  # the importing command has not called it yet
    raise InstallationError('the charts need matplotlib: pip install -e ".[benchmarks]"') from None

matplotlib.use('Agg')  # needs no display

from matplotlib import pyplot as plt

HATCHES = ('', '///', 'xxx', '...', '\\\\\\', '+++', 'ooo')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
LINES = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)))


def write_bars(
    path: Path,
    title: str,
    label: str,
    bars: Mapping[str, tuple[float, float]],
    baseline: tuple[str, float],
    published: Mapping[str, float],
) -> None:
    """Draw one bar per network.

    Args:
        path: the PNG file.
        title, label: title of the chart and label of its vertical axis.
        bars: network → mean and standard deviation (0 for none).
        baseline: name and value of a horizontal line to compare with.
        published: network → value in the paper; not every network needs one.
    """
    figure, axes = plt.subplots(figsize=(1.3 * len(bars) + 2, 4), constrained_layout=True)
    for index, (value, deviation) in enumerate(bars.values()):
        shade = str(0.9 - 0.5 * index / max(1, len(bars) - 1))
        hatch = HATCHES[index % len(HATCHES)]
        axes.bar(index, value, yerr=deviation or None, color=shade, edgecolor='black', hatch=hatch, capsize=4)
        axes.annotate(f'{value:.3f}', (index, value), (0, 4), textcoords='offset points', ha='center')
    axes.axhline(baseline[1], color='black', linestyle='--', label=f'{baseline[0]}, {baseline[1]:.3f}')
    points = {index: published[name] for index, name in enumerate(bars) if name in published}
    if points:
        axes.plot(list(points), list(points.values()), 'D', color='white', markeredgecolor='black', label='paper')
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set(title=title, ylabel=label)
    axes.margins(y=0.15)
    axes.legend()
    _save(figure, path)


def write_lines(
    path: Path,
    title: str,
    label: str,
    positions: Sequence[str],
    lines: Mapping[str, Sequence[float | None]],
    axis: str = '',
) -> None:
    """Draw one line per network on a logarithmic axis.

    Args:
        path: the PNG file.
        title, label: title of the chart and label of its vertical axis.
        positions: labels of the points, from left to right.
        lines: network → one value per position; None leaves a gap.
        axis: label of the horizontal axis.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4), constrained_layout=True)
    for index, (name, values) in enumerate(lines.items()):
        axes.plot(
            range(len(positions)),
            _with_gaps(values),
            color=str(0.6 * index / max(1, len(lines) - 1)),
            linestyle=LINES[index % len(LINES)],
            marker=MARKERS[index % len(MARKERS)],
            label=name,
        )
    axes.set_xticks(range(len(positions)), positions, fontsize=8)
    axes.set(title=title, ylabel=label, xlabel=axis)
    if any(value is not None for values in lines.values() for value in values):
        axes.set_yscale('log')
    axes.grid(True, axis='y', linestyle=':', color='0.7')
    axes.legend()
    _save(figure, path)


def write_curves(
    path: Path,
    label: str,
    axis: str,
    curves: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float | None], bool]]],
) -> None:
    """Draw one panel per configuration with one curve per run, on a logarithmic axis.

    Args:
        path: the PNG file.
        label, axis: labels of the vertical and the horizontal axis.
        curves: configuration → for each run its positions, its values, and whether it diverged, which emphasizes it.
    """
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    size = (4 * columns, 2.6 * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, constrained_layout=True)
    for axes, (name, runs) in zip(panels.flat, curves.items(), strict=False):
        for positions, values, is_diverged in sorted(runs, key=lambda run: run[2]):
            shade, width = ('black', 1.2) if is_diverged else ('0.65', 0.7)
            axes.plot(positions, _with_gaps(values), color=shade, linewidth=width)
        axes.set_title(f'{name.replace("_", " ")} ({sum(run[2] for run in runs)} of {len(runs)} diverged)', fontsize=8)
        axes.set_yscale('log')
        axes.grid(True, axis='y', linestyle=':', color='0.7')
    for axes in panels.flat[len(curves) :]:
        axes.axis('off')
    figure.supxlabel(axis, fontsize=9)
    figure.supylabel(label, fontsize=9)
    _save(figure, path)


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [float('nan') if value is None else value for value in values]


def _save(figure: plt.Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
