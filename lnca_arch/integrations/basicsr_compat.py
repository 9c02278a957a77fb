"""What BasicSR 1.4.2 needs to run on current torch and torchvision and on a machine with no GPU.

One function a defect. :func:`apply` mends what would keep BasicSR from being imported.
"""

import importlib
import sys
import types

from lnca_utils import errors


def apply() -> None:
    """Make BasicSR importable, and import it. Safe to call while BasicSR itself is being imported."""
    require_matching_torchvision()
    provide_functional_tensor()
    # All of it before the plug-in's modules: a checkout that the plug-in is installed in imports those in its turn.
    importlib.import_module('basicsr')


def require_matching_torchvision() -> None:
    """torchvision must have been built for the torch beside it; where it was not, its import fails obscurely.

    Raises:
        InstallationError: in one line, what to install.
    """
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError, AttributeError) as error:
        import torch

        errors.install_excepthook()
        raise errors.InstallationError(
            f'torchvision does not fit torch {torch.__version__} ({error}); install the two together, from one source: '
            'pip install --force-reinstall torch torchvision'
        ) from None


def provide_functional_tensor() -> None:
    """BasicSR 1.4.2 imports ``torchvision.transforms.functional_tensor``, which torchvision 0.17 removed."""
    name = 'torchvision.transforms.functional_tensor'
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        from torchvision.transforms.functional import rgb_to_grayscale

        module = types.ModuleType(name)
        module.rgb_to_grayscale = rgb_to_grayscale
        sys.modules[name] = module


def provide_wandb_ids() -> None:
    """BasicSR takes the id of a new run from a function that wandb has moved."""
    import wandb

    if not hasattr(wandb.util, 'generate_id'):
        from wandb.sdk.lib.runid import generate_id

        wandb.util.generate_id = generate_id
