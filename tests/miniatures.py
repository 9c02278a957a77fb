"""Datasets of a few small images, each in the very layout and formats in which its authors distribute it."""

import io
import pickle
import re
import struct
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import tifffile

SIZE = (96, 128)
GOPRO = {
    'train': ('GOPR0372_07_00', 'GOPR0372_07_01', 'GOPR0384_11_01', 'GOPR0477_11_00', 'GOPR0871_11_00'),
    'test': ('GOPR0384_11_00', 'GOPR0410_11_00'),
}
REALBLUR = {
    'J': 'RealBlur-J_ECC_IMCORR_centroid_itensity_ref',
    'R': 'RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref',
}
# Camera → black level, suffix and what the lists say of the setting.
SID_CAMERAS = {'Sony': (512, 'ARW', 'ISO200 F8'), 'Fuji': (1024, 'RAF', 'ISO800 F5.6')}
# Split → long exposure → short ones.
SID = {
    'train': {
        '00001_00_10s': ('00001_00_0.04s', '00001_00_0.1s', '00001_01_0.04s'),
        '00002_00_10s': ('00002_00_0.033s',),
        '00042_00_30s': ('00042_00_0.1s',),
    },
    'val': {'20003_00_10s': ('20003_00_0.1s', '20003_01_0.1s')},
    'test': {'10003_00_10s': ('10003_00_0.04s',)},
}
WHITE_LEVEL = 16383
RENOIR = {
    'Mi3': {'Batch_001': ('IMG_20160202_015216', ['IMG_20160202_015247']), 'Batch_002': ('IMG_0004', ['IMG_0005'])},
    'T3i': {'Batch_001': ('IMG_4912', ['IMG_4913', 'IMG_4914']), 'Batch_031': ('IMG_5032', ['IMG_5033'])},
    'S90': {'Batch_001': ('IMG_0101', ['IMG_0102']), 'Batch_010': ('IMG_0110', ['IMG_0111', 'IMG_0112'])},
}
# Batch → what it says of itself.
CIFAR_LABELS = {
    **{f'data_batch_{number}': f'training batch {number} of 5'.encode() for number in range(1, 6)},
    'test_batch': b'testing batch 1 of 1',
}


def photograph(numbers: np.random.Generator, height: int = SIZE[0], width: int = SIZE[1]) -> np.ndarray:
    """Smooth shapes and finer ones upon them: ``(height, width, 3)`` uint8, no part like another and none flat."""
    image = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((4, 1.0), (9, 0.6), (20, 0.4)):
        coarse = numbers.standard_normal((cells, cells, 3), np.float32)
        image += strength * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).round().astype(np.uint8)


def blurred(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), 1.5)


def noisy(image: np.ndarray, numbers: np.random.Generator) -> np.ndarray:
    return np.clip(image + numbers.normal(0, 20, image.shape), 0, 255).astype(np.uint8)


