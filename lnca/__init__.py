"""Latent neural cellular automata for image restoration."""

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lnca_arch import LatentNAFCA, LatentViTCA, PixelViTCA
    from lnca_restore import Restorer

__version__ = metadata.version('lnca')
__all__ = ['LatentNAFCA', 'LatentViTCA', 'PixelViTCA', 'Restorer', '__version__']


def __getattr__(name: str) -> Any:
    """Import classes on first use, so that ``lnca --help`` does not import PyTorch."""
    if name == 'Restorer':
        from lnca_restore import Restorer

        return Restorer
    if name in __all__:
        import lnca_arch

        return getattr(lnca_arch, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
