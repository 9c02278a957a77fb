"""Training that diverges is noticed, goes back, and says so."""

import copy
import math

import pytest
import torch

from lnca_arch import NAFCA
from lnca_arch.errors import InputError
from lnca_arch.rollout import GradientGrowthLimit
from lnca_model.divergence import MAX_ROLLBACKS, MIN_WINDOW, PATIENCE, SNAPSHOT_INTERVAL, DivergenceGuard

from basicsr.models import build_model
from basicsr.utils import get_root_logger


def state_of(module):
    return copy.deepcopy(module.state_dict())


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def guard_of(losses, name='total'):
    guard = DivergenceGuard()
    found = [guard.observe({name: loss}) for loss in losses]
    return guard, found


STEADY = [1.0 + 0.3 * (-1) ** i for i in range(MIN_WINDOW)]


@pytest.mark.parametrize('name', ['total', 'reconstruction'])
def test_a_loss_far_above_its_median_is_divergence(name):
    _, found = guard_of([*STEADY, *[10.0] * PATIENCE], name)
    assert found[:-1] == [None] * (len(found) - 1)
    assert found[-1] == f'the {name} loss is 10, 7.7 times its median of the {MIN_WINDOW} iterations before'


@pytest.mark.parametrize(
    'losses',
    [
        [*STEADY, *[2.5] * 200],  # harder images, not a divergence
        [*STEADY, *([10.0] * (PATIENCE - 1) + [1.0]) * 4],  # hard batches
        [1000 * 0.9**i for i in range(200)],  # the beginning of a phase
        [100.0] * (MIN_WINDOW - 1) + [1e6] * PATIENCE,  # nothing to compare with
        [-30.0] * 100 + [30.0] * 100,  # minus the PSNR
        [0.0] * 100 + [1e-3] * 100,  # nothing to be a multiple of
    ],
)
def test_other_losses_are_not(losses):
    _, found = guard_of(losses)
    assert not any(found)


def test_losses_that_are_not_finite_are_divergence():
    assert guard_of([*STEADY, *[math.inf] * PATIENCE])[1][-1]


def test_a_phase_begins_anew():
    guard, _ = guard_of(STEADY)
    guard.start_phase({})
    assert not any(guard.observe({'total': 100.0}) for _ in range(MIN_WINDOW))


def test_validation_that_falls_below_the_input_is_divergence():
    guard = DivergenceGuard()
    assert [guard.observe_gain(gain) for gain in (-0.1, 0.2, 0.1, -0.01)] == [False, False, False, True]


@pytest.mark.parametrize('length', [1, 60, 100, 149, 150, 151])
def test_the_snapshot_is_of_before_the_onset_and_not_long_ago(length):
    guard = DivergenceGuard()
    guard.start_phase({'iteration': 0})
    for iteration in range(1, length + 1):
        if guard.is_snapshot_due(iteration):
            guard.add_snapshot({'iteration': iteration})
    restored = guard.roll_back()['iteration']
    assert length - restored <= 2 * SNAPSHOT_INTERVAL
    assert restored == 0 or length - restored >= SNAPSHOT_INTERVAL


def test_after_a_rollback_losses_are_compared_with_those_before_the_snapshot():
    guard = DivergenceGuard()
    guard.start_phase({'iteration': 0})
    for loss in STEADY:
        guard.observe({'total': loss})
    for _ in range(2):
        guard.add_snapshot({'iteration': MIN_WINDOW})
    for _ in range(3):
        guard.observe({'total': 50.0})
    guard.roll_back()
    assert [bool(guard.observe({'total': 10.0})) for _ in range(PATIENCE)] == [False] * (PATIENCE - 1) + [True]


# --- in the models


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """BasicSR's logger hands nothing on to its parents, where caplog listens."""
    monkeypatch.setattr(get_root_logger(), 'propagate', True)


@pytest.fixture
def long_options(model_options):
    """An automaton's phase that is long enough to diverge in."""
    model_options['train'].update(total_iter=43)
    model_options['train']['automaton'].update(iters=40)
    return model_options


