"""Hand a trained network on to other programs: ``python inference/export.py checkpoint -o model.onnx``."""

import argparse
from pathlib import Path

from lnca_arch.networks.automaton_network import AutomatonNetwork
from lnca_restore.export import export_onnx, export_program
from lnca_restore.pretrained import BUNDLED, SUFFIX, load_network, save_network
from lnca_utils.errors import ConfigError, install_excepthook

SUFFIXES = {
    '.onnx': 'for ONNX runtimes',
    '.pt2': 'for torch.export.load',
    SUFFIX: 'the parameters and the options that rebuild the network, for inference/restore.py --model',
}


def main() -> None:
    install_excepthook()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('checkpoint', help=f'a checkpoint, or {" or ".join(BUNDLED)}')
    formats = '; '.join(f'{suffix}: {purpose}' for suffix, purpose in SUFFIXES.items())
    parser.add_argument('-o', '--output', type=Path, required=True, help=formats)
    parser.add_argument('--opt', type=Path, help='its option file, if it cannot be found from the checkpoint')
    parser.add_argument(
        '--steps',
        type=lambda text: text if text == 'input' else int(text),
        help='steps of the automaton; "input": in an ONNX file, an input; its own number if left out',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace a file that is there')
    arguments = parser.parse_args()
    output, suffix = arguments.output, arguments.output.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f'-o {output}: must end in {" or ".join(SUFFIXES)}')
    if output.exists() and not arguments.overwrite:
        raise ConfigError(f'{output} exists; choose another name, or add --overwrite')
    if arguments.steps == 'input' and suffix != '.onnx':
        raise ConfigError('--steps input: only for .onnx')
    least = 1 if suffix == SUFFIX else 0  # see AutomatonNetwork's steps
    if isinstance(arguments.steps, int) and arguments.steps < least:
        raise ConfigError(f'--steps: must be at least {least}, got {arguments.steps}')
    network, options = load_network(arguments.checkpoint, arguments.opt)
    output.parent.mkdir(parents=True, exist_ok=True)
    if suffix == '.onnx':
        export_onnx(network, output, arguments.steps)
    elif suffix == '.pt2':
        export_program(network, output, arguments.steps)
    else:
        if arguments.steps is not None:
            if not isinstance(network, AutomatonNetwork):
                raise ConfigError(f'--steps: {type(network).__name__} has no automaton')
            options = options | {'steps': arguments.steps}
        save_network(network, options, output)
    print(f'{output}: {output.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    main()
