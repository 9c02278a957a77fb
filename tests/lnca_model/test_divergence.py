"""Detection of divergence, rollbacks and their messages."""

import copy
import math

import pytest
import torch

from lnca_arch import NAFCA
from lnca_arch.acceleration.fused_rollout import GradientGrowthLimit
from lnca_model.checkpointing.checkpointer import Checkpointer
from lnca_model.models.restoration_model import NonFiniteError
from lnca_model.training.divergence_guard import (
    MAX_ROLLBACKS,
    MIN_WINDOW,
    PATIENCE,
    SNAPSHOT_INTERVAL,
    DivergenceDetector,
    DivergenceGuard,
)
from lnca_utils import checkpoint
from lnca_utils.errors import LNCAError

from basicsr.models import build_model
from basicsr.utils import get_root_logger


def state_of(module):
    return copy.deepcopy(module.state_dict())


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def detect(losses, name='total'):
    detector = DivergenceDetector()
    return [detector.observe({name: loss}) for loss in losses]


STEADY = [1.0 + 0.3 * (-1) ** i for i in range(MIN_WINDOW)]


@pytest.mark.parametrize('name', ['total', 'reconstruction'])
def test_a_loss_far_above_its_median_is_divergence(name):
    found = detect([*STEADY, *[10.0] * PATIENCE], name)
    assert found[:-1] == [None] * (len(found) - 1)
    assert found[-1] == f'the {name} loss is 10, 7.7 times what it was before'


@pytest.mark.parametrize(
    'losses',
    [
        [*STEADY, *[2.5] * 200],  # harder images, not a divergence
        [*STEADY, *([10.0] * (PATIENCE - 1) + [1.0]) * 4],  # hard batches
        [1000 * 0.9**i for i in range(200)],  # the beginning of a phase
        [100.0] * (MIN_WINDOW - 1) + [1e6] * PATIENCE,  # nothing to compare with
        [1 + i / 1000 for i in range(3000)],  # a curriculum
        [-30.0] * 100 + [30.0] * 100,  # the negative PSNR
        [0.0] * 100 + [1e-3] * 100,  # the baseline is 0
    ],
)
def test_other_losses_are_not(losses):
    assert not any(detect(losses))


def test_losses_that_are_not_finite_are_divergence():
    assert detect([*STEADY, *[math.inf] * PATIENCE])[-1]


def test_a_slow_divergence_is_seen():
    assert any(detect([2 ** (i / 100) for i in range(1500)]))


@pytest.mark.parametrize(
    ('gains', 'expected'),
    [
        ((-0.1, 0.2, 0.1, -0.02), [False, False, False, True]),
        ((0.004, -0.001, 0.004, -0.5), [False] * 4),  # never clearly above
        ((0.2, -0.005), [False, False]),  # hardly below
    ],
)
def test_a_validation_that_falls_below_the_input_is_divergence(gains, expected):
    detector = DivergenceDetector()
    assert [bool(detector.observe_gain(gain)) for gain in gains] == expected


# --- in the models


@pytest.fixture(autouse=True)
def propagate_log(monkeypatch):
    """Let BasicSR's logger propagate messages to its parents, where caplog listens."""
    monkeypatch.setattr(get_root_logger(), 'propagate', True)


@pytest.fixture
def long_options(model_options):
    """Options with a phase of the automaton that is long enough to diverge."""
    model_options['train'].update(total_iter=53)
    model_options['train']['automaton'].update(iters=50)
    return model_options


FROM, SEEN = 35, 39  # the iteration from which a phase diverges, and that in which the divergence is detected


def diverge(model, monkeypatch, from_iteration=FROM):
    """Make the losses of a model diverge from an iteration on, until it is rolled back."""
    compute_losses, restore_snapshot = model.compute_losses, model.restore_snapshot
    diverging = [True]

    def large_losses(*arguments):
        factor = 1e4 if diverging[0] and model.iteration >= from_iteration else 1
        return {name: loss * factor for name, loss in compute_losses(*arguments).items()}

    def restored(snapshot):
        diverging[0] = False
        restore_snapshot(snapshot)

    monkeypatch.setattr(model, 'compute_losses', large_losses)
    monkeypatch.setattr(model, 'restore_snapshot', restored)


def train(guard, iterations):
    """Train as the trainer does, on images that depend on the iteration only."""
    model = guard._model
    for iteration in iterations:
        torch.manual_seed(iteration)
        model.update_learning_rate(iteration)
        guard.before_iteration()
        model.feed_data({'gt': torch.rand(4, 3, 16, 16)})
        try:
            model.optimize_parameters(iteration)
        except NonFiniteError as error:
            guard.handle(error.reason)
        else:
            guard.after_iteration()


