"""Generate the option files of this folder: ``python options/generate.py``."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lnca_utils.atomic import atomic_file

HERE = Path(__file__).resolve().parent
TEMPLATE = 'option_file.yml.jinja'
EPOCHS = 20  # per phase (paper, section 4.2)
BATCH_SIZE = 32

# Dataset → title, its name for prepare.py, number of training tiles, and how that number comes about.
REAL = {
    'gopro': ('GoPro, deblurring', 'gopro', 102_848, '64 % of 3,214 frames of 50 tiles, before cleaning'),
    'realblur': (
        'RealBlur (J), deblurring',
        'realblur',
        90_969,
        '64 % of 4,738 photographs of about 30 tiles, before cleaning',
    ),
    'sid': (
        'SID (Sony), denoising',
        'sid',
        1_253_134,
        '64 % of 2,697 short exposures of 726 tiles, before cleaning',
    ),
    'renoir': (
        'Renoir, denoising',
        'renoir',
        124_723,
        '64 % of 120 scenes of three cameras, two noisy photographs each, tiles of 128 pixels, before cleaning',
    ),
}
# Dataset → title, number of images, and number of training tiles.
SYNTHETIC = {
    'celeba': ('CelebA', 202_599, 129_663),
    'cifar10': ('CIFAR-10', 60_000, 38_400),
    'tinyimagenet': ('TinyImageNet', 120_000, 76_800),
}
TASKS = {'noise': ('denoise', 'denoising'), 'blur': ('deblur', 'deblurring')}
# Iterations of the phases on the photographs of scikit-image.
PHOTOS = {False: {'autoencoder': 4800, 'automaton': 2400}, True: {'autoencoder': 600, 'automaton': 600, 'joint': 1200}}


def generate() -> dict[str, str]:
    """Return the content of each option file by its name."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template(TEMPLATE)
    return {f'{task["name"]}.yml': template.render(task) for task in _tasks()}


def _tasks() -> Iterator[dict[str, Any]]:
    """Yield the variables of the template for each option file."""
    for plus in (False, True):
        yield from _photos(plus)
        for dataset, (title, prepare, tiles, derivation) in REAL.items():
            arguments = f'{prepare} --source FOLDER' + (' --cameras Sony' if dataset == 'sid' else '')
            comment = (
                f'Two phases of {EPOCHS} epochs (paper, section 4.2) of {tiles:,} tiles: {derivation}. prepare.py '
                'prints the values for your tiles.'
            )
            yield _task(plus, dataset, dataset, title, arguments, None, tiles, comment)
        for dataset, (title, images, tiles) in SYNTHETIC.items():
            for corruption, (suffix, purpose) in TASKS.items():
                arguments = f'{dataset} --source FOLDER --corruption {corruption}'
                comment = (
                    f'Two phases of {EPOCHS} epochs (paper, section 4.2) of {tiles:,} tiles, the training set of '
                    f'{images:,} images.'
                )
                name = f'{dataset}_{suffix}'
                yield _task(plus, name, name, f'{title}, {purpose}', arguments, corruption, tiles, comment)


def _task(
    plus: bool, name: str, folder: str, title: str, prepare: str, corruption: str | None, tiles: int, comment: str
) -> dict[str, Any]:
    epoch = tiles // BATCH_SIZE
    iterations = EPOCHS * epoch
    phases = {'autoencoder': iterations, 'automaton': iterations}
    if plus:
        phases = {'autoencoder': iterations // 2, 'automaton': iterations // 2, 'joint': iterations}
    lines = textwrap.wrap(comment, 118, break_on_hyphens=False)
    return {
        **_variables(plus, name, folder, f'{"LNCA+" if plus else "LatentNAFCA"} on {title}', prepare, phases),
        'photos': False,
        'corruption': corruption,
        'val_freq': epoch,
        'tiles': '\n'.join(f'# {line}' for line in lines),
    }


def _photos(plus: bool) -> Iterator[dict[str, Any]]:
    network = 'LNCA+' if plus else 'LatentNAFCA'
    for corruption in TASKS:
        is_blur = corruption == 'blur'
        title = f"{network} on scikit-image's photographs" + (
            ', deblurring' if is_blur else ': a first training, of minutes, on a computer without a GPU'
        )
        name = 'photos_deblur' if is_blur else 'photos'
        prepare = 'photos --corruption blur' if is_blur else 'photos'
        yield {
            **_variables(plus, name, f'photos_{corruption}', title, prepare, PHOTOS[plus]),
            'set_name': 'photos_blur' if is_blur else 'photos',
            'photos': True,
            'corruption': corruption,
            'batch_size': 32 if plus else 8,
            'val_freq': 400 if plus else 800,
        }


def _variables(plus: bool, name: str, folder: str, title: str, prepare: str, phases: dict[str, int]) -> dict[str, Any]:
    return {
        'plus': plus,
        'name': f'lnca_plus_{name}' if plus else f'lnca_{name}',
        'base': f'lnca_{name}',
        'set_name': name,
        'folder': folder,
        'title': title,
        'prepare': prepare,
        'iters': phases,
        'total': sum(phases.values()),
    }


if __name__ == '__main__':
    for file_name, content in generate().items():
        with atomic_file(HERE / file_name) as temporary:
            temporary.write_text(content, encoding='utf-8')
        print(HERE / file_name)
