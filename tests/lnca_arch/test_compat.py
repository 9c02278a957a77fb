"""What keeps BasicSR from being imported, each in a process of its own."""

import subprocess
import sys


def python(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False, timeout=120)


def test_imports_with_what_is_installed():
    for module in ('lnca_arch', 'lnca_data', 'lnca_model'):
        result = python(f'import {module}; from basicsr.data.degradations import rgb_to_grayscale')
        assert result.returncode == 0, result.stderr


def test_a_basicsr_that_needs_no_mending_gets_none():
    """BasicSR's git master imports nothing that torchvision has removed: an existing module is left as it is."""
    result = python(
        'import sys, types\n'
        'name = "torchvision.transforms.functional_tensor"\n'
        'import torchvision.transforms.functional as functional\n'
        'own = types.ModuleType(name); own.rgb_to_grayscale = functional.rgb_to_grayscale; sys.modules[name] = own\n'
        'import lnca_model\n'
        'assert sys.modules[name] is own'
    )
    assert result.returncode == 0, result.stderr


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
    assert result.stderr.startswith('error: torchvision does not fit torch ')
    assert 'pip install --force-reinstall torch torchvision' in result.stderr
    assert len(result.stderr.splitlines()) == 1
