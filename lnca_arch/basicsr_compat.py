"""What BasicSR 1.4.2 needs to run on current torch and torchvision and on a machine with no GPU.

One function a defect. :func:`apply` mends what would keep BasicSR from being imported; what BasicSR does wrong later
is mended where the plug-in reads its options, by :func:`resume_anywhere` and :func:`read_yaml_safely`.
"""

import importlib
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any


def apply() -> None:
    """Make BasicSR importable. Safe to call again, and while BasicSR itself is being imported."""
    require_matching_torchvision()
    provide_functional_tensor()


def require_matching_torchvision() -> None:
    """torchvision must have been built for the torch beside it; where it was not, its import fails obscurely.

    Raises:
        ImportError: in one line, what to install.
    """
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError, AttributeError) as error:
        import torch

        raise ImportError(
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


def read_yaml_safely() -> None:
    """BasicSR reads option files with a YAML loader that runs the code a file may hold. Have it read plain data."""
    import yaml
    from basicsr.utils import options

    class SafeOrderedLoader(yaml.SafeLoader):
        pass

    SafeOrderedLoader.add_constructor(
        yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG,
        lambda loader, node: OrderedDict(loader.construct_pairs(node)),
    )
    dumper = options.ordered_yaml()[1]
    options.ordered_yaml = lambda: (SafeOrderedLoader, dumper)


def resume_anywhere() -> None:
    """BasicSR looks for ``--auto_resume`` in the current directory, loads the state onto a GPU even if there is none,
    and unpickles whatever the file holds. Replace its function, also in a checkout's train.py that is being run."""
    for name in ('basicsr.train', '__main__'):
        module = sys.modules.get(name)
        if hasattr(module, 'load_resume_state'):
            module.load_resume_state = load_resume_state


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """The training state to go on from, or None: the newest of the experiment under ``--auto_resume``, else
    ``path.resume_state``. Sets ``path.pretrain_network_g`` to the network of the same iteration."""
    import torch
    from basicsr.utils import check_resume

    if opt['auto_resume']:
        iterations = [int(file.stem) for file in Path(opt['path']['training_states']).glob('[0-9]*.state')]
        if iterations:
            newest = f'{max(iterations)}.state'
            opt['path']['resume_state'] = str(Path(opt['path']['training_states']) / newest)
    path = opt['path'].get('resume_state')
    if not path:
        return None
    # The optimisers move their state to their parameters' device themselves.
    state = torch.load(path, map_location='cpu', weights_only=True)
    check_resume(opt, state['iter'])
    return state
