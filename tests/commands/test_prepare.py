"""``python datasets/prepare.py photos``, run as users do."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

import lnca_data  # noqa: F401  first: it mends what keeps BasicSR from being imported

from basicsr.data import build_dataset

COMMAND = Path(__file__).resolve().parents[2] / 'datasets' / 'prepare.py'
TRAINING = {'astronaut', 'coffee', 'rocket', 'retina', 'hubble_deep_field', 'motorcycle_left', 'motorcycle_right'}


def prepare(*arguments, cwd):
    return subprocess.run(
        [sys.executable, COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('prepare')
    return folder / 'photos', prepare('photos', '--output', 'photos', cwd=folder)


@pytest.fixture(scope='module')
def packed(run):
    output, result = run
    assert result.returncode == 0, result.stderr
    return output


def keys(lmdb):
    return [line.split('.')[0] for line in (lmdb / 'meta_info.txt').read_text().splitlines()]


def photographs(lmdb):
    return {key.rsplit('_', 3)[0] for key in keys(lmdb)}


def test_says_what_it_did(packed, run):
    line = run[1].stdout.strip()
    tiles = json.loads((packed / 'summary.json').read_text())['tiles']
    assert f'{tiles["train"]} train, {tiles["val"]} val, {tiles["test"]} test tiles' in line
    assert 'contact_sheet.png' in line
    assert '\n' not in line
    assert list(packed.parent.iterdir()) == [packed]


def test_split_by_photograph(packed):
    assert photographs(packed / 'train_gt.lmdb') == TRAINING
    assert photographs(packed / 'val_gt.lmdb') == TRAINING
    assert photographs(packed / 'test_gt.lmdb') == {'chelsea'}


def test_same_keys_in_gt_and_lq(packed):
    for split in ('val', 'test'):
        gt, lq = (keys(packed / f'{split}_{side}.lmdb') for side in ('gt', 'lq'))
        assert gt == lq
        assert len(set(gt)) == len(gt)
    assert not (packed / 'train_lq.lmdb').exists()
    assert not set(keys(packed / 'train_gt.lmdb')) & set(keys(packed / 'val_gt.lmdb'))


def test_summary(packed):
    summary = json.loads((packed / 'summary.json').read_text())
    assert summary['photographs'] == dict.fromkeys(TRAINING, 'train') | {'chelsea': 'test'}
    assert summary['tiles'] == {split: len(keys(packed / f'{split}_gt.lmdb')) for split in ('train', 'val', 'test')}
    assert min(summary['tiles'].values()) > 100
    assert summary['dropped'].keys() == {'flat', 'near-duplicate'}
    assert summary['options']['corruption'] == {'type': 'noise'}
    assert len(bytes.fromhex(summary['content_hash'])) == 32


def test_contact_sheet(packed):
    sheet = cv2.imread(str(packed / 'contact_sheet.png'))
    height, width, _ = sheet.shape
    # Twenty pairs of tiles of 32 pixels, enlarged four times: two groups of columns of ten rows.
    assert height > 10 * 128
    assert width > 4 * 128


@pytest.mark.parametrize('split', ['val', 'test'])
def test_basicsr_reads_the_pairs(packed, split):
    dataset = build_dataset(
        {
            'name': split,
            'type': 'PairedImageDataset',
            'phase': 'val',
            'scale': 1,
            'io_backend': {'type': 'lmdb'},
            'dataroot_gt': str(packed / f'{split}_gt.lmdb'),
            'dataroot_lq': str(packed / f'{split}_lq.lmdb'),
        }
    )
    assert len(dataset) == len(keys(packed / f'{split}_gt.lmdb'))
    changed = []
    for index in range(len(dataset)):
        item = dataset[index]
        assert item['gt_path'] == item['lq_path']
        assert item['gt'].shape == item['lq'].shape == (3, 32, 32)
        changed.append((item['gt'] != item['lq']).any(0).float().mean().item())
    # Half of the pixels are hit; on black and white ones it often cannot be seen.
    assert min(changed) > 0.2
    assert max(changed) < 0.6
    assert sum(changed) / len(changed) == pytest.approx(0.5, abs=0.05)


def test_existing_output_is_refused(tmp_path):
    output = tmp_path / 'photos'
    output.mkdir()
    (output / 'mine').write_text('precious')
    result = prepare('photos', '--output', output, cwd=tmp_path)
    assert result.returncode != 0
    (line,) = result.stderr.splitlines()
    assert line.startswith('error: ')
    assert str(output) in line
    assert '--overwrite' in line
    assert not result.stdout
    assert list(tmp_path.iterdir()) == [output]
    assert [file.name for file in output.iterdir()] == ['mine']
    assert (output / 'mine').read_text() == 'precious'
