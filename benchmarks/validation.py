"""Validation in batches against BasicSR's one image at a time: ``python benchmarks/validation.py``."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, medians, random_pairs, report

import lnca_model  # noqa: F401  registers the plug-in
from lnca_model.evaluation.evaluator import Evaluator

from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model

# Name, model and the ending of its metrics' names.
COMPARED = (('one at a time', 'SRModel', ''), ('in batches', 'RestorationModel', '_batch'))


def main() -> None:
    parser = argument_parser(__doc__, repeats=3)
    parser.add_argument('--network', default='LatentNAFCA', help='a network of the plug-in')
    parser.add_argument('--tiles', type=int, default=1000, help='pairs of 32×32 tiles')
    parser.add_argument('--batch', type=int, default=64, help='val.batch_size')
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        loader = _loader(Path(folder), arguments.tiles)
        weights = Path(folder) / 'network.pth'
        networks = {}
        for name, model_type, suffix in COMPARED:
            options = _options(model_type, arguments.network, folder, arguments.batch, suffix)
            if weights.exists():
                options['path']['pretrain_network_g'] = str(weights)
            networks[name] = build_model(options)
            torch.save({'params': networks[name].net_g.state_dict()}, weights)
        seconds = medians(
            {
                'one at a time': lambda: networks['one at a time'].validation(loader, 'benchmark', None),
                'in batches': lambda: Evaluator(networks['in batches'], [loader], options).evaluate_all('benchmark'),
            },
            arguments.repeats,
        )
    one, batches = seconds.values()
    figures: dict[str, Any] = {f'{name}, s': value for name, value in seconds.items()}
    report({'tiles': arguments.tiles, **figures, 'times faster': one / batches}, arguments.json)


def _loader(folder: Path, tiles: int) -> Any:
    options = {'name': 'tiles', 'type': 'TileDataset', 'phase': 'val', **random_pairs(folder, tiles)}
    return build_dataloader(build_dataset(options), options)


def _options(model_type: str, network: str, folder: str, batch: int, suffix: str) -> dict[str, Any]:
    metrics = {name: {'type': f'calculate_{name}{suffix}', 'crop_border': 0} for name in ('psnr', 'ssim')}
    return {
        'name': 'benchmark',
        'model_type': model_type,
        'num_gpu': 0,
        'dist': False,
        'is_train': False,
        'network_g': {'type': network},
        'path': {'log': folder, 'visualization': folder},
        'val': {'metrics': metrics, 'batch_size': batch},
    }


if __name__ == '__main__':
    main()