def test_a_phase_that_diverges_goes_back_and_on_at_half_the_rate(long_options, monkeypatch, caplog):
    model, undisturbed = build_model(long_options), build_model(long_options)
    guard, other = DivergenceGuard(model), DivergenceGuard(undisturbed)
    diverge(model, monkeypatch)
    train(guard, range(1, 4))
    before = state_of(model.network)
    train(guard, range(4, SEEN))
    assert 'diverged' not in caplog.text
    train(guard, [SEEN])
    assert f'train.automaton: diverged in iteration {SEEN}: the total loss is ' in caplog.text
    assert 'rolled back to the weights of iteration 3 and halved the learning rate' in caplog.text
    assert same(before, model.network.state_dict())
    assert len(model.pool) == 0
    assert not model.optimizer.state_dict()['state']
    assert guard.rollbacks == 1
    train(other, range(1, SEEN + 1))
    for iteration in range(SEEN + 1, 54):
        for each in (guard, other):
            train(each, [iteration])
        assert model.get_current_learning_rate() == [rate / 2 for rate in undisturbed.get_current_learning_rate()]


def test_a_schedule_that_does_not_fall_to_0_is_halved_too(long_options, monkeypatch):
    long_options['train']['automaton']['scheduler'] = {'type': 'CosineAnnealingRestartLR', 'eta_min': 0.001}
    model, undisturbed = build_model(long_options), build_model(long_options)
    guard, other = DivergenceGuard(model), DivergenceGuard(undisturbed)
    diverge(model, monkeypatch)
    for each in (guard, other):
        train(each, range(1, 54))
    assert guard.rollbacks == 1
    assert model.get_current_learning_rate() == [rate / 2 for rate in undisturbed.get_current_learning_rate()]


