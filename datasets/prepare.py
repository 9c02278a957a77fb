"""Pack photographs into LMDB tiles: ``python datasets/prepare.py photos``."""

import argparse
from pathlib import Path

from lnca_arch.errors import report_in_one_line
from lnca_data.corruption import CORRUPTIONS
from lnca_data.packing import PackingOptions, pack
from lnca_data.sources import photos

HERE = Path(__file__).resolve().parent


def main() -> None:
    report_in_one_line()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    sources = parser.add_subparsers(dest='source', required=True, metavar='SOURCE')
    command = sources.add_parser(
        'photos',
        help="scikit-image's colour photographs, chelsea held out for the test",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument('--corruption', choices=CORRUPTIONS, default='noise', help='of the validation and test pairs')
    command.add_argument('--output', type=Path, help='folder to write; datasets/photos_CORRUPTION unless given')
    command.add_argument('--tile-pixels', type=int, nargs='+', default=[32, 64], help='sides of the tiles, uncut')
    command.add_argument('--tile-size', type=int, default=32, help='side of a packed tile')
    command.add_argument('--flat-threshold', type=float, default=4.0, help='drop tiles of less standard deviation')
    command.add_argument('--seed', type=int, default=0, help='of the corruption')
    command.add_argument('--overwrite', action='store_true', help='replace the output folder')
    arguments = parser.parse_args()

    output = arguments.output or HERE / f'photos_{arguments.corruption}'
    options = PackingOptions(
        corruption={'type': arguments.corruption},
        tile_pixels=arguments.tile_pixels,
        tile_size=arguments.tile_size,
        flat_threshold=arguments.flat_threshold,
        seed=arguments.seed,
    )
    summary = pack(photos.photographs(), output, options, arguments.overwrite)
    counts = ', '.join(f'{count} {split}' for split, count in summary.tiles.items())
    dropped = ', '.join(f'{count} {reason}' for reason, count in summary.dropped.items()) or 'none'
    print(f'{output}: {counts} tiles; dropped: {dropped}. Look at {output / "contact_sheet.png"}.')


if __name__ == '__main__':
    main()
