"""Run ``lnca prepare`` from a clone."""

from pathlib import Path

from lnca.commands.prepare import main

if __name__ == '__main__':
    main(root=Path(__file__).resolve().parents[1])
