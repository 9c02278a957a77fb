"""A copy of the project in which every network is tiny, and its benchmarks run in this process."""

import itertools
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from fork_server import ForkServer

ROOT = Path(__file__).resolve().parents[2]
MODULES = [file.stem for file in (ROOT / 'benchmarks').glob('*.py')]
PREPARE_LINE = '#   python datasets/prepare.py photos\n'
TINY = {
    'LatentNAFCA': {'latent_channels': 4, 'hidden_channels': 4, 'embed_channels': 8},
    'LNCA+': {'latent_channels': 4, 'hidden_channels': 4, 'embed_channels': 8},
    'LatentViTCA': {'latent_channels': 4, 'hidden_channels': 4, 'embed_channels': 8, 'mlp_channels': 8},
    'ViTCA': {'hidden_channels': 4, 'embed_channels': 8, 'mlp_channels': 8},
    'NAFNet': {'width': 4, 'enc_blk_nums': [1, 1], 'middle_blk_num': 1, 'dec_blk_nums': [1, 1]},
    'Restormer': {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 1, 1]},
}
# Reads a measurement from the file that it is given, since a fork has no standard input.
MEASURE = 'import sys\nimport measure_process\nsys.stdin = open(sys.argv[1])\nmeasure_process.main()\n'


@pytest.fixture
def project(project: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands, the benchmarks, tiny networks, and ``task.yml``: ``options`` with 4 iterations per phase.

    All processes take two threads, since results of different numbers of threads are not combined.
    """
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    shutil.copytree(
        ROOT / 'benchmarks', project / 'benchmarks', ignore=shutil.ignore_patterns('__pycache__', 'results')
    )
    (project / 'benchmarks' / 'measure_file.py').write_text(MEASURE)
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
    (project / 'options' / 'lnca_photos.yml').write_text(yaml.safe_dump(options))
    (project / 'task.yml').write_text(f'{PREPARE_LINE}{yaml.safe_dump(options)}')
    return project


@pytest.fixture
def edit(project: Path) -> Callable[[str, Callable[[dict[str, Any]], Any]], None]:
    """Change a YAML file of the copy; its comments are lost, except for one line at the top."""

    def change(name: str, how: Callable[[dict[str, Any]], Any]) -> None:
        content = yaml.safe_load((project / name).read_text())
        how(content)
        (project / name).write_text(f'{PREPARE_LINE}{yaml.safe_dump(content)}')

    return change


class _Fork:
    """What ``training_run`` uses of ``subprocess.Popen``, as a fork."""

    def __init__(self, fork_server: ForkServer, command: list[str], env: dict[str, str]) -> None:
        self._process = fork_server.start(command, env=env)
        # The log, then the rest: stdout is short enough to wait in its pipe.
        self.stdout = itertools.chain(self._process.stderr, self._process.stdout or ())
        self.terminate = self._process.terminate

    def __enter__(self) -> '_Fork':
        return self

    def __exit__(self, *error: object) -> None:
        self.returncode = self._process.wait()
        self._process.__exit__(*error)


@contextmanager
def _own_modules() -> Iterator[None]:
    """Import the benchmarks anew: those of the copy."""
    kept = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    try:
        yield
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


@pytest.fixture
def benchmark(
    project: Path, fork_server: ForkServer, capfd: pytest.CaptureFixture
) -> Callable[..., subprocess.CompletedProcess]:
    """Run ``python benchmarks/NAME.py ARGUMENTS`` in the copy: in this process, what it starts as forks.

    With ``estimated=True`` the speed of a network is not measured; a training iteration is taken to last a second.
    """

    def popen(command: list[str], env: dict[str, str], **_: Any) -> _Fork:
        return _Fork(fork_server, command[1:], env)

    def run(_: list[str], input: str, stdout: Any, timeout: float | None, **__: Any) -> subprocess.CompletedProcess:
        measurement = project / 'measurement.json'
        measurement.write_text(input)
        result = fork_server.run([project / 'benchmarks' / 'measure_file.py', measurement], timeout or 300)
        stdout.write(result.stdout)
        return result

    replaced = {'training_run': {'Popen': popen}, 'measure_process': {'run': run}}

    def command(name: str, *arguments: str, estimated: bool = False) -> subprocess.CompletedProcess:
        with pytest.MonkeyPatch.context() as patch, _own_modules():
            patch.chdir(project)
            patch.syspath_prepend(project / 'benchmarks')
            patch.setattr(sys, 'argv', [f'benchmarks/{name}.py', *arguments])
            patch.setattr(sys, 'excepthook', sys.__excepthook__)
            for module, functions in replaced.items():
                patch.setattr(f'{module}.subprocess', SimpleNamespace(**{**vars(subprocess), **functions}))
            if estimated:
                patch.setattr('measure_process.run', lambda _: {'iteration_seconds': 1.0, 'validation_seconds': 0.01})
            capfd.readouterr()
            code: Any = 0
            try:
                runpy.run_path(f'benchmarks/{name}.py', run_name='__main__')
            except SystemExit as end:
                code = end.code
            except Exception:
                sys.excepthook(*sys.exc_info())
                code = 1
            return subprocess.CompletedProcess(sys.argv, code, *capfd.readouterr())

    return command


@pytest.fixture
def benchmark_process(project: Path) -> Callable[..., subprocess.CompletedProcess]:
    """The same in processes of their own, as users run it."""

    def command(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, f'benchmarks/{name}.py', *arguments],
            cwd=project,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env=os.environ | environment,
        )

    return command
