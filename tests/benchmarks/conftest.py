"""A copy of the project in which every network is tiny."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTHING: Mapping[str, str] = MappingProxyType({})
PREPARE_LINE = '#   python datasets/prepare.py photos\n'
TINY = {
    'LatentNAFCA': {'latent_channels': 4, 'hidden_channels': 4, 'embed_channels': 8},
    'LNCA+': {'latent_channels': 4, 'hidden_channels': 4, 'embed_channels': 8},
    'LatentViTCA': {'latent_channels': 4, 'hidden_channels': 4, 'embed_channels': 8, 'mlp_channels': 8},
    'ViTCA': {'hidden_channels': 4, 'embed_channels': 8, 'mlp_channels': 8},
    'NAFNet': {'width': 4, 'enc_blk_nums': [1, 1], 'middle_blk_num': 1, 'dec_blk_nums': [1, 1]},
    'Restormer': {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 1, 1]},
}


@pytest.fixture
def project(project: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Beside the commands the benchmarks, the networks made tiny, and ``task.yml``: ``options`` with 4 iterations a
    phase. Whatever is started takes two threads: results of different numbers of threads are not put together."""
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    shutil.copytree(ROOT / 'benchmarks', project / 'benchmarks', ignore=shutil.ignore_patterns('__pycache__'))
    (project / 'options' / 'networks').mkdir(parents=True)
    for name, sizes in TINY.items():
        network = yaml.safe_load((ROOT / 'options' / 'networks' / f'{name}.yml').read_text())
        network['network_g'].update(sizes)
        if 'automaton' in network['train']:
            network['train']['automaton'].update(pool_size=10, steps=[1, 3])
        (project / 'options' / 'networks' / f'{name}.yml').write_text(yaml.safe_dump(network))
    options['train'].update(total_iter=8)
    options['train']['autoencoder'].update(iters=4)
    options['val']['val_freq'] = 2
    (project / 'options' / 'lnca_photos.yml').write_text(yaml.safe_dump(options))  # whose optimiser efficiency.py uses
    (project / 'task.yml').write_text(f'{PREPARE_LINE}{yaml.safe_dump(options)}')
    return project


@pytest.fixture
def edit(project: Path) -> Callable[[str, Callable[[dict[str, Any]], Any]], None]:
    """Change what a YAML file of the copy says; its comments are lost, but for one line at the top."""

    def change(name: str, how: Callable[[dict[str, Any]], Any]) -> None:
        content = yaml.safe_load((project / name).read_text())
        how(content)
        (project / name).write_text(f'{PREPARE_LINE}{yaml.safe_dump(content)}')

    return change


@pytest.fixture
def benchmark(project: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run ``python benchmarks/NAME.py ARGUMENTS`` in the copy."""

    def command(name: str, *arguments: str, env: Mapping[str, str] = NOTHING) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, 'benchmarks/' + name + '.py', *arguments],
            cwd=project,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env={**os.environ, **env},
        )

    return command
