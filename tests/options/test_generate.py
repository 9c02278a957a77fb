"""The option files are those that the generator makes."""

import importlib.util
from pathlib import Path

OPTIONS = Path(__file__).parents[2] / 'options'


def load_generator():
    spec = importlib.util.spec_from_file_location('generate', OPTIONS / 'generate.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_option_files_are_generated():
    generated = load_generator().generate()
    assert len(generated) == 24
    for name, content in generated.items():
        assert (OPTIONS / name).read_text(encoding='utf-8') == content, f'{name}: run python options/generate.py'
    assert {path.name for path in OPTIONS.glob('lnca_*.yml')} == generated.keys()
