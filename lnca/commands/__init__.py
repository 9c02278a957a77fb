"""The subcommands of ``lnca``.

Each module has a function ``main(arguments, prog)``. It imports PyTorch after parsing its arguments where these do not
depend on the plug-in.
"""

import argparse


def command_parser(prog: str | None, description: str | None, examples: str) -> argparse.ArgumentParser:
    """Return an argument parser whose help ends with examples.

    Args:
        prog: name of the command. Default: that of the process.
        description: what the command does.
        examples: an indented line for each example.
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f'examples:\n{examples}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
