"""Fixtures that several test files use."""

import ast
import copy
import os
import random
import resource
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

# Compilation takes longer than the tests. Tests of compilation enable it; commands inherit this setting.
os.environ['TORCHDYNAMO_DISABLE'] = '1'
# Threads that spin while they wait would slow down the commands that run beside the tests.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import numpy as np
import pytest
import torch
import yaml
from fork_server import ForkServer
from torch import Tensor

import lnca_model  # noqa: F401  registers everything
from lnca_data.corruptions import Noise
from lnca_data.io.lmdb_writer import write_lmdb
from lnca_data.tile_dataset import to_image, to_tensor

# Not the user's cache, to which each dataset of a test would add a marker.
CACHE = tempfile.TemporaryDirectory(prefix='lnca_tests_')
os.environ['XDG_CACHE_HOME'] = CACHE.name

ROOT = Path(__file__).resolve().parents[1]
MAX_WORKERS = 4  # each takes a gigabyte
TILE = 16
MANY_TILES = 121  # odd, so that two ranks have unequal shares

torch.set_num_threads(1 if 'PYTEST_XDIST_WORKER' in os.environ else 2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of pytest-xdist's workers: one a core, and none for a single file, as each takes seconds."""
    files = {argument.partition('::')[0] for argument in config.args}
    if len(files) == 1 and files.pop().endswith('.py'):
        return 0
    return min(MAX_WORKERS, os.cpu_count() or 1)


class Golden(dict[str, Tensor]):
    """Tensors of one file of tests/golden, by name."""

    config: dict

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors named ``prefix/NAME``, by NAME."""
        return {name.removeprefix(f'{prefix}/'): value for name, value in self.items() if name.startswith(f'{prefix}/')}


@pytest.fixture(scope='session')
def golden() -> Callable[[str], Golden]:
    def read(name: str) -> Golden:
        with np.load(Path(__file__).parent / 'golden' / f'{name}.npz') as arrays:
            values = Golden(
                (key, torch.from_numpy(np.asarray(arrays[key])))
                for key in arrays.files
                if arrays[key].dtype.kind != 'U'
            )
            values.config = ast.literal_eval(str(arrays['config'])) if 'config' in arrays.files else {}
        return values

    return read


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)  # TileDataset draws flips and rotations from it
    torch.manual_seed(0)


@pytest.fixture
def little_room() -> Callable[[int], AbstractContextManager]:
    """Limit the size of files, as a full disk does: ``with little_room(size): ...``.

    The limit applies inside the ``with`` block only, since pytest itself may write to files.
    """

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope='session')
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of small LMDBs as datasets/prepare.py writes them: train_gt, val_gt, val_lq, test_gt, test_lq."""
    folder = tmp_path_factory.mktemp('tiles')
    numbers = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    for split, count in (('train', 21), ('val', 7), ('test', 5)):
        # Enlarged noise, since photographs are smooth.
        coarse = numbers.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        images = [image.repeat(TILE // 4, axis=0).repeat(TILE // 4, axis=1) for image in coarse]
        keyed = [(f'tile_{index:03d}', image) for index, image in enumerate(images)]
        write_lmdb(folder / f'{split}_gt.lmdb', keyed)
        if split != 'train':
            # Negatives, so that a hardly trained network scores higher: a run that ends below its input fails.
            noisy = [
                (key, to_image(Noise()(to_tensor(255 - image)[None], generator=generator)[0])) for key, image in keyed
            ]
            write_lmdb(folder / f'{split}_lq.lmdb', noisy)
    return folder


@pytest.fixture(scope='session')
def many_tiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Options of a dataset that takes seconds to restore one pair at a time."""
    numbers = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp('many')
    for side in ('gt', 'lq'):
        images = numbers.integers(0, 256, (MANY_TILES, TILE, TILE, 3), dtype=np.uint8)
        write_lmdb(folder / f'{side}.lmdb', [(f'tile_{index:03d}', image) for index, image in enumerate(images)])
    return {f'dataroot_{side}': str(folder / f'{side}.lmdb') for side in ('gt', 'lq')}


@pytest.fixture
def options(tiles: Path) -> dict[str, Any]:
    """Options of options/lnca_photos.yml for ``tiles``, a tiny network, and seven iterations of batches of four."""
    opt = yaml.safe_load((ROOT / 'options' / 'lnca_photos.yml').read_text())
    for dataset in opt['datasets'].values():
        for side in ('gt', 'lq'):
            if f'dataroot_{side}' in dataset:
                dataset[f'dataroot_{side}'] = str(tiles / Path(dataset[f'dataroot_{side}']).name)
    opt['datasets']['train'].update(batch_size_per_gpu=4, num_worker_per_gpu=0, persistent_workers=False)
    opt['network_g'].update(latent_channels=4, hidden_channels=4, embed_channels=8)
    opt['train'].update(total_iter=7)
    opt['train']['autoencoder'].update(iters=3)
    opt['train']['automaton'].update(iters=4, pool_size=10, steps=[1, 3])
    opt['val'].update(val_freq=7, batch_size=4)
    opt['logger'].update(print_freq=1, save_checkpoint_freq=2, use_tb_logger=False)
    opt['num_gpu'] = 0
    return opt


@pytest.fixture
def model_options(options: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Options as a model receives them: ``options`` and the entries that BasicSR adds."""
    opt = copy.deepcopy(options)
    folders = {'models': 'models', 'training_states': 'training_states', 'log': '', 'visualization': 'visualization'}
    opt['path'].update({name: str(tmp_path / folder) for name, folder in folders.items()})
    for folder in folders.values():
        (tmp_path / folder).mkdir(exist_ok=True)
    for name, dataset in opt['datasets'].items():
        dataset['phase'] = name.split('_')[0]
    return opt | {'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1}


@pytest.fixture
def unused_port() -> int:
    """Port at which nothing listens, for the rendezvous of processes."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Folder with copies of the commands, which write their results there."""
    (tmp_path / 'basicsr').mkdir()
    for name in ('train.py', 'test.py'):
        (tmp_path / 'basicsr' / name).write_text((ROOT / 'basicsr' / name).read_text())
    return tmp_path


@pytest.fixture(scope='session')
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture
def run(project: Path, fork_server: ForkServer) -> Callable[..., subprocess.CompletedProcess]:
    """Run ``python basicsr/COMMAND.py -opt FILE`` with an option file that holds ``options``."""

    def command(name: str, options: dict[str, Any], *arguments: str, cwd: Path = project, **more: Any):
        file = project / 'options.yml'
        file.write_text(yaml.safe_dump(options))
        script = project / 'basicsr' / f'{name}.py'
        return fork_server.run([script, '-opt', file, *arguments], cwd=cwd, **more)

    return command
