"""Run ``lnca export`` from a clone."""

import sys

from lnca.commands.export import main

if __name__ == '__main__':
    sys.exit(main())
