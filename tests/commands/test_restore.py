"""The commands of inference/, run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from lnca_arch import LatentNAFCA
from lnca_arch.networks.baselines import NAFNet
from lnca_restore import Restorer
from lnca_restore.pretrained import load_network, save_network

ROOT = Path(__file__).parents[2]
SIZES = {'latent_channels': 4, 'hidden_channels': 5, 'embed_channels': 8}


@pytest.fixture
def run(fork_server):
    """Run ``python inference/COMMAND.py ARGUMENTS``."""
    return lambda command, *arguments: fork_server.run([ROOT / 'inference' / f'{command}.py', *arguments])


def run_afresh(command, *arguments):
    """Do as ``run`` in a process of its own, which has imported nothing."""
    return subprocess.run(
        [sys.executable, ROOT / 'inference' / f'{command}.py', *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / 'models' / 'net.pth'
    path.parent.mkdir()
    torch.save({'params': LatentNAFCA(**SIZES).state_dict()}, path)
    return path


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / 'photo.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 44, 3), dtype=np.uint8)).save(path)
    return path


def assert_fails(result, message):
    assert result.returncode == 1, result.stderr
    assert message in result.stderr.splitlines()[-1]
    assert 'Traceback' not in result.stderr


def test_one_photograph_by_the_model_that_comes_along(run, photograph):
    result = run('restore', photograph)
    assert result.returncode == 0, result.stderr
    found = np.asarray(Image.open(photograph.with_name('photo_restored.png')))
    expected = Restorer.from_pretrained('denoise')(np.asarray(Image.open(photograph)))
    np.testing.assert_array_equal(found, expected)
    assert_fails(run('restore', photograph), 'exists; choose another name with -o, or add --overwrite')
    assert run('restore', photograph, '--overwrite', '--steps', 0).returncode == 0
    assert not np.array_equal(np.asarray(Image.open(photograph.with_name('photo_restored.png'))), expected)


def test_trace_and_compare(run, photograph, model, tmp_path):
    out = tmp_path / 'out'
    more = ['--model', model, '-o', out / 'restored.jpg', '--steps', 6, '--side-by-side', out / 'sheet.png']
    result = run('restore', photograph, *more, '--animate', out / 'way.gif', '--animate-steps', 0, 2, 8)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == ['restored.jpg', 'sheet.png', 'way.gif']
    with Image.open(out / 'way.gif') as animation:
        assert animation.n_frames == 4  # and the last step of the restored picture
    assert cv2.imread(str(out / 'sheet.png')).shape[1] >= 2 * 44


def test_a_trace_is_of_a_networks_own_steps(run, photograph, tmp_path):
    model = tmp_path / 'net.safetensors'
    save_network(LatentNAFCA(**SIZES, steps=4), {'type': 'LatentNAFCA', **SIZES, 'steps': 4}, model)
    result = run('restore', photograph, '--model', model, '--animate', tmp_path / 'way.gif')
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / 'way.gif') as animation:
        assert animation.n_frames == 5  # 0 to 4
    other = tmp_path / 'other.safetensors'
    sizes = {'width': 4, 'enc_blk_nums': [1], 'dec_blk_nums': [1]}
    save_network(NAFNet(**sizes), {'type': 'NAFNet', **sizes}, other)
    result = run('restore', photograph, '--model', other, '--animate', tmp_path / 'a.gif', '-o', tmp_path / 'a.png')
    assert_fails(result, 'steps: NAFNet has no automaton')


def test_folders_go_on_after_a_broken_file(run, photograph, model, tmp_path):
    folder, out = tmp_path / 'folder', tmp_path / 'out'
    folder.mkdir()
    for name in ('a.png', 'c.png'):
        (folder / name).write_bytes(photograph.read_bytes())
    (folder / 'b.png').write_bytes(photograph.read_bytes()[:500])
    (folder / 'notes.txt').write_text('not a photograph')
    result = run('restore', folder, photograph, '--model', model, '--steps', 1, '-o', out)
    assert_fails(result, '1 of 4 photographs could not be restored')
    assert 'b.png: not a readable image' in result.stderr
    assert sorted(path.name for path in out.iterdir()) == ['a.png', 'c.png', 'photo.png']


def test_a_second_run_over_a_folder_leaves_out_what_the_first_restored(run, photograph, model, tmp_path):
    folder = tmp_path / 'folder'
    folder.mkdir()
    (folder / 'a.png').write_bytes(photograph.read_bytes())
    for _ in range(2):
        assert run('restore', folder, '--model', model, '--steps', 1, '--overwrite').returncode == 0
        assert sorted(path.name for path in folder.iterdir()) == ['a.png', 'a_restored.png']
    # And in its own place, if that is what is asked for.
    restored = (folder / 'a_restored.png').read_bytes()
    assert_fails(run('restore', folder / 'a.png', '--model', model, '--steps', 1, '-o', folder / 'a.png'), 'exists')
    result = run('restore', folder / 'a.png', '--model', model, '--steps', 1, '-o', folder / 'a.png', '--overwrite')
    assert result.returncode == 0, result.stderr
    assert (folder / 'a.png').read_bytes() == restored


def test_nothing_is_written_over_what_is_to_be_restored(run, photograph, model, tmp_path):
    other = tmp_path / 'photo_restored.png'
    other.write_bytes(photograph.read_bytes())
    link = tmp_path / 'link.png'
    link.symlink_to(photograph)
    into = ['--model', model, '--overwrite', '-o', tmp_path / 'out.png']
    (tmp_path / 'file').write_text('')
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for arguments, message in [
        ([photograph, other, '--model', model, '--overwrite'], 'photo_restored.png: is itself to be restored'),
        ([photograph, *into, '--side-by-side', photograph], 'photo.png: is itself to be restored'),
        ([photograph, *into, '--animate', link], 'link.png: is itself to be restored'),
        ([photograph, *into, '--animate', tmp_path / 'out.png'], 'out.png: would be written twice'),
        (
            [photograph, *into, '--side-by-side', tmp_path / 'a.png', '--animate', tmp_path / 'a.png'],
            'would be written twice',
        ),
        ([photograph, '--overwrite', '-o', tmp_path / 'file' / 'a.png'], 'file is not a folder'),
        ([photograph, other, '--overwrite', '-o', tmp_path / 'file'], 'file is not a folder'),
    ]:
        assert_fails(run('restore', *arguments), message)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_what_is_wrong_is_said_before_anything_is_done(run, photograph, model, tmp_path):
    other = tmp_path / 'other' / 'photo.png'
    other.parent.mkdir()
    other.write_bytes(photograph.read_bytes())
    before = sorted(tmp_path.rglob('*'))
    for arguments, message in [
        ([photograph, '--model', 'denoize'], 'no such file or bundled model. Did you mean denoise?'),
        ([photograph, other, '-o', tmp_path / 'out'], 'would be written twice'),
        ([photograph, '-o', tmp_path / 'a.bmp'], 'cannot write .bmp'),
        ([photograph, '--animate', tmp_path / 'a.avi'], '--animate'),
        ([photograph, other, '--side-by-side', tmp_path / 'a.png'], 'one photograph at a time'),
        ([tmp_path / 'models'], 'contains no photographs'),
        ([photograph, '--model', model, '--tile', 0], 'tile: must be a multiple of 8'),
        ([photograph, '--model', model, '--steps', -1], 'steps: must be ascending whole numbers from 0'),
        (
            [photograph, '--model', model, '--animate', tmp_path / 'a.gif', '--animate-steps', -1],
            'ascending whole numbers from 0',
        ),
        ([photograph, '--model', model, '--animate-steps', 1], '--animate-steps: needs --animate'),
        ([photograph, '--model', model, '--device', 'coda'], 'device coda: cannot be used here'),
        ([tmp_path / 'missing.png', '--model', model], 'missing.png: cannot be read'),
    ]:
        assert_fails(run('restore', *arguments), message)
    assert sorted(tmp_path.rglob('*')) == before


def test_export_to_a_file_that_restore_takes(run, photograph, model, tmp_path):
    target = tmp_path / 'mine.safetensors'
    result = run_afresh('export', model, '-o', target)
    assert result.returncode == 0, result.stderr
    assert load_network(target).options['latent_channels'] == SIZES['latent_channels']
    assert run('restore', photograph, '--model', target, '--steps', 1).returncode == 0
    assert_fails(run('export', model, '-o', target), 'exists')
    assert run('export', model, '-o', target, '--overwrite', '--steps', 3).returncode == 0
    assert load_network(target).network.steps == 3
    assert_fails(run('export', model, '-o', target, '--overwrite', '--steps', 0), '--steps: must be at least 1, got 0')
    assert_fails(run('export', model, '-o', tmp_path / 'mine.h5'), 'must end in .onnx or .pt2 or .safetensors')
    assert_fails(run('export', model, '-o', tmp_path / 'mine.pt2', '--steps', 'input'), 'only for .onnx')
    assert_fails(run('export', model, '-o', target / 'mine.pt2'), 'mine.safetensors: File exists')


@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
def test_export_for_other_programs(run, model, tmp_path, suffix):
    result = run('export', model, '-o', tmp_path / f'mine{suffix}', '--steps', 2)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / f'mine{suffix}').stat().st_size > 1000


def test_names_that_are_no_utf_8(tmp_path, model, monkeypatch):
    """Such names are found in old folders; neither OpenCV nor an ASCII terminal can handle them."""
    folder = tmp_path / 'in'
    folder.mkdir()
    names = (b'caf\xe9.png', b'b.png')
    data = cv2.imencode('.png', np.full((9, 7, 3), 90, np.uint8))[1].tobytes()
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), 'wb') as file:
            file.write(data)
    (folder / '._b.png').write_bytes(b'what a file manager leaves')
    monkeypatch.setenv('PYTHONIOENCODING', 'ascii')
    result = run_afresh('restore', folder, '-o', tmp_path / 'out', '--model', model)
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(os.fsencode(tmp_path / 'out'))) == sorted(names)
