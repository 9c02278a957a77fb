"""``python -m lnca``."""

import sys

from lnca.cli import main

if __name__ == '__main__':
    sys.exit(main())