def save(path: Path, image: np.ndarray) -> Path:
    """Write an RGB or grey image in the format of the suffix; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(path.suffix.replace('.JPEG', '.jpg'), image[..., ::-1] if image.ndim == 3 else image)[1]
    path.write_bytes(encoded.tobytes())
    return path


def gopro(folder: Path, frames: int = 2) -> Path:
    numbers = np.random.default_rng(1)
    for split, sequences in GOPRO.items():
        for sequence in sequences:
            for frame in range(47, 47 + frames):
                sharp = photograph(numbers)
                for kind, image in (
                    ('sharp', sharp),
                    ('blur', blurred(sharp)),
                    ('blur_gamma', blurred(blurred(sharp))),
                ):
                    save(folder / split / sequence / kind / f'{frame:06d}.png', image)
    return folder


def realblur(folder: Path, images: int = 2) -> Path:
    numbers = np.random.default_rng(2)
    for variant, place in REALBLUR.items():
        for split, scenes in (('train', (1, 2, 3, 5, 8)), ('test', (4, 9))):
            lines = []
            for scene in scenes:
                for number in range(1, images + 1):
                    gt, blur = (f'{place}/scene{scene:03d}/{side}/{side}_{number}.png' for side in ('gt', 'blur'))
                    sharp = photograph(numbers)
                    save(folder / gt, sharp)
                    save(folder / blur, blurred(sharp))
                    lines.append(f'{gt} {blur}\n')
            (folder / f'RealBlur_{variant}_{split}_list.txt').write_text(''.join(lines))
    return folder


def sid(folder: Path, cameras: Iterable[str] = tuple(SID_CAMERAS)) -> Path:
    numbers = np.random.default_rng(3)
    for camera in cameras:
        black, suffix, setting = SID_CAMERAS[camera]
        for split, exposures in SID.items():
            lines = []
            for long, shorts in exposures.items():
                light = photograph(numbers)[..., 1] / 255 * 0.7
                long_name = f'./{camera}/long/{long}.{suffix}'
                write_raw(folder / long_name, light, black)
                for short in shorts:
                    short_name = f'./{camera}/short/{short}.{suffix}'
                    write_raw(folder / short_name, light * seconds(short) / seconds(long), black)
                    lines.append(f'{short_name} {long_name} {setting}\n')
            (folder / f'{camera}_{split}_list.txt').write_text(''.join(lines))
    return folder


def seconds(stem: str) -> float:
    return float(stem.split('_')[-1].removesuffix('s'))


def write_raw(path: Path, light: np.ndarray, black: int = 512) -> Path:
    """A raw file, of the sensor's values: a DNG, whatever its name ends in.

    Args:
        path: the file; folders are made.
        light: ``(H, W)``, grey, from 0 to 1, the most that the sensor can count. Both sides are even.
        black: what it counts in the dark.
    """
    to_srgb = np.linalg.inv([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    tags = [
        (271, 's', 0, 'Maker'),
        (272, 's', 0, 'Camera'),
        (33421, 'H', 2, (2, 2)),  # the colours of two rows and two columns: RG, GB
        (33422, 'B', 4, b'\x00\x01\x01\x02'),
        (50706, 'B', 4, b'\x01\x04\x00\x00'),  # version
        (50708, 's', 0, 'Maker Camera'),
        (50714, 'H', 1, black),
        (50717, 'H', 1, WHITE_LEVEL),
        (50721, '2i', 9, [part for value in to_srgb.ravel() for part in (round(value * 10000), 10000)]),
        (50728, '2I', 3, [1, 2, 1, 1, 1, 2]),  # what neutral grey looks like to it
        (50778, 'H', 1, 21),  # by daylight
    ]
    red_and_blue_count_half = np.tile([[0.5, 1], [1, 0.5]], (light.shape[0] // 2, light.shape[1] // 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        (black + light * red_and_blue_count_half * (WHITE_LEVEL - black)).round().astype(np.uint16),
        photometric='cfa',
        extratags=[(*tag, True) for tag in tags],
        metadata=None,
        software=False,
    )
    return path


def renoir(folder: Path) -> Path:
    numbers = np.random.default_rng(4)
    for camera, batches in RENOIR.items():
        for batch, (reference, dark) in batches.items():
            place = folder / f'{camera}_Aligned' / batch
            clean = photograph(numbers)
            save(place / f'{reference}Reference.bmp', clean)
            save(place / f'{reference}full.bmp', clean)
            for name in dark:
                save(place / f'{name}Noisy.bmp', noisy(clean, numbers))
    return folder


def celeba(folder: Path, count: int = 60) -> Path:
    numbers = np.random.default_rng(5)
    lines = []
    for number in range(1, count + 1):
        save(folder / 'img_align_celeba' / f'{number:06d}.jpg', photograph(numbers, 218, 178))
        lines.append(f'{number:06d}.jpg {0 if number <= 0.8 * count else 1 if number <= 0.9 * count else 2}\n')
    (folder / 'list_eval_partition.txt').write_text(''.join(lines))
    return folder


def tinyimagenet(folder: Path, count: int = 20) -> Path:
    numbers = np.random.default_rng(6)
    for synset in ('n01443537', 'n01629819', 'n02124075'):
        for number in range(count):
            image = photograph(numbers, 64, 64)
            is_grey = number == 1
            save(folder / f'train/{synset}/images/{synset}_{number}.JPEG', image[..., 1] if is_grey else image)
        (folder / 'train' / synset / f'{synset}_boxes.txt').write_text(f'{synset}_0.JPEG\t0\t10\t63\t58\n')
    for split in ('val', 'test'):
        for number in range(5):
            save(folder / f'{split}/images/{split}_{number}.JPEG', photograph(numbers, 64, 64))
    (folder / 'val' / 'val_annotations.txt').write_text('val_0.JPEG\tn01443537\t0\t32\t44\t62\n')
    return folder


def pairs(folder: Path, names: Iterable[str] = tuple(f'{place}/{number}' for place in 'abcdef' for number in '12')):
    """Pairs of one's own, ``gt/NAME.png`` and ``lq/NAME.jpg``."""
    numbers = np.random.default_rng(7)
    for name in names:
        clean = photograph(numbers)
        save(folder / 'gt' / f'{name}.png', clean)
        save(folder / 'lq' / f'{name}.jpg', noisy(clean, numbers))
    return folder


