"""Export a trained network for other programs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lnca.commands import command_parser

EXAMPLES = """\
  lnca export denoise -o denoise.onnx
  lnca export experiments/lnca_photos/models/net_g_best.pth -o mine.safetensors
"""
FORMATS = {
    '.onnx': 'for ONNX runtimes',
    '.pt2': 'for torch.export.load',
    '.safetensors': 'parameters and options, for lnca restore --model',
}


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    args = _parser(prog).parse_args(arguments)

    from lnca_arch.networks.automaton_network import AutomatonNetwork
    from lnca_restore.export import export_onnx, export_program
    from lnca_restore.pretrained import load_network, save_network
    from lnca_utils.errors import ConfigError, install_excepthook

    install_excepthook()
    output, suffix = args.output, args.output.suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(f'-o {output}: must end in {" or ".join(FORMATS)}')
    if output.exists() and not args.overwrite:
        raise ConfigError(f'-o {output}: exists; choose another name, or add --overwrite')
    if args.steps == 'input' and suffix != '.onnx':
        raise ConfigError('--steps input: only for .onnx')
    least = 1 if suffix == '.safetensors' else 0  # see AutomatonNetwork's steps
    if isinstance(args.steps, int) and args.steps < least:
        raise ConfigError(f'--steps: must be at least {least}, got {args.steps}')
    network, options = load_network(args.checkpoint, args.opt)
    output.parent.mkdir(parents=True, exist_ok=True)
    if suffix == '.onnx':
        export_onnx(network, output, args.steps)
    elif suffix == '.pt2':
        export_program(network, output, args.steps)
    else:
        if args.steps is not None:
            if not isinstance(network, AutomatonNetwork):
                raise ConfigError(f'--steps: {type(network).__name__} has no automaton; leave it out')
            options = options | {'steps': args.steps}
        save_network(network, options, output)
    print(f'{output}: {output.stat().st_size / 1000:.0f} kB')


def step_count(text: str) -> int | str:
    """Return the number of steps that an argument names, or ``'input'``."""
    return text if text == 'input' else int(text)


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    add = parser.add_argument
    add('checkpoint', help='denoise, deblur, or the path of a checkpoint')
    formats = '; '.join(f'{suffix}: {purpose}' for suffix, purpose in FORMATS.items())
    add('-o', '--output', type=Path, required=True, help=formats)
    add('--opt', type=Path, help='option file of a checkpoint that does not describe its network')
    add(
        '--steps',
        type=step_count,
        help='number of steps of the automaton; "input": an input of the ONNX model (default: the network\'s)',
    )
    add('--overwrite', action='store_true', help='replace an existing file')
    return parser
