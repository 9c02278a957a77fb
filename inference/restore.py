"""Run ``lnca restore`` from a clone."""

import sys

from lnca.commands.restore import main

if __name__ == '__main__':
    sys.exit(main())
