"""Pack a dataset into LMDB tiles."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from lnca.commands import command_parser
from lnca_data.corruptions import CORRUPTIONS
from lnca_data.prepare.dataset_source import DatasetSource
from lnca_data.prepare.extraction import PackConfig
from lnca_data.prepare.packing import SHEET, PackSummary, describe_drops, pack
from lnca_data.prepare.sources import SOURCES
from lnca_data.prepare.split import METHODS
from lnca_data.prepare.tiling import TilingSpec
from lnca_data.prepare.verification import verify
from lnca_utils.errors import install_excepthook

EXAMPLES = """\
  lnca prepare photos
  lnca prepare gopro --source path/to/GOPRO_Large
  lnca prepare verify datasets/gopro
"""
# Number of cores that this process may use, or of all cores where the system does not say.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
TASKS = {'noise': 'denoise', 'blur': 'deblur'}


def main(arguments: Sequence[str] | None = None, prog: str | None = None, root: Path | None = None) -> None:
    """Run the command.

    Args:
        arguments: the command line. Default: that of the process.
        prog: name of the command in messages.
        root: folder that contains ``datasets/``. Default: the current folder.
    """
    install_excepthook()
    parser = command_parser(prog, __doc__, EXAMPLES)
    commands = parser.add_subparsers(dest='command', required=True, metavar='NAME')
    for source in SOURCES.values():
        add_source(commands, source)
    check = commands.add_parser('verify', help='check every tile of a packed dataset, its pairs and its hash')
    check.add_argument('folder', type=Path)
    args = parser.parse_args(arguments)
    if args.command == 'verify':
        tiles = verify(args.folder)
        print(f'{args.folder}: {format_counts(tiles)} tiles, all as packed.')
    else:
        prepare(SOURCES[args.command], args, (root or Path()) / 'datasets')


def add_source(commands: argparse._SubParsersAction, source: DatasetSource) -> None:
    """Add the subcommand of a source with its options."""
    defaults = PackConfig()
    command = commands.add_parser(
        source.name, help=source.title, description=f'Pack {source.title}. Expected: {source.layout}.'
    )
    add = command.add_argument
    if source.needs_folder:
        add('--source', type=Path, required=True, metavar='FOLDER', help='folder of the dataset')
    for name, options in source.choices.items():
        add(f'--{name}', **options)
    add('--output', type=Path, metavar='FOLDER', help='folder to write; default: datasets/NAME')
    add(
        '--tile-size',
        type=int,
        default=defaults.tiling.size,
        metavar='PIXELS',
        help='side of a packed tile (%(default)s)',
    )
    if not source.whole:
        tiling = command.add_mutually_exclusive_group()
        tiling.add_argument(
            '--tile-pixels',
            type=int,
            nargs='+',
            default=list(source.tile_pixels),
            metavar='PIXELS',
            help='sides of the tiles in the image, before downscaling (%(default)s)',
        )
        tiling.add_argument(
            '--grid', type=int, nargs=2, metavar=('N', 'M'), help='rows and columns of tiles, instead of their sides'
        )
        add(
            '--flat-threshold',
            type=float,
            default=defaults.flat_threshold,
            metavar='T',
            help='drop tiles whose standard deviation, of values 0 to 255, is lower (%(default)s)',
        )
        add(
            '--duplicate-threshold',
            type=int,
            default=defaults.duplicate_threshold,
            metavar='BITS',
            help='drop tiles whose 64-bit perceptual hash differs in at most this many bits from that of another tile '
            'of their scene; -1: keep all (%(default)s)',
        )
    if source.synthetic:
        add(
            '--corruption',
            choices=CORRUPTIONS,
            default='noise',
            help='corruption of the validation and test pairs (%(default)s)',
        )
    add(
        '--split',
        choices=METHODS,
        default=source.split,
        help='keep scenes together, split tile by tile, or as the authors do (%(default)s)',
    )
    add('--seed', type=int, default=defaults.seed, help='seed of the split and the corruption (%(default)s)')
    add(
        '--workers',
        type=int,
        default=min(CORES, source.max_workers),
        metavar='N',
        help=f'processes; they do not change the result (here %(default)s; more than {source.max_workers} need memory)',
    )
    add('--skip-bad', action='store_true', help='continue without unreadable images, and list them in the summary')
    add('--overwrite', action='store_true', help='replace the output folder')


def prepare(source: DatasetSource, arguments: argparse.Namespace, datasets: Path) -> None:
    """Pack a dataset and print a report."""
    corruption = arguments.corruption if source.synthetic else None
    name = source.name
    if corruption:
        name += f'_{corruption if source.name == "photos" else TASKS[corruption]}'
    output = arguments.output or datasets / name
    choices = {choice: getattr(arguments, choice) for choice in source.choices}
    folder = arguments.source if source.needs_folder else None
    if source.whole:
        tiling = TilingSpec(arguments.tile_size, (), whole=True)
        thresholds = {}
    else:
        grid = tuple(arguments.grid) if arguments.grid else None
        tiling = TilingSpec(arguments.tile_size, () if grid else tuple(arguments.tile_pixels), grid)
        thresholds = {
            'flat_threshold': arguments.flat_threshold,
            'duplicate_threshold': arguments.duplicate_threshold,
        }
    summary = pack(
        source.name,
        source.list(folder, **choices),
        output,
        PackConfig(
            tiling,
            corruption={'type': corruption} if corruption else None,
            split=arguments.split,
            seed=arguments.seed,
            **thresholds,
        ),
        choices={choice: str(value) if isinstance(value, Path) else value for choice, value in choices.items()},
        root=folder,
        overwrite=arguments.overwrite,
        skip_bad=arguments.skip_bad,
        workers=arguments.workers,
    )
    print_report(summary, output)


def print_report(summary: PackSummary, output: Path) -> None:
    """Print the main figures of a summary."""
    print(f'{output}: {format_counts(summary.tiles)} tiles; {describe_drops(summary)}. Look at {output / SHEET}.')
    if summary.misaligned:
        first = summary.misaligned[0]
        print(
            f'{len(summary.misaligned)} pairs seem misaligned, such as {first["lq"]} by {first["shift"]} pixels down '
            'and right; see summary.json.'
        )
    epochs = summary.epochs
    if not epochs['total_iter']:
        print(f'Fewer training tiles than a batch of {epochs["batch_size"]}: use a smaller batch_size_per_gpu.')
        return
    print(
        f'{epochs["epochs"]} epochs at batch size {epochs["batch_size"]}: {epochs["autoencoder_iters"]} iterations per '
        f'phase (LNCA+: {" + ".join(map(str, epochs["lnca_plus_iters"]))}), total_iter: {epochs["total_iter"]}'
    )


def format_counts(tiles: dict[str, int]) -> str:
    """Format numbers of tiles by split."""
    return ', '.join(f'{count} {split}' for split, count in tiles.items())
