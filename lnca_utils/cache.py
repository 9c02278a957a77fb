"""The folder in which results are kept between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache folder: ``lnca`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    caches = Path(os.environ.get('XDG_CACHE_HOME', ''))
    return (caches if caches.is_absolute() else Path.home() / '.cache') / 'lnca'