def diverge(model, monkeypatch, from_iteration):
    """Have the losses of a model be those of one that diverges, from an iteration on, until it goes back."""
    losses_of, rollback = model.losses_of, model.roll_back
    factor = [1.0]

    def diverging(*arguments):
        active = model.iteration >= from_iteration
        return {name: loss * (1e4 if active and factor[0] else 1) for name, loss in losses_of(*arguments).items()}

    def rolled_back():
        factor[0] = 0
        return rollback()

    monkeypatch.setattr(model, 'losses_of', diverging)
    monkeypatch.setattr(model, 'roll_back', rolled_back)


def train(model, iterations):
    for iteration in iterations:
        torch.manual_seed(iteration)
        model.update_learning_rate(iteration)
        model.feed_data({'gt': torch.rand(4, 3, 16, 16)})
        model.optimize_parameters(iteration)


def test_a_phase_that_diverges_goes_back_and_on_at_half_the_rate(long_options, monkeypatch, caplog):
    model, undisturbed = build_model(long_options), build_model(long_options)
    diverge(model, monkeypatch, 35)
    train(model, range(1, 4))
    before = state_of(model.network)
    train(model, range(4, 39))
    assert 'diverged' not in caplog.text
    model.update_learning_rate(39)
    model.feed_data({'gt': torch.rand(4, 3, 16, 16)})
    model.optimize_parameters(39)
    assert 'train.automaton: diverged in iteration 39: the total loss is ' in caplog.text
    assert 'went back to the weights of iteration 3 and halved the learning rate' in caplog.text
    assert same(before, model.network.state_dict())
    assert len(model.pool) == 0
    assert not model.optimizer.state_dict()['state']
    assert model.guard.diverged_at == [('automaton', 39)]
    train(undisturbed, range(1, 40))
    for iteration in range(40, 44):
        for each in (model, undisturbed):
            train(each, [iteration])
        assert model.get_current_learning_rate() == [rate / 2 for rate in undisturbed.get_current_learning_rate()]


def test_the_moving_average_goes_back_too(long_options, monkeypatch):
    long_options['train']['ema_decay'] = 0.9
    model = build_model(long_options)
    diverge(model, monkeypatch, 35)
    train(model, range(1, 4))
    before = state_of(model.net_g_ema)
    train(model, range(4, 40))
    assert same(before, model.net_g_ema.state_dict())


@pytest.mark.parametrize('change', [{'paper_exact': True}, {'on_divergence': 'warn'}])
def test_where_it_may_not_go_back_it_warns(long_options, monkeypatch, caplog, change):
    long_options['train'] |= change
    model = build_model(long_options)
    diverge(model, monkeypatch, 35)
    train(model, range(1, 44))
    assert caplog.text.count('diverged in iteration') == 1
    assert 'nothing was done about it' in caplog.text
    assert model.guard.diverged_at == [('automaton', 39)]
    assert len(model.pool) == 10


@pytest.mark.parametrize('saved_at', [37, 39, 41])
def test_it_goes_on_exactly_where_it_was_saved(long_options, monkeypatch, tmp_path, saved_at):
    """Before the divergence is known, in the iteration in which it is, and after it."""
    model = build_model(long_options)
    diverge(model, monkeypatch, 35)
    train(model, range(1, saved_at + 1))
    model.save(0, saved_at)
    resumed_options = copy.deepcopy(long_options)
    resumed_options['path'] |= {
        'pretrain_network_g': str(tmp_path / 'models' / f'net_g_{saved_at}.pth'),
        'resume_state': str(tmp_path / 'training_states' / f'{saved_at}.state'),
    }
    resumed = build_model(resumed_options)
    if saved_at < 39:
        diverge(resumed, monkeypatch, 35)
    resumed.resume_training(torch.load(resumed_options['path']['resume_state'], weights_only=True))
    train(model, range(saved_at + 1, 44))
    train(resumed, range(saved_at + 1, 44))
    assert same(model.network.state_dict(), resumed.network.state_dict())
    assert model.get_current_learning_rate() == resumed.get_current_learning_rate()
    assert model.guard.diverged_at == resumed.guard.diverged_at == [('automaton', 39)]


def test_one_that_always_diverges_ends(long_options, monkeypatch):
    model = build_model(long_options)
    train(model, range(1, 30))
    model.guard.rollbacks = MAX_ROLLBACKS
    diverge(model, monkeypatch, 35)
    with pytest.raises(InputError, match=f'after {MAX_ROLLBACKS} rollbacks; lower train.automaton.optim_g.lr'):
        train(model, range(30, 40))


