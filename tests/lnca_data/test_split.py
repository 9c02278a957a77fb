"""Splits: their shares, no scene in two splits, and reproducibility."""

import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from lnca_data.io.images import ImageFile
from lnca_data.prepare.dataset_source import Pair
from lnca_data.prepare.split import SPLITS, draw, split_of_tile, split_pairs, split_scenes
from lnca_utils.errors import LNCAError


def pairs_of(scenes, each=1, split=None):
    return [
        Pair(f'{scene}_{number}', scene, ImageFile(f'{scene}_{number}.png'), split=split)
        for scene in scenes
        for number in range(each)
    ]


def names(count, prefix='scene'):
    return [f'{prefix}_{index}' for index in range(count)]


def refusal(*arguments):
    with pytest.raises(LNCAError) as caught:
        split_pairs(*arguments)
    message = str(caught.value)
    assert '\n' not in message
    return message


def test_shares_of_scenes():
    pairs = pairs_of(names(1000), each=3)
    assert Counter(split_pairs(pairs, 'scene', 0)) == {'train': 3 * 640, 'val': 3 * 160, 'test': 3 * 200}


@pytest.mark.parametrize(('count', 'train', 'val', 'test'), [(3, 1, 1, 1), (5, 3, 1, 1), (10, 6, 2, 2), (33, 21, 5, 7)])
def test_few_scenes(count, train, val, test):
    splits = split_scenes(pairs_of(names(count)), 0)
    assert Counter(splits.values()) == {'train': train, 'val': val, 'test': test}


def test_no_scene_is_on_two_sides():
    pairs = pairs_of(names(40), each=5)
    sides = {(pair.scene, split) for pair, split in zip(pairs, split_pairs(pairs, 'scene', 0), strict=True)}
    assert len(sides) == 40


def test_shares_of_tiles():
    assert split_pairs(pairs_of(names(5)), 'tile', 0) == [None] * 5
    count = Counter(split_of_tile(0, key) for key in names(20_000, 'tile'))
    assert [count[split] / 20_000 for split in SPLITS] == pytest.approx([0.64, 0.16, 0.2], abs=0.01)


def test_order_does_not_matter():
    pairs = pairs_of(names(40), each=2)
    expected = dict(zip(pairs, split_pairs(pairs, 'scene', 0), strict=True))
    random.shuffle(pairs)
    assert dict(zip(pairs, split_pairs(pairs, 'scene', 0), strict=True)) == expected


def test_the_seed_matters():
    pairs, keys = pairs_of(names(40)), names(100, 'tile')
    assert len({tuple(split_pairs(pairs, 'scene', seed)) for seed in range(5)}) == 5
    assert len({tuple(split_of_tile(seed, key) for key in keys) for seed in range(5)}) == 5


def test_same_on_every_machine():
    # Half of `printf 0/scene/scene_0 | sha256sum`.
    assert draw(0, 'scene/scene_0') == 0x4E1FE22DF29E9ECF >> 1
    splits = split_scenes(pairs_of(names(10)), 0)
    assert splits == dict.fromkeys(names(10), 'train') | {
        'scene_3': 'test',
        'scene_0': 'test',
        'scene_9': 'val',
        'scene_6': 'val',
    }
    tiles = {split_of_tile(0, key): key for key in ('tile_2', 'tile_3', 'tile_14')}
    assert tiles == {'train': 'tile_2', 'val': 'tile_3', 'test': 'tile_14'}


def test_same_in_another_process():
    program = (
        'from lnca_data.io.images import ImageFile; from lnca_data.prepare.dataset_source import Pair\n'
        'from lnca_data.prepare.split import *\n'
        'pairs = [Pair(f"scene_{i}_0", f"scene_{i}", ImageFile("")) for i in range(40)]\n'
        'print(*split_pairs(pairs, "scene", 3), *(split_of_tile(3, f"tile_{i}") for i in range(40)))'
    )
    seed = '1' if os.environ.get('PYTHONHASHSEED') == '2' else '2'
    child = subprocess.run(
        [sys.executable, '-c', program],
        env={**os.environ, 'PYTHONHASHSEED': seed},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    scenes = split_pairs(pairs_of(names(40)), 'scene', 3)
    assert child.stdout.split() == [*scenes, *(split_of_tile(3, key) for key in names(40, 'tile'))]


def test_official_with_validation():
    pairs = [pair for split in SPLITS for pair in pairs_of(names(4), split=split)]
    for seed in range(3):
        assert split_pairs(pairs, 'official', seed) == [pair.split for pair in pairs]


def test_official_without_validation():
    pairs = pairs_of(names(20, 'training'), 2, 'train') + pairs_of(names(7, 'testing'), 2, 'test')
    splits = split_pairs(pairs, 'official', 0)
    assert Counter(splits) == {'train': 32, 'val': 8, 'test': 14}
    assert all((split == 'test') == (pair.split == 'test') for pair, split in zip(pairs, splits, strict=True))
    sides = {(pair.scene, split) for pair, split in zip(pairs, splits, strict=True)}
    assert len(sides) == 27
    assert splits != split_pairs(pairs, 'official', 1)
    assert Counter(split_pairs(pairs[-18:], 'official', 0)) == {'train': 2, 'val': 2, 'test': 14}


@pytest.mark.parametrize('split', [None, 'validation'])
def test_no_official_split(split):
    pairs = [*pairs_of(['first'], split='train'), *pairs_of(['second'], split=split)]
    assert refusal(pairs, 'official', 0).startswith('second_0.png: the authors do not say')


def test_too_few_scenes():
    assert refusal(pairs_of(names(2), each=9), 'scene', 0).startswith('--split scene: 2 scenes cannot be divided')


def test_official_training_of_one_scene():
    pairs = pairs_of(['only'], 4, 'train') + pairs_of(['other'], 1, 'test')
    assert 'scene' in refusal(pairs, 'official', 0)
