"""Scoring a trained network."""

from pathlib import Path
from typing import Any

import torch

from lnca_model import distributed
from lnca_model.evaluation.evaluator import Evaluator

from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils import get_env_info, get_root_logger, get_time_str, make_exp_dirs
from basicsr.utils.options import dict2str


def test(opt: dict[str, Any]) -> None:
    """Score a network on all datasets of the options, and save the restored images.

    Args:
        opt: options from :func:`lnca_model.config.checks.load_options`.
    """
    torch.backends.cudnn.benchmark = True
    make_exp_dirs(opt)
    distributed.barrier()
    log_file = Path(opt['path']['log']) / f'test_{opt["name"]}_{get_time_str()}.log'
    logger = get_root_logger(log_file=str(log_file))
    logger.info(get_env_info())
    logger.info(dict2str(opt))
    loaders = []
    for _, dataset_opt in sorted(opt['datasets'].items()):
        dataset = build_dataset(dataset_opt)
        loaders.append(
            build_dataloader(dataset, dataset_opt, num_gpu=opt['num_gpu'], dist=opt['dist'], seed=opt['manual_seed'])
        )
        logger.info(f'Number of test images in {dataset_opt["name"]}: {len(dataset)}')
    Evaluator(build_model(opt), loaders, opt).evaluate_all(opt['name'])
