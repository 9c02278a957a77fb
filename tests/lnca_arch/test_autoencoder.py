import pytest
import torch

from lnca_arch import Autoencoder


def golden_autoencoder(expected, downsamplings):
    latent_channels = expected['eval/latent'].shape[1]
    autoencoder = Autoencoder(3, latent_channels, downsamplings)
    # Golden files leave out num_batches_tracked, a counter of PyTorch's that nothing here reads.
    result = autoencoder.load_state_dict(expected.below('weights'), strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith('num_batches_tracked') for name in result.missing_keys)
    return autoencoder


@pytest.mark.parametrize('downsamplings', [2, 3])
@torch.no_grad()
def test_golden_evaluation(golden, downsamplings):
    expected = golden(f'autoencoder_down{downsamplings}')
    autoencoder = golden_autoencoder(expected, downsamplings).eval()
    latent, skip = autoencoder.encode(expected['input'])
    got = {
        'skip': skip,
        'latent': latent,
        'reconstruction': autoencoder(expected['input']),
        'decoded_other_latent': autoencoder.decode(expected['other_latent'], skip),
    }
    assert got.keys() == expected.below('eval').keys()
    for name, value in got.items():
        torch.testing.assert_close(value, expected[f'eval/{name}'], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize('downsamplings', [2, 3])
@torch.no_grad()
def test_golden_training_pass(golden, downsamplings):
    expected = golden(f'autoencoder_down{downsamplings}')
    autoencoder = golden_autoencoder(expected, downsamplings).train()
    latent, skip = autoencoder.encode(expected['input'])
    got = {'skip': skip, 'latent': latent, 'reconstruction': autoencoder.decode(latent, skip)}
    assert expected.below('train').keys() <= got.keys()
    for name, value in expected.below('train').items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-5, msg=name)
    state = autoencoder.state_dict()
    running = expected.below('after_train')
    assert len(running) >= 6
    for name, value in running.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ('downsamplings', 'latent', 'skip'), [(2, (16, 8, 8), (8, 16, 16)), (3, (16, 4, 4), (4, 16, 16))]
)
def test_shapes(downsamplings, latent, skip):
    got_latent, got_skip = Autoencoder(downsamplings=downsamplings).encode(torch.rand(2, 3, 32, 32))
    assert got_latent.shape == (2, *latent)
    assert got_skip.shape == (2, *skip)


def test_side_channel_reaches_the_latent_only():
    autoencoder = Autoencoder().eval()
    image = torch.rand(1, 3, 16, 16)
    latent, skip = autoencoder.encode(image)
    with torch.no_grad():
        autoencoder.encoder.side1.conv.bias += 1
    changed_latent, changed_skip = autoencoder.encode(image)
    assert torch.equal(skip, changed_skip)
    assert not torch.equal(latent, changed_latent)


def test_reconstruction_is_an_image():
    reconstruction = Autoencoder()(torch.rand(2, 3, 8, 12))
    assert reconstruction.shape == (2, 3, 8, 12)
    assert reconstruction.min() >= 0
    assert reconstruction.max() <= 1


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: Autoencoder(downsamplings=4), 'downsamplings must be 2 or 3'),
        (lambda: Autoencoder(latent_channels=6, downsamplings=3), 'divisible by 4'),
        (lambda: Autoencoder().encode(torch.rand(1, 3, 30, 32)), 'divisible by 4, got 30×32'),
        (lambda: Autoencoder().encode(torch.rand(1, 1, 32, 32)), '3 channels, got 1'),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
