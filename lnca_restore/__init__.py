"""Use of trained networks: restoration of photographs, and export.

BasicSR, whose import takes seconds, is only imported for networks of its registry.
"""

from lnca_restore.restorer import Restorer

__all__ = ['Restorer']
