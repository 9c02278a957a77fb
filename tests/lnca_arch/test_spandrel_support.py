"""spandrel's own loader recognises the networks by their parameters."""

import pytest
import torch
from spandrel import ImageModelDescriptor, ModelLoader

from lnca_arch import LatentNAFCA, LatentViTCA, PixelViTCA
from lnca_arch.integrations import spandrel
from lnca_arch.networks.baselines import NAFNet


@pytest.fixture(autouse=True)
def installed():
    spandrel.install()
    spandrel.install()  # a second call does no harm


@pytest.mark.parametrize(
    ('kind', 'sizes'),
    [
        (LatentNAFCA, {}),
        (LatentNAFCA, {'blend': True}),
        (LatentNAFCA, {'perception': 'depthwise'}),
        (LatentNAFCA, {'latent_channels': 8, 'downsamplings': 3, 'hidden_channels': 7, 'image_channels': 1}),
        (LatentViTCA, {'embed_channels': 16}),
        (PixelViTCA, {'hidden_channels': 6, 'embed_channels': 16, 'update_rate': 0.5}),
    ],
)
def test_checkpoints_load_and_restore(tmp_path, kind, sizes):
    network = kind(**sizes).eval()
    torch.save({'params': network.state_dict()}, tmp_path / 'net_g_best.pth')
    descriptor = ModelLoader('cpu').load_from_file(tmp_path / 'net_g_best.pth')
    assert isinstance(descriptor, ImageModelDescriptor)
    assert isinstance(descriptor.model, kind)
    assert descriptor.architecture.id == kind.__name__
    assert (descriptor.scale, descriptor.input_channels) == (1, sizes.get('image_channels', 3))
    image = torch.rand(1, descriptor.input_channels, 20, 27)
    torch.manual_seed(1)
    found = descriptor(image)
    torch.manual_seed(1)
    with torch.no_grad():
        torch.testing.assert_close(found, network(image).clamp(0, 1))


def test_spandrels_own_networks_are_still_found():
    network = NAFNet(width=4, enc_blk_nums=[1], dec_blk_nums=[1])
    assert ModelLoader('cpu').load_from_state_dict(network.state_dict()).architecture.id == 'NAFNet'
