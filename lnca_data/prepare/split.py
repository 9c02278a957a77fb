"""Training, validation and test splits: 64, 16 and 20 % (paper section 4.2).

Random draws are hashes of a seed and a name, so that a split depends neither on the machine nor on the order of files.
"""

import hashlib
from collections.abc import Iterable, Sequence

from lnca_data.prepare.dataset_source import Pair
from lnca_utils.errors import DataError

SPLITS = ('train', 'val', 'test')
METHODS = ('scene', 'tile', 'official')
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.2  # of the rest


def draw(seed: int, name: str) -> int:
    """Return a pseudorandom number of 63 bits, derived from a seed and a name."""
    return int.from_bytes(hashlib.sha256(f'{seed}/{name}'.encode()).digest()[:8], 'big') >> 1


def split_of_tile(seed: int, key: str) -> str:
    """Return the split of a tile, regardless of its scene.

    The paper's reference implementation splits this way, which leaks scenes from training to test.
    """
    share = draw(seed, f'split/{key}') / 2**63
    if share < TEST_SHARE:
        return 'test'
    return 'val' if share < TEST_SHARE + (1 - TEST_SHARE) * VALIDATION_SHARE else 'train'


def split_scenes(pairs: Sequence[Pair], seed: int) -> dict[str, str]:
    """Return the split of each scene.

    Raises:
        DataError: if there are fewer than three scenes.
    """
    scenes = _shuffled({pair.scene for pair in pairs}, seed)
    if len(scenes) < 3:
        raise DataError(
            f'--split scene: {len(scenes)} scenes cannot be divided into train, val and test; use --split tile'
        )
    test = max(1, round(TEST_SHARE * len(scenes)))
    val = max(1, round(VALIDATION_SHARE * (len(scenes) - test)))
    return {
        scene: 'test' if rank < test else 'val' if rank < test + val else 'train' for rank, scene in enumerate(scenes)
    }


def split_pairs(pairs: Sequence[Pair], method: str, seed: int) -> list[str | None]:
    """Return the split of each pair; None if its tiles are split one by one.

    Args:
        pairs: all pairs.
        method: ``scene`` keeps scenes together; ``tile`` splits tiles regardless of scenes; ``official`` is the
            authors' split, with a fifth of the training scenes for validation if they define none.
        seed: seed of the split.

    Raises:
        DataError: if the authors define no split, or there are too few scenes.
    """
    if method == 'tile':
        return [None] * len(pairs)
    if method == 'scene':
        scenes = split_scenes(pairs, seed)
        return [scenes[pair.scene] for pair in pairs]
    unassigned = next((pair for pair in pairs if pair.split not in SPLITS), None)
    if unassigned:
        raise DataError(f'{unassigned.gt.path}: the authors do not say which split it is of; use --split scene')
    if any(pair.split == 'val' for pair in pairs):
        return [pair.split for pair in pairs]
    training = _shuffled({pair.scene for pair in pairs if pair.split == 'train'}, seed)
    if len(training) < 2:
        raise DataError(
            f'--split official: {len(training)} training scenes cannot be divided into train and val; use --split tile'
        )
    val = set(training[: max(1, round(VALIDATION_SHARE * len(training)))])
    return ['val' if pair.split == 'train' and pair.scene in val else pair.split for pair in pairs]


def _shuffled(scenes: Iterable[str], seed: int) -> list[str]:
    return sorted(scenes, key=lambda scene: draw(seed, f'scene/{scene}'))
