"""Install the plug-in into a BasicSR checkout, so that its own train.py and test.py know it."""

from collections.abc import Sequence
from pathlib import Path

from lnca.commands import command_parser

EXAMPLES = """\
  lnca install path/to/BasicSR
  lnca install path/to/BasicSR --remove
"""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument('checkout', type=Path, help='folder that contains basicsr/')
    parser.add_argument('--remove', action='store_true', help='remove the plug-in')
    args = parser.parse_args(arguments)

    from lnca_model.integrations.checkout import install, remove
    from lnca_utils.errors import install_excepthook

    install_excepthook()
    action, done = (remove, 'removed') if args.remove else (install, 'wrote')
    for path in action(args.checkout):
        print(f'{done} {path}')
