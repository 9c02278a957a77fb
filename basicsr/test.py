"""Score a trained network and save its pictures: ``python basicsr/test.py -opt options/test_lnca_photos.yml``."""

from pathlib import Path

import lnca_model  # noqa: F401  registers the plug-in
from lnca_model.integrations.basicsr_hook import test_pipeline

if __name__ == '__main__':
    test_pipeline(str(Path(__file__).resolve().parents[1]))
