"""Open a page to try a network on photographs, and to watch the automaton work."""

from collections.abc import Sequence

from lnca.commands import command_parser

EXAMPLES = """\
  lnca demo
  lnca demo --model experiments/lnca_photos/models/net_g_best.pth --port 8000
"""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument('--host', default='127.0.0.1', help='address to serve at; 0.0.0.0 for the whole network')
    parser.add_argument('--port', type=int, default=7860, help='port to serve at (default: 7860)')
    parser.add_argument(
        '--model', nargs='+', default=['denoise', 'deblur'], help='bundled models or checkpoints to choose from'
    )
    args = parser.parse_args(arguments)

    from lnca_utils.errors import install_excepthook

    install_excepthook()
    from lnca_restore.demo_page import serve

    serve(args.host, args.port, args.model)
