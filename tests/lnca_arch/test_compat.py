"""What keeps BasicSR from being imported, each in a process of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import basicsr


def python(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False, timeout=120)


def test_imports_with_what_is_installed():
    for module in ('lnca_arch.registration', 'lnca_data.tile_dataset', 'lnca_model'):
        result = python(f'import {module}; from basicsr.data.degradations import rgb_to_grayscale')
        assert result.returncode == 0, result.stderr


def test_trained_networks_are_used_without_basicsr():
    result = python(
        'import sys, lnca_arch, lnca_restore\n'
        'lnca_restore.Restorer.from_pretrained("denoise")\n'
        'print({"basicsr", "torchvision", "torch._dynamo"} & set(sys.modules))'
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == 'set()'


def test_imports_with_basicsrs_git_master(tmp_path):
    """There the import that torchvision broke is mended. A copy of the installed BasicSR with that change."""
    shutil.copytree(Path(basicsr.__file__).parent, tmp_path / 'basicsr', ignore=shutil.ignore_patterns('__pycache__'))
    changed = tmp_path / 'basicsr' / 'data' / 'degradations.py'
    source = changed.read_text().replace(
        'torchvision.transforms.functional_tensor', 'torchvision.transforms.functional'
    )
    changed.write_text(source)
    result = python(
        f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n'
        'import lnca_model, basicsr\n'
        'from basicsr.utils.registry import MODEL_REGISTRY\n'
        'print(basicsr.__file__, "LNCAModel" in MODEL_REGISTRY)'
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / 'basicsr' / '__init__.py'), 'True']


def test_a_torchvision_of_another_torch_is_one_line():
    result = python(
        'import sys\n'
        'class Mismatch:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        '        if name == "torchvision":\n'
        '            raise RuntimeError("operator torchvision::nms does not exist")\n'
        'sys.meta_path.insert(0, Mismatch())\n'
        'import lnca_model'
    )
    assert result.returncode != 0
    assert result.stderr.startswith('error: torchvision: does not fit torch ')
    assert 'pip install --force-reinstall torch torchvision' in result.stderr
    assert len(result.stderr.splitlines()) == 1
