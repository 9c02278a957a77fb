"""Support for BasicSR and spandrel."""
