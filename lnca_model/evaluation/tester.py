"""Scoring a trained network."""

from typing import Any

import torch

from lnca_model import distributed
from lnca_model.evaluation.evaluator import Evaluator
from lnca_model.training.progress import start_log

from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils import make_exp_dirs


def test(opt: dict[str, Any]) -> None:
    """Score a network on all datasets of the options, and save the restored images.

    Args:
        opt: options from :func:`lnca_model.config.checks.load_options`.
    """
    torch.backends.cudnn.benchmark = True
    make_exp_dirs(opt)
    distributed.barrier()
    logger = start_log(opt, 'test')
    loaders = []
    for _, dataset_opt in sorted(opt['datasets'].items()):
        dataset = build_dataset(dataset_opt)
        loaders.append(
            build_dataloader(dataset, dataset_opt, num_gpu=opt['num_gpu'], dist=opt['dist'], seed=opt['manual_seed'])
        )
        logger.info(f'Number of test images in {dataset_opt["name"]}: {len(dataset)}')
    Evaluator(build_model(opt), loaders, opt).evaluate_all(opt['name'])