def cifar_images(count: int = 12) -> dict[str, np.ndarray]:
    """What the miniatures of CIFAR-10 hold: batch → ``(count, 32, 32, 3)`` uint8 RGB."""
    numbers = np.random.default_rng(8)
    return {batch: np.stack([photograph(numbers, 32, 32) for _ in range(count)]) for batch in CIFAR_LABELS}


def cifar10_python(folder: Path, count: int = 12) -> Path:
    place = folder / 'cifar-10-batches-py'
    place.mkdir(parents=True)
    for batch, images in cifar_images(count).items():
        (place / batch).write_bytes(cifar_pickle(images, batch))
    (place / 'batches.meta').write_bytes(
        python2_pickle({b'num_cases_per_batch': count, b'label_names': [b'airplane'], b'num_vis': 3072})
    )
    (place / 'readme.html').write_text('<meta HTTP-EQUIV="REFRESH" content="0; url=http://www.cs.toronto.edu/">')
    return folder


def cifar_pickle(images: np.ndarray, batch: str) -> bytes:
    count = len(images)
    return python2_pickle(
        {
            b'batch_label': CIFAR_LABELS[batch],
            b'labels': [index % 10 for index in range(count)],
            b'data': cifar_rows(images),
            b'filenames': [f'{batch}_s_{index:06d}.png'.encode() for index in range(count)],
        }
    )


def cifar10_binary(folder: Path, count: int = 12) -> Path:
    place = folder / 'cifar-10-batches-bin'
    place.mkdir(parents=True)
    for batch, images in cifar_images(count).items():
        labels = np.arange(count, dtype=np.uint8)[:, None] % 10
        (place / f'{batch}.bin').write_bytes(np.concatenate([labels, cifar_rows(images)], axis=1).tobytes())
    (place / 'batches.meta.txt').write_text('airplane\nautomobile\n')
    return folder


def cifar_rows(images: np.ndarray) -> np.ndarray:
    """``(N, 32, 32, 3)`` → ``(N, 3072)``: red, green, blue, each row by row."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def cifar10_python_archive(folder: Path, count: int = 12) -> Path:
    return _archive(folder, cifar10_python, 'cifar-10-batches-py', 'cifar-10-python.tar.gz', count)


def cifar10_binary_archive(folder: Path, count: int = 12) -> Path:
    return _archive(folder, cifar10_binary, 'cifar-10-batches-bin', 'cifar-10-binary.tar.gz', count)


def _archive(folder: Path, make: Callable[[Path, int], Path], place: str, name: str, count: int) -> Path:
    unpacked = make(folder.with_name(f'{folder.name} unpacked'), count)
    folder.mkdir(parents=True)
    with tarfile.open(folder / name, 'w:gz') as archive:
        archive.add(unpacked / place, place)
    return folder


class _Python2Pickler(pickle._Pickler):
    """Writes text and bytes as the ``str`` of Python 2, which was both."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_text(self, value: str | bytes) -> None:
        data = value.encode('ascii') if isinstance(value, str) else value
        if len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + struct.pack('<B', len(data)) + data)
        else:
            self.write(pickle.BINSTRING + struct.pack('<i', len(data)) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def python2_pickle(value: object) -> bytes:
    """What cPickle of Python 2 and the NumPy of its time wrote, protocol 2."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    data = file.getvalue().replace(b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n')
    # The flags of the dtype were numbers; now they are truth values.
    return re.sub(rb'(U\x02u1q.)\x89\x88', b'\\1K\x00K\x01', data, flags=re.DOTALL)
