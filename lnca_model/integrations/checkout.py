"""Installation into a BasicSR checkout.

Afterwards, ``python basicsr/train.py -opt options/lnca_photos.yml`` works in the checkout.

BasicSR imports all files ``archs/*_arch.py`` and ``models/*_model.py``. :func:`install` writes one of each: the first
makes BasicSR importable with current versions of torchvision, the second registers the plug-in. It also copies the
option files. Nothing else in the checkout changes.
"""

import hashlib
from pathlib import Path

from lnca_utils.atomic import atomic_file
from lnca_utils.errors import ConfigError

HOOKS = {
    'basicsr/archs/lnca_arch.py': 'import lnca_arch.registration  # noqa: F401\n',
    'basicsr/models/lnca_model.py': 'from lnca_model.integrations import basicsr_hook\n\nbasicsr_hook.install()\n',
}
PACKAGES = Path(__file__).resolve().parents[2]
#: Folders of the option files: in an installed package, and in a clone.
OPTIONS = (PACKAGES / 'lnca' / 'options', PACKAGES / 'options')
MARK = '# Written by the LNCA plug-in; lnca install --remove deletes it. SHA-256 of the rest: '
MARK_START = '# Written by the LNCA plug-in;'  # earlier versions name another command after it


def install(checkout: Path) -> list[Path]:
    """Write the plug-in's files into a checkout, replacing those of an earlier version.

    Args:
        checkout: the folder that holds ``basicsr/``.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: if the folder is not a BasicSR checkout, or one of the files exists and was not written by this
            function or was changed since.
    """
    contents = _contents(checkout)
    for path in contents:
        if path.exists() and not _is_ours(path):
            raise ConfigError(f'{path} exists and was not written by this command, or was changed since; move it away')
    for path, content in contents.items():
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(MARK + _digest(content) + '\n' + content, encoding='utf-8')
    return list(contents)


def remove(checkout: Path) -> list[Path]:
    """Remove the files that :func:`install` wrote, unless they were changed since.

    Args:
        checkout: the folder that holds ``basicsr/``.

    Returns:
        The paths of the removed files.

    Raises:
        ConfigError: if the folder is not a BasicSR checkout, or the plug-in's own option files are missing.
    """
    removed = [path for path in _contents(checkout) if path.exists() and _is_ours(path)]
    for path in removed:
        path.unlink()
    return removed


def _contents(checkout: Path) -> dict[Path, str]:
    for folder in ('archs', 'data', 'losses', 'models'):
        if not (checkout / 'basicsr' / folder / '__init__.py').is_file():
            raise ConfigError(f'{checkout}: not a BasicSR checkout, basicsr/{folder}/__init__.py is missing')
    contents = {checkout / path: content for path, content in HOOKS.items()}
    files = sorted(file for folder in OPTIONS for file in folder.glob('*.yml'))
    if not files:
        raise ConfigError(f'{OPTIONS[0]}: no option files; install lnca again')
    for file in files:
        contents[checkout / 'options' / file.name] = file.read_text(encoding='utf-8')
    return contents


def _is_ours(path: Path) -> bool:
    first, _, rest = path.read_text(encoding='utf-8', errors='replace').partition('\n')
    return first.startswith(MARK_START) and first.endswith(_digest(rest))


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
