"""LatentNAFCA, LatentViTCA and PixelViTCA: from image to restored image."""

import pytest
import torch

from lnca_arch import LatentNAFCA, LatentViTCA, PixelViTCA
from lnca_arch.networks.automaton_network import pad_to_multiple
from lnca_arch.networks.blend import local_means

from basicsr.archs import build_network

NETWORKS = [LatentNAFCA, LatentViTCA, PixelViTCA]


@pytest.mark.parametrize('network', NETWORKS)
def test_registered_and_built_by_basicsr(network):
    net = build_network({'type': network.__name__, 'hidden_channels': 8, 'embed_channels': 16})
    assert isinstance(net, network)
    assert net.automaton.hidden_channels == 8


@pytest.mark.parametrize('network', NETWORKS)
def test_state_dict_names(network):
    prefixes = {name.split('.')[0] for name in network().state_dict()}
    assert prefixes == ({'automaton'} if network is PixelViTCA else {'automaton', 'autoencoder'})


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('size', [(32, 32), (1, 1), (2, 5), (13, 30), (31, 4)])
@torch.no_grad()
def test_any_size(network, size):
    image = torch.rand(2, 3, *size)
    restored = network().eval()(image, steps=2)
    assert restored.shape == image.shape
    assert restored.isfinite().all()


@pytest.mark.parametrize('network', NETWORKS)
@torch.no_grad()
def test_64_steps_unless_told_otherwise(network):
    net = network(update_rate=1.0).eval()
    for parameter in net.automaton.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(net(image), net(image, steps=64))
    assert not torch.equal(net(image), net(image, steps=1))
    shorter = network(update_rate=1.0, steps=1).eval()
    shorter.load_state_dict(net.state_dict())
    assert torch.equal(shorter(image), net(image, steps=1))
    with pytest.raises(ValueError, match='steps must be at least 1, got 0'):
        network(steps=0)


@pytest.mark.parametrize('steps', [[], [-3], [4, 2]])
def test_steps_ascend_from_0(steps):
    with pytest.raises(ValueError, match='steps must be ascending and at least 0'):
        LatentNAFCA().intermediate_outputs(torch.rand(1, 3, 8, 8), steps)


@torch.no_grad()
def test_the_parts_make_the_whole():
    net = LatentNAFCA().eval()
    image = torch.rand(1, 3, 16, 16)
    latent, skip = net.autoencoder.encode(image)
    state = net.automaton(net.automaton.seed(latent), 5)
    torch.testing.assert_close(net(image, steps=5), net.autoencoder.decode(net.automaton.output(state), skip))


@torch.no_grad()
def test_a_blend_keeps_half_of_the_means_at_first_and_can_keep_all_or_one():
    net = LatentNAFCA(blend=True).eval()
    image = torch.rand(1, 3, 16, 16)
    latent, skip = net.autoencoder.encode(image)
    decoded = net.autoencoder.decode(net.automaton(net.automaton.seed(latent), 5)[:, 16:32], skip)
    difference = image - decoded
    kept = torch.tensor(-4.0).sigmoid() * difference
    kept += sum(local_means(difference, (3, 9, 27))) / 2
    torch.testing.assert_close(net(image, steps=5), decoded + kept)
    net.blend.share.bias.copy_(torch.tensor([100.0, -100, -100, -100]))
    torch.testing.assert_close(net(image, steps=5), image)
    net.blend.share.bias.copy_(torch.tensor([-100.0, -100, -100, 100]))
    torch.testing.assert_close(net(image, steps=5)[..., 8, 8], decoded[..., 8, 8] + difference.mean(dim=(2, 3)))


def test_local_means_count_what_lies_in_the_image():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    means, of_all = local_means(image, (3, 9))
    assert means.shape == image.shape
    assert means[0, 0, 0, 0] == image[0, 0, :2, :2].mean()
    assert means[0, 0, 1, 2] == image[0, 0, :, 1:].mean()
    torch.testing.assert_close(of_all, image.mean().expand_as(image))


@torch.no_grad()
def test_update_rates():
    image = torch.rand(1, 3, 8, 8)
    for network, rate in ((LatentNAFCA, 1.0), (LatentViTCA, 1.0), (PixelViTCA, 0.5)):
        net = network().eval()
        assert net.update_rate == rate
        for parameter in net.automaton.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        assert torch.equal(net(image, 4), net(image, 4)) is (rate == 1.0)
        assert torch.equal(net(image, 4, update_rate=1.0), net(image, 4, update_rate=1.0))


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_is_finite(network, dtype):
    net = network()
    with torch.autocast('cpu', dtype=dtype):
        restored = net(torch.rand(2, 3, 16, 16), steps=8)
    restored.float().mean().backward()
    assert restored.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_padding_reflects_and_keeps_the_image():
    image = torch.arange(3.0 * 5).view(1, 1, 3, 5)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 1, 4, 8)
    assert torch.equal(padded[..., :3, :5], image)
    assert torch.equal(padded[..., 3, :5], image[..., 1, :])
    assert torch.equal(padded[..., :3, 5], image[..., 3])
    assert torch.equal(pad_to_multiple(image, 1), image)


def test_impossible_update_rate():
    with pytest.raises(ValueError, match='update_rate'):
        LatentNAFCA(update_rate=1.5)