def test_weights_that_are_not_finite_are_replaced(model_options, caplog):
    model_options['train']['skip_non_finite'] = 1
    model = build_model(model_options)
    train(model, range(1, 5))
    with torch.no_grad():
        model.network.automaton.head.weight.fill_(math.nan)
    train(model, range(5, 8))
    assert 'the loss reconstruction is nan, 2 times in a row; went back' in caplog.text
    assert all(tensor.isfinite().all() for tensor in model.network.state_dict().values())


def test_a_network_without_an_automaton_only_warns(model_options, caplog):
    opt = model_options
    opt['model_type'] = 'RestorationModel'
    opt['network_g'] = {'type': 'Autoencoder', 'latent_channels': 4}
    opt['train'] = {'total_iter': 60, 'optim_g': {'type': 'Adam', 'lr': 1e-4}, 'pixel_opt': {'type': 'MSELoss'}}
    model = build_model(opt)
    for iteration in range(1, 60):
        model.update_learning_rate(iteration)
        gt = torch.rand(2, 3, 16, 16) * (1 if iteration < 40 else 100)
        model.feed_data({'gt': gt, 'lq': torch.rand(2, 3, 16, 16)})
        model.optimize_parameters(iteration)
    assert 'train: diverged in iteration 44' in caplog.text
    assert not model.guard.state_dict()['snapshots']


# --- gradients


def explosive_rule():
    torch.manual_seed(0)
    rule = NAFCA(3, 3, 4, embed_channels=16, dropout=0.0).double()
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return rule


def gradient_norms(rule, state, steps, monkeypatch):
    """Norms of each image's gradient, from the last step to the first, after the limit was applied."""
    norms = []
    clip = GradientGrowthLimit.clip
    set_reference = GradientGrowthLimit.set_reference

    def noted(limit, gradient):
        clipped = clip(limit, gradient)
        norms.append(clipped.flatten(1).norm(dim=1))
        return clipped

    def noted_first(limit, gradient):
        norms.append(gradient.flatten(1).norm(dim=1))
        return set_reference(limit, gradient)

    monkeypatch.setattr(GradientGrowthLimit, 'clip', noted)
    monkeypatch.setattr(GradientGrowthLimit, 'set_reference', noted_first)
    rule(state, steps).square().mean().backward()
    return torch.stack(norms)


@pytest.mark.parametrize('memory', ['fast', 'low'])
@pytest.mark.parametrize('growth', [0.5, 1.0, 10.0])
def test_gradients_grow_no_further_than_the_limit(memory, growth, monkeypatch):
    rule = explosive_rule()
    rule.max_gradient_growth, rule.memory = growth, memory
    state = rule.seed(torch.rand(2, 3, 6, 5, dtype=torch.float64))
    norms = gradient_norms(rule, state, 12, monkeypatch)
    assert norms.shape == (12, 2)
    assert (norms <= growth * norms[0] * (1 + 1e-12)).all() or growth < 1
    assert (norms[1:] <= growth * norms[0] * (1 + 1e-12)).all()
    assert (norms[1:].amax(0) >= growth * norms[0] * (1 - 1e-12)).all()  # it acted


def test_within_the_limit_gradients_are_exact():
    rule = explosive_rule()
    state = rule.seed(torch.rand(2, 3, 6, 5, dtype=torch.float64))
    found = []
    for growth in (None, 1e12):
        rule.zero_grad()
        rule.max_gradient_growth = growth
        rule(state, 5).square().mean().backward()
        found.append([parameter.grad for parameter in rule.parameters()])
    assert all(torch.equal(exact, limited) for exact, limited in zip(*found, strict=True))


def test_the_limit_does_not_depend_on_the_rest_of_the_batch():
    rule = explosive_rule()
    rule.max_gradient_growth = 1.0
    images = torch.rand(3, 3, 6, 5, dtype=torch.float64)
    found = []
    for batches in ([images], images.split(1)):
        rule.zero_grad()
        for batch in batches:
            rule(rule.seed(batch), 12).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in rule.parameters()])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize('paper_exact', [False, True])
def test_the_limit_comes_from_the_options(model_options, paper_exact):
    model_options['train']['automaton']['max_gradient_growth'] = 2.0
    model_options['train']['paper_exact'] = paper_exact
    model = build_model(model_options)
    assert model.network.automaton.max_gradient_growth == (None if paper_exact else 2.0)
