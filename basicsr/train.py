"""Train a network: ``python basicsr/train.py -opt options/lnca_photos.yml``."""

from pathlib import Path

import lnca_model  # noqa: F401  registers the plug-in
from lnca_model.integrations.basicsr_hook import train_pipeline

if __name__ == '__main__':
    train_pipeline(str(Path(__file__).resolve().parents[1]))
