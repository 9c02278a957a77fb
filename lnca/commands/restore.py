"""Restore photographs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lnca.commands import command_parser

EXAMPLES = """\
  lnca restore photo.jpg
  lnca restore holiday/ -o restored/ --model deblur
"""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; return its exit code."""
    args = _parser(prog).parse_args(arguments)

    import cv2
    from tqdm import tqdm

    from lnca_restore import Restorer
    from lnca_restore.batch_restoration import Pictures, plan_jobs, plan_steps, restore_file
    from lnca_utils.errors import DISK_FULL, LNCAError, first_line, install_excepthook

    install_excepthook()
    for stream in (sys.stdout, sys.stderr):  # file names may have characters that the terminal cannot print
        stream.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
    pictures = Pictures(args.animate, args.animate_steps, args.side_by_side)
    jobs = plan_jobs(args.inputs, args.output, pictures, args.overwrite)
    restorer = Restorer.from_pretrained(args.model, args.opt, args.device, tile=args.tile, overlap=args.overlap)
    steps, restored_index = plan_steps(restorer, args.steps, pictures)
    failed = 0
    bar = tqdm(jobs, unit='photo', disable=len(jobs) == 1)
    for job in bar:
        try:
            restore_file(restorer, job, steps, restored_index, pictures)
        except (LNCAError, OSError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            failed += 1
            bar.write(f'error: {error}', file=sys.stderr)
        except (MemoryError, RuntimeError, cv2.error) as error:  # PyTorch raises RuntimeError when out of memory
            failed += 1
            bar.write(f'error: {job.source}: {first_line(error)}; if out of memory, try --tile 256', file=sys.stderr)
        else:
            bar.write(f'{job.source} → {job.target}')
    if failed and len(jobs) > 1:
        print(f'{failed} of {len(jobs)} photographs could not be restored', file=sys.stderr)
    return 1 if failed else 0


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    add = parser.add_argument
    add('inputs', nargs='+', type=Path, help='photographs (PNG, JPEG, WebP, TIFF), or folders of them')
    add(
        '-o',
        '--output',
        type=Path,
        help='a file for one photograph, or a folder (default: beside each photograph, as NAME_restored)',
    )
    add('--model', default='denoise', help='denoise, deblur, or the path of a checkpoint (default: denoise)')
    add('--opt', type=Path, help='option file of a checkpoint that does not describe its network')
    add('--steps', type=int, help="number of steps of the automaton (default: the network's)")
    add('--tile', type=int, help='side of the tiles in pixels; smaller tiles take less memory')
    add('--overlap', type=int, help='overlap of neighbouring tiles in pixels')
    add('--device', help='cpu or cuda (default: cuda if available)')
    add('--overwrite', action='store_true', help='replace existing files')
    add('--animate', type=Path, help='write an animation of the restoration of one photograph: .gif, .mp4 or .png')
    add('--animate-steps', type=int, nargs='+', help='numbers of steps that it shows (default: nine, evenly spaced)')
    add('--side-by-side', type=Path, help='write a PNG of one photograph before and after')
    return parser
