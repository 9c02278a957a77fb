"""Who goes where: 80 % train and 20 % test, then 20 % of train for validation (paper section 4.2), drawn by a seed.

The draw is a hash of seed and name, so that it is the same on every machine and does not depend on order.
"""

import hashlib
from collections.abc import Iterable, Sequence

from lnca_data.prepare.dataset_source import Pair
from lnca_utils.errors import DataError

SPLITS = ('train', 'val', 'test')
METHODS = ('scene', 'tile', 'official')
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.2  # of what is not test


def draw(seed: int, name: str) -> int:
    """A number of 63 bits that looks random."""
    return int.from_bytes(hashlib.sha256(f'{seed}/{name}'.encode()).digest()[:8], 'big') >> 1


def split_of_tile(seed: int, key: str) -> str:
    """Train, val or test, whatever else is of the same scene: how the paper's reference splits, which leaks."""
    share = draw(seed, f'split/{key}') / 2**63
    if share < TEST_SHARE:
        return 'test'
    return 'val' if share < TEST_SHARE + (1 - TEST_SHARE) * VALIDATION_SHARE else 'train'


def split_scenes(pairs: Sequence[Pair], seed: int) -> dict[str, str]:
    """Scene → train, val or test.

    Raises:
        DataError: there are fewer than three scenes.
    """
    scenes = _shuffled({pair.scene for pair in pairs}, seed)
    if len(scenes) < 3:
        raise DataError(
            f'{len(scenes)} scenes cannot be divided into train, val and test; use --split tile, which divides each'
        )
    test = max(1, round(TEST_SHARE * len(scenes)))
    val = max(1, round(VALIDATION_SHARE * (len(scenes) - test)))
    return {
        scene: 'test' if place < test else 'val' if place < test + val else 'train'
        for place, scene in enumerate(scenes)
    }


def split_pairs(pairs: Sequence[Pair], method: str, seed: int) -> list[str | None]:
    """The split of each pair, or None where each of its tiles has its own.

    Args:
        pairs: all pairs.
        method: ``scene``: no scene on two sides; ``tile``: each tile by itself; ``official``: where the authors put
            it, with a fifth of their training scenes for validation if they have none.
        seed: of the draw.

    Raises:
        DataError: there is no official split, or there are too few scenes.
    """
    if method == 'tile':
        return [None] * len(pairs)
    if method == 'scene':
        scenes = split_scenes(pairs, seed)
        return [scenes[pair.scene] for pair in pairs]
    without = next((pair for pair in pairs if pair.split not in SPLITS), None)
    if without:
        raise DataError(f'{without.gt.path}: the authors do not say which split it is of; use --split scene')
    if any(pair.split == 'val' for pair in pairs):
        return [pair.split for pair in pairs]
    training = _shuffled({pair.scene for pair in pairs if pair.split == 'train'}, seed)
    if len(training) < 2:
        raise DataError(f'{len(training)} scenes of the authors cannot be divided into train and val; use --split tile')
    val = set(training[: max(1, round(VALIDATION_SHARE * len(training)))])
    return ['val' if pair.split == 'train' and pair.scene in val else pair.split for pair in pairs]


def _shuffled(scenes: Iterable[str], seed: int) -> list[str]:
    return sorted(scenes, key=lambda scene: draw(seed, f'scene/{scene}'))