@pytest.mark.parametrize('length', [1, 60, 99, 100, 149, 150])
def test_the_snapshot_is_of_before_the_onset_and_not_long_ago(model_options, length):
    model_options['train'].update(total_iter=203)
    model_options['train']['automaton'].update(iters=200)
    model = build_model(model_options)
    guard = DivergenceGuard(model)
    for iteration in range(4, 4 + length):  # without the training
        model.update_learning_rate(iteration)
        guard.before_iteration()
        model.iteration_losses = {}
        guard.after_iteration()
    assert guard._snapshots[0]['iteration'] == 3 + max(0, (length // SNAPSHOT_INTERVAL - 1) * SNAPSHOT_INTERVAL)


def test_the_moving_average_goes_back_too(long_options, monkeypatch):
    long_options['train']['ema_decay'] = 0.9
    model = build_model(long_options)
    guard = DivergenceGuard(model)
    diverge(model, monkeypatch)
    train(guard, range(1, 4))
    before = state_of(model.net_g_ema)
    train(guard, range(4, SEEN + 1))
    assert same(before, model.net_g_ema.state_dict())


def test_a_validation_that_diverges_goes_back_to_the_last_one_that_did_not(long_options, caplog):
    model = build_model(long_options)
    guard = DivergenceGuard(model)
    train(guard, range(1, 11))
    guard.observe_gain(0.2)
    before = state_of(model.network)
    train(guard, range(11, 21))
    guard.observe_gain(-0.1)
    assert 'train.automaton: diverged in iteration 20: the restored images score 10.0% below' in caplog.text
    assert 'rolled back to the weights of iteration 10' in caplog.text
    assert same(before, model.network.state_dict())
    guard.observe_gain(-0.1)  # a second call in the iteration
    assert guard.rollbacks == 1
    for iteration in range(21, 21 + MAX_ROLLBACKS):
        train(guard, [iteration])
        guard.observe_gain(-0.1)
    assert caplog.text.count('rolled back') == MAX_ROLLBACKS
    assert caplog.text.count('no action taken: lower train.automaton.optim_g.lr') == 1
    assert guard.diverged_at == [('automaton', 25)]


@pytest.mark.parametrize('change', [{'paper_exact': True}, {'on_divergence': 'warn'}])
def test_where_it_may_not_go_back_it_warns(long_options, monkeypatch, caplog, change):
    long_options['train'] |= change
    model = build_model(long_options)
    guard = DivergenceGuard(model)
    diverge(model, monkeypatch)
    train(guard, range(1, SEEN + 1))
    assert caplog.text.count('diverged in iteration') == 1
    assert 'no action taken: set train.on_divergence: rollback' in caplog.text
    assert guard.diverged_at == [('automaton', SEEN)]
    assert len(model.pool) == 10
    assert not guard.state_dict()['snapshots']


def resumed(opt, guard, tmp_path, iteration, monkeypatch=None):
    """The guard of a model that resumes from a checkpoint."""
    Checkpointer(guard._model, opt['path']).save(iteration, epoch=0, guard=guard.state_dict())
    opt = copy.deepcopy(opt)
    opt['path']['pretrain_network_g'] = str(tmp_path / 'models' / f'net_g_{iteration}.pth')
    model = build_model(opt)
    if monkeypatch:
        diverge(model, monkeypatch)
    state = checkpoint.load(tmp_path / 'training_states' / f'{iteration}.state')
    model.resume_training(state)
    other = DivergenceGuard(model)
    other.load_state_dict(state['guard'])
    return other


@pytest.mark.parametrize('saved_at', [SEEN - 2, SEEN, SEEN + 2])
def test_it_goes_on_exactly_where_it_was_saved(long_options, monkeypatch, tmp_path, saved_at):
    """Before the divergence is detected, in the iteration in which it is, and after it."""
    guard = DivergenceGuard(build_model(long_options))
    diverge(guard._model, monkeypatch)
    train(guard, range(1, saved_at + 1))
    other = resumed(long_options, guard, tmp_path, saved_at, monkeypatch if saved_at < SEEN else None)
    for each in (guard, other):
        train(each, range(saved_at + 1, 54))
    assert guard.rollbacks == other.rollbacks == 1
    assert same(guard._model.network.state_dict(), other._model.network.state_dict())
    assert guard._model.get_current_learning_rate() == other._model.get_current_learning_rate()


def test_options_may_change_on_resuming(long_options, monkeypatch, tmp_path):
    long_options['train']['on_divergence'] = 'warn'
    guard = DivergenceGuard(build_model(long_options))
    train(guard, range(1, 31))
    # Now with snapshots, and with a moving average.
    long_options['train'].update(on_divergence='rollback', ema_decay=0.9)
    guard = resumed(long_options, guard, tmp_path, 30, monkeypatch)
    train(guard, range(31, SEEN + 1))
    assert guard.rollbacks == 1
    # Rollbacks no longer count when the learning rate in the options changes.
    long_options['train']['automaton']['optim_g']['lr'] = 0.001
    guard = resumed(long_options, guard, tmp_path, SEEN)
    assert guard.rollbacks == 0
    assert guard._model.base_rates == [0.001]


def test_one_that_always_diverges_ends(long_options, monkeypatch):
    model = build_model(long_options)
    guard = DivergenceGuard(model)
    train(guard, range(1, 30))
    guard.rollbacks = MAX_ROLLBACKS
    diverge(model, monkeypatch)
    with pytest.raises(LNCAError, match=f'after {MAX_ROLLBACKS} rollbacks; lower train.automaton.optim_g.lr'):
        train(guard, range(30, SEEN + 1))


def test_weights_that_are_not_finite_are_replaced(model_options, caplog):
    model_options['train']['max_consecutive_nonfinite'] = 1
    model = build_model(model_options)
    guard = DivergenceGuard(model)
    train(guard, range(1, 5))
    with torch.no_grad():
        model.network.automaton.head.weight.fill_(math.nan)
    train(guard, range(5, 8))
    assert 'the loss reconstruction is nan in iteration 5' in caplog.text
    assert 'rolled back to the weights of iteration 3' in caplog.text
    assert all(tensor.isfinite().all() for tensor in model.network.state_dict().values())


def test_a_network_without_an_automaton_only_warns(model_options, caplog):
    opt = model_options
    opt['model_type'] = 'RestorationModel'
    opt['network_g'] = {'type': 'Autoencoder', 'latent_channels': 4}
    opt['train'] = {'total_iter': 60, 'optim_g': {'type': 'Adam', 'lr': 1e-4}, 'pixel_opt': {'type': 'MSELoss'}}
    model = build_model(opt)
    guard = DivergenceGuard(model)
    for iteration in range(1, 60):
        model.update_learning_rate(iteration)
        guard.before_iteration()
        gt = torch.rand(2, 3, 16, 16) * (1 if iteration < 40 else 100)
        model.feed_data({'gt': gt, 'lq': torch.rand(2, 3, 16, 16)})
        model.optimize_parameters(iteration)
        guard.after_iteration()
    assert 'train: diverged in iteration 44' in caplog.text
    assert not guard.state_dict()['snapshots']


# --- gradients


def explosive_rule():
    torch.manual_seed(0)
    rule = NAFCA(3, 3, 4, embed_channels=16, dropout=0.0).double()
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return rule


def gradient_norms(rule, state, steps, monkeypatch):
    """Norms of the gradient of each image, from the last step to the first, with the limit applied."""
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


@pytest.mark.parametrize('policy', ['none', 'full'])
@pytest.mark.parametrize('growth', [0.5, 1.0, 10.0])
def test_gradients_grow_no_further_than_the_limit(policy, growth, monkeypatch):
    rule = explosive_rule()
    rule.max_gradient_growth, rule.activation_checkpointing = growth, policy
    state = rule.seed(torch.rand(2, 3, 6, 5, dtype=torch.float64))
    norms = gradient_norms(rule, state, 12, monkeypatch)
    assert norms.shape == (12, 2)
    assert (norms[1:] <= growth * norms[0] * (1 + 1e-12)).all()
    assert (norms[1:].amax(0) >= growth * norms[0] * (1 - 1e-12)).all()  # some were clipped


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
