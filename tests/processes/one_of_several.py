"""Train on fixed batches, as one process or as a rank of several: ``python one_of_several.py FOLDER``.

FOLDER holds ``options.yml`` and receives ``RANK_of_WORLD_SIZE.pt``: the gradients of each optimizer step, and the final
network. All random draws are independent of the world size: images, negatives, noise and indices into the pool.
"""

import os
import sys
from pathlib import Path
from unittest import mock

import torch
import yaml

import lnca_model.models.lnca_model
from lnca_model import distributed

from basicsr.utils.registry import MODEL_REGISTRY

BATCH, SHARES = 8, 2  # a rank has at least BATCH / SHARES images
SHARE = BATCH // SHARES


def in_each_share(choose):
    """Return the indices that ``choose`` draws in a share, for each share of this rank."""
    shares = torch.arange(SHARES).chunk(distributed.world_size())[distributed.rank()]
    return torch.cat([choose() + SHARE * index for index in range(len(shares))])


def place_in_pool(places, share):
    """Return the index in the pool, which is filled batch by batch, of an index in a share."""
    shares = SHARES // distributed.world_size()
    return places // SHARE * SHARE * shares + share * SHARE + places % SHARE


def draw_from_pool(in_pool):
    shares = SHARES // distributed.world_size()
    places = torch.arange(in_pool // shares).flip(0)[:SHARE]
    return torch.cat([place_in_pool(places, share) for share in range(shares)])


def own_rows(like):
    """Return noise for the images of this rank."""
    noise = torch.randn(BATCH, *like.shape[1:], generator=torch.Generator().manual_seed(1))
    return noise.chunk(distributed.world_size())[distributed.rank()]


def main(folder: Path) -> None:
    # In single precision, rounding can move a value across a kink of a loss.
    torch.set_default_dtype(torch.float64)
    options = yaml.safe_load((folder / 'options.yml').read_text())
    torch.manual_seed(distributed.rank())  # all ranks begin with the weights of rank 0
    model = MODEL_REGISTRY.get(options['model_type'])(options)
    gradients = []
    for optimizer in model.optimizers:
        optimizer.register_step_pre_hook(
            lambda optimizer, *_: gradients.append(
                [parameter.grad.clone() for group in optimizer.param_groups for parameter in group['params']]
            )
        )
    draws = torch.Generator().manual_seed(0)
    for iteration in range(1, options['train']['total_iter'] + 1):
        gt = torch.rand(BATCH, 3, 16, 16, generator=draws)
        lq = (gt + 0.2 * torch.randn(gt.shape, generator=draws)).clamp(0, 1)
        chunks, rank = distributed.world_size(), distributed.rank()
        own = {name: images.chunk(chunks)[rank] for name, images in (('gt', gt), ('lq', lq))}
        model.update_learning_rate(iteration)
        model.feed_data(own)
        with (
            mock.patch.object(
                lnca_model.models.lnca_model,
                'derangement',
                lambda _: in_each_share(lambda: torch.arange(SHARE).roll(1)),
            ),
            mock.patch.object(torch, 'randn_like', own_rows),
            mock.patch.object(torch, 'randperm', draw_from_pool),
        ):
            model.optimize_parameters(iteration)
    losses = {name: value for name, value in model.log_dict.items() if name.startswith('l_')}
    torch.save(
        {'gradients': gradients, 'network': model.network.state_dict(), 'log': losses},
        folder / f'{distributed.rank()}_of_{distributed.world_size()}.pt',
    )


if __name__ == '__main__':
    if 'RANK' in os.environ:
        distributed.init_process_group('pytorch', gpus=0)
    main(Path(sys.argv[1]))
