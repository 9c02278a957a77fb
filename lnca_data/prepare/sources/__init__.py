"""Public datasets that can be packed, one module each: which files form pairs, and the scene of each pair."""

from lnca_data.prepare.dataset_source import DatasetSource
from lnca_data.prepare.sources import celeba, cifar10, gopro, pairs, photos, realblur, renoir, sid, tinyimagenet

SOURCES: dict[str, DatasetSource] = {
    module.SOURCE.name: module.SOURCE
    for module in (photos, gopro, realblur, sid, renoir, celeba, cifar10, tinyimagenet, pairs)
}
