"""Use of trained networks: restoration of photographs, and export.

BasicSR, whose import takes seconds, is only imported for BasicSR's own networks.
"""

from lnca_restore.restorer import Restorer

__all__ = ['Restorer']
