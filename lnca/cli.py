"""The command ``lnca``: one subcommand for each module of :mod:`lnca.commands`."""

import importlib
import sys
from collections.abc import Sequence

from lnca.commands import command_parser

COMMANDS = {
    'train': 'train a network',
    'test': 'score a trained network and save its images',
    'prepare': 'pack a dataset into LMDB tiles',
    'restore': 'restore photographs',
    'demo': 'open a page to try a network on photographs',
    'export': 'export a trained network for other programs',
    'install': 'install the plug-in into a BasicSR checkout',
}
EXAMPLES = """\
  lnca restore photo.jpg
  lnca train -opt options/lnca_photos.yml
"""


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run the subcommand that the command line names.

    Args:
        arguments: the command line. Default: that of the process.

    Returns:
        The exit code of the process.
    """
    parser = command_parser('lnca', 'Latent neural cellular automata for image restoration.', EXAMPLES)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # Each command parses its own arguments, so that only its module is imported.
    name = parser.parse_args(arguments[:1]).command
    command = importlib.import_module(f'lnca.commands.{name}')
    return command.main(arguments[1:], prog=f'lnca {name}')
