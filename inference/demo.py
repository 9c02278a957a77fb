"""Run ``lnca demo`` from a clone."""

import sys

from lnca.commands.demo import main

if __name__ == '__main__':
    sys.exit(main())
