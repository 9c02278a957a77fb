"""What uses trained networks: photographs restored, networks exported. It works without BasicSR, whose import takes
seconds, unless a network of BasicSR's is asked for."""

from lnca_restore.restorer import Restorer

__all__ = ['Restorer']
