"""The plug-in in a BasicSR checkout, trained by its own train.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lnca_model.integrations.checkout import install
from lnca_utils.errors import ConfigError

import basicsr

INSTALL = ['-m', 'lnca', 'install']


@pytest.fixture
def checkout(tmp_path):
    """The installed BasicSR, laid out as a checkout."""
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(Path(basicsr.__file__).parent, tmp_path / 'basicsr', ignore=ignored)
    return tmp_path


@pytest.fixture
def edit_checkout(fork_server):
    """Run ``python -m lnca install ARGUMENTS``."""
    return lambda *arguments: fork_server.run([*INSTALL, *arguments])


def call(*arguments, **more):
    return subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False, timeout=300, **more)


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and '__pycache__' not in path.parts}


def test_installed_its_own_train_py_trains_and_removed_it_is_as_before(checkout, options, tmp_path_factory):
    before = files_of(checkout)
    for _ in range(2):  # a second time it replaces its own files
        result = call(sys.executable, *INSTALL, checkout)
        assert result.returncode == 0, result.stderr
    written = files_of(checkout).keys() - before.keys()
    assert checkout / 'options' / 'lnca_photos.yml' in written
    file = tmp_path_factory.mktemp('options') / 'options.yml'
    file.write_text(yaml.safe_dump(options))
    # An editable install of a checkout is found first, as this is.
    environment = {'PYTHONPATH': str(checkout), 'PATH': ''}
    result = call(sys.executable, 'basicsr/train.py', '-opt', file, cwd=checkout, env=environment)
    assert result.returncode == 0, result.stderr
    assert (checkout / 'experiments' / 'lnca_photos' / 'models' / 'net_g_best.pth').is_file()
    options['network_g']['type'] = 'LatentNAFCa'
    file.write_text(yaml.safe_dump(options))
    result = call(sys.executable, 'basicsr/train.py', '-opt', file, cwd=checkout, env=environment)
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith('error: network_g: type')
    assert 'Traceback' not in result.stderr

    shutil.rmtree(checkout / 'experiments')
    assert call(sys.executable, *INSTALL, checkout, '--remove').returncode == 0
    assert files_of(checkout) == before


def test_files_of_others_are_not_touched(checkout, edit_checkout):
    foreign = checkout / 'basicsr' / 'models' / 'lnca_model.py'
    foreign.write_text('mine = True\n')
    before = files_of(checkout)
    result = edit_checkout(checkout)
    assert result.returncode != 0
    assert result.stderr.startswith(f'error: {foreign} exists and was not written by this command')
    assert files_of(checkout) == before
    assert edit_checkout(checkout, '--remove').returncode == 0
    assert files_of(checkout) == before


def test_edited_files_stay(checkout, edit_checkout):
    edit_checkout(checkout)
    edited = checkout / 'options' / 'lnca_photos.yml'
    edited.write_text(edited.read_text().replace('pool_size: 1024', 'pool_size: 512'))
    result = edit_checkout(checkout)
    assert result.returncode != 0
    assert str(edited) in result.stderr
    edit_checkout(checkout, '--remove')
    assert 'pool_size: 512' in edited.read_text()
    assert not (checkout / 'basicsr' / 'models' / 'lnca_model.py').exists()


def test_no_checkout(tmp_path, edit_checkout):
    result = edit_checkout(tmp_path)
    assert result.returncode != 0
    assert result.stderr == f'error: {tmp_path}: not a BasicSR checkout, basicsr/archs/__init__.py is missing\n'


def test_without_option_files_nothing_is_written(checkout, monkeypatch):
    monkeypatch.setattr('lnca_model.integrations.checkout.OPTIONS', (checkout / 'none',))
    before = files_of(checkout)
    with pytest.raises(ConfigError, match='no option files; install lnca again'):
        install(checkout)
    assert files_of(checkout) == before
