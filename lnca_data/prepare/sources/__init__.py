"""The datasets that can be packed: a short module each, which says which files pair up and which scene they are of."""

from lnca_data.prepare.dataset_source import DatasetSource
from lnca_data.prepare.sources import celeba, cifar10, gopro, pairs, photos, realblur, renoir, sid, tinyimagenet

SOURCES: dict[str, DatasetSource] = {
    module.SOURCE.name: module.SOURCE
    for module in (photos, gopro, realblur, sid, renoir, celeba, cifar10, tinyimagenet, pairs)
}
