"""Fixes that BasicSR 1.4.2 needs on current versions of its dependencies, one function for each.

:func:`apply` runs those without which BasicSR cannot be imported.
"""

import importlib
import sys
import types

from lnca_utils import errors


def apply() -> None:
    """Make BasicSR importable, and import it.

    May be called while BasicSR is being imported.
    """
    require_matching_torchvision()
    provide_functional_tensor()
    # All of BasicSR first: in a checkout with the plug-in installed, it imports the plug-in's modules in turn.
    importlib.import_module('basicsr')


def require_matching_torchvision() -> None:
    """Check that torchvision was built for the installed torch; otherwise its import fails with an obscure error.

    Raises:
        InstallationError: if it was not.
    """
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError, AttributeError) as error:
        import torch

        errors.install_excepthook()
        raise errors.InstallationError(
            f'torchvision: does not fit torch {torch.__version__} ({error}); install both together from one source: '
            'pip install --force-reinstall torch torchvision'
        ) from None


def provide_functional_tensor() -> None:
    """Provide ``torchvision.transforms.functional_tensor``, which BasicSR imports and torchvision 0.17 removed."""
    name = 'torchvision.transforms.functional_tensor'
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        from torchvision.transforms.functional import rgb_to_grayscale

        module = types.ModuleType(name)
        setattr(module, rgb_to_grayscale.__name__, rgb_to_grayscale)
        sys.modules[name] = module


def provide_wandb_ids() -> None:
    """Provide ``wandb.util.generate_id``, which BasicSR calls and wandb has moved."""
    import wandb

    if not hasattr(wandb.util, 'generate_id'):
        from wandb.sdk.lib.runid import generate_id

        wandb.util.generate_id = generate_id
