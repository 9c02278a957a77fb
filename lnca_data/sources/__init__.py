"""The datasets that can be packed: a short module each, which says which files pair up and which scene they are of."""

from lnca_data.source import Source
from lnca_data.sources import celeba, cifar10, gopro, pairs, photos, realblur, renoir, sid, tinyimagenet

SOURCES: dict[str, Source] = {
    module.SOURCE.name: module.SOURCE
    for module in (photos, gopro, realblur, sid, renoir, celeba, cifar10, tinyimagenet, pairs)
}
