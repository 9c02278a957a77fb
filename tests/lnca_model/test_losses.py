import numpy as np
import pytest
import torch

from lnca_model.distributed import collectives
from lnca_model.losses import (
    MaskedTaskLoss,
    OverflowLoss,
    PSNRLoss,
    SSIMLoss,
    SwapEquivalenceLoss,
    TripletDistanceLoss,
)
from lnca_model.metrics import calculate_ssim_batch

from basicsr.losses import build_loss
from basicsr.losses.basic_loss import MSELoss

NEW_LOSSES = [TripletDistanceLoss, MaskedTaskLoss, SwapEquivalenceLoss, OverflowLoss, PSNRLoss, SSIMLoss]


@pytest.fixture
def arrays(golden):
    return golden('losses')


def all_of(arrays, prefix):
    return torch.cat([arrays[f'{prefix}{side}'] for side in ('anchor', 'positive', 'negative')])


def golden_losses(arrays, weights=None):
    """Create all losses of the golden file by their names there, with the weights of the reference by default."""
    weight = (weights or {}).get
    images = [arrays['anchor'], arrays['positive']]
    latents = [arrays[f'latent_{side}'] for side in ('anchor', 'positive', 'negative')]
    swapped = [arrays['swapped_anchor'], arrays['swapped_positive']]
    state, margin = arrays['nca_state'], arrays['margin'].item()
    output, hidden = state[:, 6:12], state[:, 12:]
    return {
        'reconstruction_ae': MSELoss(weight('reconstruction_ae', 1))(
            all_of(arrays, 'reconstruction_'), all_of(arrays, '')
        ),
        'triplet_distance': TripletDistanceLoss(weight('triplet_distance', 1), margin=margin)(*latents),
        'masked_task': MaskedTaskLoss(weight('masked_task', 1))(arrays['reconstruction_positive'], *reversed(images)),
        'swap_equivalence': SwapEquivalenceLoss(weight('swap_equivalence', 1))(*swapped, *images),
        'reconstruction_nca': MSELoss(weight('reconstruction_nca', 1))(arrays['nca_output'], arrays['nca_target']),
        'latent': MSELoss(weight('latent', 1))(output, arrays['latent_target']),
        'overflow_output': OverflowLoss(weight('overflow_output', 1))(output),
        'overflow_hidden': OverflowLoss(weight('overflow_hidden', 1), low=-1, high=1)(hidden),
    }


def test_golden_values(arrays):
    for name, value in golden_losses(arrays).items():
        torch.testing.assert_close(value, arrays[f'loss/{name}'], rtol=1e-5, atol=0, msg=name)


def test_golden_totals(arrays):
    weights = dict.fromkeys(golden_losses(arrays), 100) | {'triplet_distance': 10, 'masked_task': 10}
    weights |= {'overflow_output': 1, 'overflow_hidden': 1}
    losses = list(golden_losses(arrays, weights).values())
    for name, parts in (('step1', losses[:3]), ('step2', losses[3:4]), ('nca', losses[4:])):
        torch.testing.assert_close(sum(parts), arrays[f'total/{name}'], rtol=1e-5, atol=0, msg=name)


def test_golden_distance_beyond_the_margin(arrays):
    loss = TripletDistanceLoss(margin=0)
    value = loss(arrays['latent_anchor'], arrays['latent_positive'], arrays['latent_negative_far'])
    assert value == arrays['loss/triplet_distance_far_margin0'] == 0


def arguments(loss, n=2):
    if loss is TripletDistanceLoss:
        return torch.rand(3, n, 3, 4, 4).unbind()
    counts = {MaskedTaskLoss: 3, SwapEquivalenceLoss: 4, OverflowLoss: 1, PSNRLoss: 2, SSIMLoss: 2}
    return (3 * torch.rand(counts[loss], n, 3, 12, 12)).unbind()


@pytest.mark.parametrize('loss', NEW_LOSSES)
def test_registered_with_weight_and_reduction(loss):
    inputs = arguments(loss)
    mean = build_loss({'type': loss.__name__})(*inputs)
    assert mean.shape == ()
    torch.testing.assert_close(build_loss({'type': loss.__name__, 'loss_weight': 3})(*inputs), 3 * mean)
    if loss is not TripletDistanceLoss:  # takes the maximum after the reduction
        each = loss(reduction='none')(*inputs)
        assert each.dim() > 0
        torch.testing.assert_close(each.mean(), mean)
        torch.testing.assert_close(each.sum(), loss(reduction='sum')(*inputs))
    with pytest.raises(ValueError, match='unsupported reduction'):
        loss(reduction='median')


@pytest.mark.parametrize('loss', NEW_LOSSES)
def test_a_nan_in_is_a_nan_out(loss):
    inputs = [tensor.clone() for tensor in arguments(loss)]
    inputs[0][0, 0, 0, 0] = float('nan')
    # The loss is NaN even if a mask hides the NaN.
    assert loss()(*inputs).isnan()


@pytest.mark.parametrize('loss', NEW_LOSSES)
def test_a_batch_of_one(loss):
    assert loss()(*arguments(loss, n=1)).isfinite()


def test_an_empty_mask():
    image = torch.rand(2, 3, 4, 4)
    prediction = torch.rand(2, 3, 4, 4, requires_grad=True)
    value = MaskedTaskLoss()(prediction, image, image) + SwapEquivalenceLoss()(prediction, prediction, image, image)
    value.backward()
    assert value == 0
    assert (prediction.grad == 0).all()


def test_psnr():
    target = torch.zeros(2, 3, 4, 4)
    torch.testing.assert_close(PSNRLoss()(target + 0.1, target), torch.tensor(-20.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(PSNRLoss()(target, target), torch.tensor(-80.0), rtol=1e-5, atol=0)


def test_ssim_is_the_metric():
    numbers = np.random.default_rng(0)
    target = numbers.integers(0, 256, (3, 16, 20, 3), np.uint8)
    pred = (target * 0.8 + 20).astype(np.uint8)
    expected = 1 - torch.from_numpy(calculate_ssim_batch(pred, target, crop_border=0)).float()
    images = (torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255 for image in (pred, target))
    torch.testing.assert_close(SSIMLoss(reduction='none')(*images), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match='at least 11×11'):
        SSIMLoss()(*torch.rand(2, 1, 3, 8, 16))


def test_overflow_bounds():
    with pytest.raises(ValueError, match='low must not be above high'):
        OverflowLoss(low=1, high=0)


@pytest.mark.parametrize(('mean', 'expected'), [(-3.0, 0.0), (2.0, 3.0)])
def test_the_hinge_acts_on_the_mean_of_all_processes(monkeypatch, mean, expected):
    """The distances of this rank only would result in max(0, 4 − 1 + 1)."""
    monkeypatch.setattr(collectives, 'world_size', lambda: 2)
    monkeypatch.setattr(collectives, 'all_reduce_mean', lambda tensors: tensors[0].fill_(mean))
    anchor = torch.zeros(1, 2, 1, 1, requires_grad=True)
    loss = TripletDistanceLoss()(anchor, torch.full_like(anchor, 2), torch.full_like(anchor, 1))
    assert loss.item() == expected
    loss.backward()
    # d/da of mean((a − 2)²) − mean((a − 1)²) at a = 0
    assert torch.allclose(anchor.grad, torch.full_like(anchor, -1.0 if expected else 0.0))
