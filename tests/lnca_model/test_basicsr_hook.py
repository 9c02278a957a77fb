"""The plug-in changes nothing in BasicSR or the process until one of its own models is trained."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import basicsr

ROOT = Path(__file__).resolve().parents[2]

IMPORT = """
import signal, sys
from lnca_arch.integrations import basicsr_compat
basicsr_compat.apply()
from PIL import Image
import basicsr.train, basicsr.test

def state():
    known = {}
    for name, module in list(sys.modules.items()):
        if name == '__main__' or name.split('.')[0] == 'basicsr':
            known |= {(name, key): id(value) for key, value in vars(module).items() if callable(value)}
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return known, sys.excepthook, Image.MAX_IMAGE_PIXELS, handlers

before = state()
import lnca_model, lnca_model.integrations.basicsr_hook
after = state()
assert len(before[0]) > 200
changed = [name for name, value in before[0].items() if after[0].get(name) != value]
assert not changed, changed
assert before[1:] == after[1:]
print('unchanged')
"""

BASICSR = """
import sys
from lnca_arch.integrations import basicsr_compat
basicsr_compat.apply()
from basicsr.train import train_pipeline
train_pipeline(sys.argv.pop(1))
"""


def call(*arguments, **more):
    result = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False, timeout=300, **more)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_it_changes_nothing():
    assert call(sys.executable, '-c', IMPORT).strip() == 'unchanged'


@pytest.fixture
def foreign_options(tmp_path):
    """Options of a network and a model of BasicSR's own, on a few images."""
    numbers = np.random.default_rng(0)
    for side in ('gt', 'lq'):
        (tmp_path / side).mkdir()
        for index in range(4):
            cv2.imwrite(str(tmp_path / side / f'{index}.png'), numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    dataset = {
        'name': 'pictures',
        'type': 'PairedImageDataset',
        'dataroot_gt': str(tmp_path / 'gt'),
        'dataroot_lq': str(tmp_path / 'lq'),
        'io_backend': {'type': 'disk'},
    }
    train = {'gt_size': 16, 'use_hflip': True, 'use_rot': True, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0}
    return {
        'name': 'foreign',
        'model_type': 'SRModel',
        'scale': 1,
        'num_gpu': 0,
        'manual_seed': 3,
        'datasets': {'train': {**dataset, **train}, 'val': dataset},
        'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 1},
        'path': {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None},
        'train': {
            'ema_decay': 0.9,
            'optim_g': {'type': 'Adam', 'lr': 0.01},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.5},
            'total_iter': 4,
            'warmup_iter': -1,
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
        },
        'val': {
            'val_freq': 2,
            'save_img': False,
            'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': False}},
        },
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
    }


def test_models_of_basicsr_train_as_without_it(foreign_options, tmp_path_factory):
    """BasicSR alone, basicsr/train.py and a checkout with the plug-in train to the same bits."""
    environment = os.environ | {'OMP_NUM_THREADS': '1'}
    weights = {}
    for way in ('BasicSR', 'plug-in', 'checkout'):
        folder = tmp_path_factory.mktemp(way)
        file = folder / 'options.yml'
        file.write_text(yaml.safe_dump(copy.deepcopy(foreign_options)))
        if way == 'BasicSR':
            call(sys.executable, '-c', BASICSR, folder, '-opt', file, cwd=folder, env=environment)
        elif way == 'plug-in':
            (folder / 'basicsr').mkdir()
            (folder / 'basicsr' / 'train.py').write_text((ROOT / 'basicsr' / 'train.py').read_text())
            call(sys.executable, 'basicsr/train.py', '-opt', file, cwd=folder, env=environment)
        else:
            ignored = shutil.ignore_patterns('__pycache__')
            shutil.copytree(Path(basicsr.__file__).parent, folder / 'basicsr', ignore=ignored)
            call(sys.executable, '-m', 'lnca', 'install', folder)
            in_checkout = environment | {'PYTHONPATH': str(folder)}
            call(sys.executable, 'basicsr/train.py', '-opt', file, cwd=folder, env=in_checkout)
        weights[way] = torch.load(folder / 'experiments/foreign/models/net_g_4.pth', weights_only=True)
        assert (folder / 'experiments/foreign/training_states/4.state').is_file()
    for way in ('plug-in', 'checkout'):
        for kind in ('params', 'params_ema'):
            assert weights[way][kind].keys() == weights['BasicSR'][kind].keys()
            for name, value in weights['BasicSR'][kind].items():
                assert torch.equal(weights[way][kind][name], value), (way, name)


def test_packages_without_basicsr_log_to_the_log_of_a_run(tmp_path):
    code = (
        'import logging, sys\n'
        'import lnca_model\n'
        'from lnca_model.training.progress import start_log\n'
        'start_log({"name": "a", "path": {"log": sys.argv[1]}}, "train")\n'
        'logging.getLogger("lnca").warning("compiled")\n'
    )
    result = subprocess.run([sys.executable, '-c', code, tmp_path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (file,) = tmp_path.glob('train_a_*.log')
    assert 'WARNING: compiled' in file.read_text()
