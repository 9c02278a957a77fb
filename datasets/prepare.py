"""Pack a dataset into LMDB tiles: ``python datasets/prepare.py NAME``. See datasets/README.md for each NAME."""

import argparse
import os
from pathlib import Path

from lnca_data.corruptions import CORRUPTIONS
from lnca_data.prepare.dataset_source import DatasetSource
from lnca_data.prepare.extraction import PackConfig
from lnca_data.prepare.packing import SHEET, PackSummary, drops, pack
from lnca_data.prepare.sources import SOURCES
from lnca_data.prepare.split import METHODS
from lnca_data.prepare.tiling import TilingSpec
from lnca_data.prepare.verification import verify
from lnca_utils.errors import install_excepthook

HERE = Path(__file__).resolve().parent
# Those that this process may use, where the system tells.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
TASKS = {'noise': 'denoise', 'blur': 'deblur'}


def main() -> None:
    install_excepthook()
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='NAME')
    for source in SOURCES.values():
        add_source(commands, source)
    check = commands.add_parser('verify', help='check every tile of a packed dataset, the pairing and the hash')
    check.add_argument('folder', type=Path)
    arguments = parser.parse_args()
    if arguments.command == 'verify':
        tiles = verify(arguments.folder)
        print(f'{arguments.folder}: {counts(tiles)} tiles, all as they were packed.')
    else:
        prepare(SOURCES[arguments.command], arguments)


def add_source(commands: argparse._SubParsersAction, source: DatasetSource) -> None:
    """The options of ``prepare.py NAME``."""
    defaults = PackConfig()
    command = commands.add_parser(
        source.name, help=source.title, description=f'Pack {source.title}. Expected: {source.layout}.'
    )
    add = command.add_argument
    if source.needs_folder:
        add('--source', type=Path, required=True, metavar='FOLDER', help='the folder that holds it')
    for name, options in source.choices.items():
        add(f'--{name}', **options)
    add('--output', type=Path, metavar='FOLDER', help='folder to write; datasets/NAME unless given')
    add(
        '--tile-size',
        type=int,
        default=defaults.tiling.size,
        metavar='PIXELS',
        help='side of a packed tile (%(default)s)',
    )
    if not source.whole:
        cut = command.add_mutually_exclusive_group()
        cut.add_argument(
            '--tile-pixels',
            type=int,
            nargs='+',
            default=list(source.tile_pixels),
            metavar='PIXELS',
            help='sides of the tiles in the image, before they are shrunk (%(default)s)',
        )
        cut.add_argument('--grid', type=int, nargs=2, metavar=('N', 'M'), help='rows and columns of tiles instead')
        add(
            '--flat-threshold',
            type=float,
            default=defaults.flat_threshold,
            metavar='T',
            help='drop tiles of less standard deviation, on the scale of 0 to 255 (%(default)s)',
        )
        add(
            '--duplicate-threshold',
            type=int,
            default=defaults.duplicate_threshold,
            metavar='BITS',
            help='drop tiles whose perceptual hash of 64 bits differs in no more bits from that of a tile of '
            'their scene; -1: none (%(default)s)',
        )
    if source.synthetic:
        add('--corruption', choices=CORRUPTIONS, default='noise', help='of the validation and test pairs (%(default)s)')
    add(
        '--split',
        choices=METHODS,
        default=source.split,
        help="what stays on one side: a scene, or just a tile; or the authors' lists (%(default)s)",
    )
    add('--seed', type=int, default=defaults.seed, help='of the split and the corruption (%(default)s)')
    add(
        '--workers',
        type=int,
        default=min(CORES, source.max_workers),
        metavar='N',
        help=f'processes; the result is the same (here %(default)s; more than {source.max_workers} take much memory)',
    )
    add('--skip-bad', action='store_true', help='go on without what cannot be read, and list it in the summary')
    add('--overwrite', action='store_true', help='replace the output folder')


def prepare(source: DatasetSource, arguments: argparse.Namespace) -> None:
    """List, pack, and say what came out."""
    corruption = arguments.corruption if source.synthetic else None
    name = source.name
    if corruption:
        name += f'_{corruption if source.name == "photos" else TASKS[corruption]}'
    output = arguments.output or HERE / name
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
    report(summary, output)


def report(summary: PackSummary, output: Path) -> None:
    """What came out, in words; the figures are in summary.json, too."""
    print(f'{output}: {counts(summary.tiles)} tiles; {drops(summary)}. Look at {output / SHEET}.')
    if summary.misaligned:
        first = summary.misaligned[0]
        print(
            f'{len(summary.misaligned)} pairs seem misaligned, such as {first["lq"]}, off by {first["shift"]} pixels '
            'down and right; see summary.json.'
        )
    epochs = summary.epochs
    if not epochs['total_iter']:
        print(f'Fewer training tiles than a batch of {epochs["batch_size"]}: set a smaller batch_size_per_gpu.')
        return
    print(
        f'{epochs["epochs"]} epochs at batch size {epochs["batch_size"]}: {epochs["autoencoder_iters"]} iterations a '
        f'phase (LNCA+: {" + ".join(map(str, epochs["lnca_plus_iters"]))}), total_iter: {epochs["total_iter"]}'
    )


def counts(tiles: dict[str, int]) -> str:
    return ', '.join(f'{count} {split}' for split, count in tiles.items())


if __name__ == '__main__':
    main()
