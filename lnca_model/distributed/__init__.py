"""Data-parallel training: each rank computes gradients on its own images, and all ranks apply the mean gradient.

Without a launcher there is one rank, and the collectives return at once.
"""

from lnca_model.distributed.collectives import (
    all_gather,
    all_reduce_gradients,
    all_reduce_mean,
    any_rank,
    barrier,
    broadcast,
    broadcast_from_rank0,
    gather,
    mean_over_ranks,
    rank,
    shard_range,
    world_size,
)
from lnca_model.distributed.launch import init_process_group, join_ranks

__all__ = [
    'all_gather',
    'all_reduce_gradients',
    'all_reduce_mean',
    'any_rank',
    'barrier',
    'broadcast',
    'broadcast_from_rank0',
    'gather',
    'init_process_group',
    'join_ranks',
    'mean_over_ranks',
    'rank',
    'shard_range',
    'world_size',
]
