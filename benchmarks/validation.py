"""Batched validation compared with BasicSR's, one image at a time: ``python benchmarks/validation.py``."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, medians, random_pairs, report

import lnca_model  # noqa: F401  registers the plug-in
from lnca_model.evaluation.evaluator import Evaluator

from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model


def main() -> None:
    parser = argument_parser(__doc__, repeats=3)
    parser.add_argument('--network', default='LatentNAFCA', help='a network of the plug-in')
    parser.add_argument('--tiles', type=int, default=1000, help='pairs of 32×32 tiles')
    parser.add_argument('--batch', type=int, default=64, help='val.batch_size')
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        dataset = {'name': 'tiles', 'type': 'TileDataset', 'phase': 'val'}
        dataset |= random_pairs(Path(folder), arguments.tiles)
        loader = build_dataloader(build_dataset(dataset), dataset)
        single_model = build_model(_options('SRModel', arguments.network, folder, arguments.batch, ''))
        weights = Path(folder) / 'network.pth'
        torch.save({'params': single_model.net_g.state_dict()}, weights)
        options = _options('RestorationModel', arguments.network, folder, arguments.batch, '_batch')
        options['path']['pretrain_network_g'] = str(weights)
        batch_model = build_model(options)
        seconds = medians(
            {
                'one at a time': lambda: single_model.validation(loader, 'benchmark', None),
                'in batches': lambda: Evaluator(batch_model, [loader], options).evaluate_all('benchmark'),
            },
            arguments.repeats,
        )
    figures: dict[str, Any] = {f'{name}, s': value for name, value in seconds.items()}
    ratio = seconds['one at a time'] / seconds['in batches']
    report({'tiles': arguments.tiles, **figures, 'times faster': ratio}, arguments.json)


def _options(model_type: str, network: str, folder: str, batch: int, metric_suffix: str) -> dict[str, Any]:
    metrics = {name: {'type': f'calculate_{name}{metric_suffix}', 'crop_border': 0} for name in ('psnr', 'ssim')}
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
