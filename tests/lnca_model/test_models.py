"""The models through BasicSR's interface: feed, optimise, validate, save, resume."""

import copy
import csv
import io
import logging
import math
import os
import sys

import cv2
import pytest
import torch
from third_phase import with_joint_phase

from lnca_arch import PixelViTCA
from lnca_model import LNCAModel, distributed
from lnca_model.checkpointing.checkpointer import Checkpointer
from lnca_model.checkpointing.resume import list_checkpoints, touch_as_latest
from lnca_model.config.model_checks import check_model
from lnca_model.evaluation import scores
from lnca_model.evaluation.evaluator import Evaluator
from lnca_model.models.restoration_model import NonFiniteError
from lnca_utils import checkpoint
from lnca_utils.errors import LNCAError

from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils import get_root_logger


def loader_of(opt, name):
    options = opt['datasets'][name]
    return build_dataloader(build_dataset(options), options, num_gpu=0, seed=0)


def train(model, opt, iterations):
    """Train a model for some iterations as BasicSR's train.py does."""
    batches = [batch for _ in range(4) for batch in loader_of(opt, 'train')]
    for iteration in iterations:
        model.update_learning_rate(iteration, warmup_iter=-1)
        model.feed_data(batches[iteration])
        model.optimize_parameters(iteration)


def evaluator_of(model, opt, *names):
    """An evaluator of a model on datasets of the options, or on loaders."""
    loaders = [loader_of(opt, name) if isinstance(name, str) else name for name in names]
    return Evaluator(model, loaders, opt, Checkpointer(model, opt['path']))


@pytest.fixture
def log(monkeypatch, caplog):
    """The log; BasicSR's logger does not propagate messages, and is silent without a log file."""
    monkeypatch.setattr(get_root_logger(), 'propagate', True)
    caplog.set_level(logging.INFO, logger=get_root_logger().name)
    return caplog


def state_of(module):
    return copy.deepcopy(module.state_dict())


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def pixel_options(opt):
    opt = copy.deepcopy(opt)
    opt['model_type'] = 'AutomatonModel'
    opt['network_g'] = {'type': 'PixelViTCA', 'hidden_channels': 4, 'embed_channels': 8, 'heads': 2, 'mlp_channels': 4}
    automaton = opt['train']['automaton'] | {'iters': 7, 'reconstruction_opt': {'type': 'L1Loss', 'loss_weight': 100}}
    del automaton['latent_opt']
    opt['train'] = {'total_iter': 7, 'normalize_gradients': True, 'automaton': automaton}
    return opt


def with_blend(opt):
    opt = copy.deepcopy(opt)
    opt['network_g']['blend'] = True
    return opt


def plain_options(opt):
    """Options of a network without phases, as NAFNet is."""
    opt = copy.deepcopy(opt)
    opt['model_type'] = 'RestorationModel'
    opt['network_g'] = {'type': 'Autoencoder', 'latent_channels': 4}
    opt['train'] = {
        'total_iter': 7,
        'optim_g': {'type': 'Adam', 'lr': 0.01},
        'pixel_opt': {'type': 'PSNRLoss'},
        'normalize_gradients': True,
    }
    return opt


def test_each_phase_trains_its_part_alone(model_options):
    model = build_model(model_options)
    network = model.network
    untrained = state_of(network.automaton), state_of(network.autoencoder)
    train(model, model_options, range(1, 4))
    assert same(untrained[0], network.automaton.state_dict())
    assert not same(untrained[1], network.autoencoder.state_dict())
    assert model.log_dict.keys() == {
        f'l_autoencoder_{name}' for name in ('reconstruction', 'distance', 'task', 'equivalence')
    }
    trained = state_of(network.autoencoder)
    train(model, model_options, range(4, 8))
    # Including the running statistics of the batch norms.
    assert same(trained, network.autoencoder.state_dict())
    assert not same(untrained[0], network.automaton.state_dict())
    assert model.log_dict.keys() == {'state_max'} | {
        f'l_automaton_{name}' for name in ('reconstruction', 'latent', 'output_overflow', 'hidden_overflow')
    }


def test_the_third_phase_trains_everything_on_the_image(model_options):
    opt = with_blend(with_joint_phase(model_options))
    model = build_model(opt)
    assert [phase.name for phase in model.phases] == ['autoencoder', 'automaton', 'joint']
    train(model, opt, range(1, 8))
    before = state_of(model.network)
    train(model, opt, range(8, 11))
    assert model.log_dict.keys() == {'state_max'} | {
        f'l_joint_{name}' for name in ('reconstruction', 'ssim', 'output_overflow', 'hidden_overflow')
    }
    unchanged = {name for name, value in model.network.state_dict().items() if torch.equal(before[name], value)}
    assert unchanged == {name for name in before if 'running' in name or 'num_batches' in name}


def test_a_blend_needs_the_phase_that_trains_it(model_options):
    opt = with_blend(model_options)
    with pytest.raises(LNCAError, match='network_g.blend: only the phase train.joint trains it'):
        check_model(LNCAModel, opt)
    check_model(LNCAModel, with_joint_phase(opt))
    with pytest.raises(LNCAError, match='network_g.blend'):
        check_model(LNCAModel, with_joint_phase(opt, iters=0))


def test_a_blend_that_does_not_train_comes_trained(model_options, tmp_path):
    trained = build_model(with_blend(with_joint_phase(model_options))).network.state_dict()
    checkpoint.save({'params': trained}, tmp_path / 'net.pth')
    model_options['path'].update(pretrain_network_g=str(tmp_path / 'net.pth'), strict_load_g=False)
    check_model(LNCAModel, with_blend(model_options))
    without = {name: value for name, value in trained.items() if not name.startswith('blend.')}
    checkpoint.save({'params': without}, tmp_path / 'net.pth')
    with pytest.raises(LNCAError, match='name a network with a trained blend'):
        check_model(LNCAModel, with_blend(model_options))


def test_states_of_the_pool_are_given_what_the_encoder_sees_now(model_options, monkeypatch):
    opt = with_joint_phase(model_options)
    model = build_model(opt)
    automaton, autoencoder = model.network.automaton, model.network.autoencoder
    train(model, opt, range(1, 9))
    encoded, given = [], []
    encode, rollout = autoencoder.encode, automaton.forward
    monkeypatch.setattr(autoencoder, 'encode', lambda image: (encoded.append(encode(image)), encoded[-1])[1])
    monkeypatch.setattr(
        automaton, 'forward', lambda s, n, rate: (given.append(s[:, : automaton.in_channels]), rollout(s, n, rate))[1]
    )
    train(model, opt, [9])
    assert len(given) == 2  # from a seed, and from the pool
    for state, (latent, _) in zip(given, encoded, strict=True):
        assert torch.equal(state, latent)
        assert state.requires_grad  # both train the encoder
    kept = model.pool.state_dict()['tensors']['state']
    assert kept.shape[1] == automaton.mutable_channels


def test_rates_fall_as_cosines_in_each_phase(model_options):
    model = build_model(model_options)
    rates = []
    for iteration in range(1, 8):
        train(model, model_options, [iteration])
        rates += model.get_current_learning_rate()
    expected = [0.01, 0.0075, 0.0025, 0.01, 0.008536, 0.005, 0.001464]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected), rtol=1e-3, atol=0)


def test_two_optimizer_steps_a_batch(model_options):
    model = build_model(model_options)
    train(model, model_options, range(1, 8))
    for phase, iterations in ((0, 3), (1, 4)):
        states = model.optimizers[phase].state.values()
        assert {int(state['step']) for state in states} == {2 * iterations}


def test_steps_are_drawn_for_every_optimisation_step(model_options, monkeypatch):
    model_options['train']['automaton'].update(iters=30, steps=[8, 11])
    model_options['train']['total_iter'] = 33
    model = build_model(model_options)
    drawn = []
    automaton = model.network.automaton
    rollout = automaton.forward

    def watch(state, steps, update_rate=1.0):
        drawn.append((steps, update_rate))
        return rollout(state, 1, update_rate)

    monkeypatch.setattr(automaton, 'forward', watch)
    batch = next(iter(loader_of(model_options, 'train')))
    for iteration in range(4, 34):
        model.update_learning_rate(iteration)
        model.feed_data(batch)
        model.optimize_parameters(iteration)
    steps = [count for count, _ in drawn]
    assert len(steps) == 60
    assert set(steps) == {8, 9, 10, 11}
    # Not one draw per iteration: the rollouts from seeds and from the pool differ somewhere.
    assert steps[::2] != steps[1::2]
    assert {rate for _, rate in drawn} == {1.0}


def test_update_rate_comes_from_the_options(model_options, monkeypatch):
    opt = pixel_options(model_options)
    opt['network_g']['update_rate'] = 0.25
    model = build_model(opt)
    rates = []
    rollout = model.network.automaton.forward
    monkeypatch.setattr(
        model.network.automaton, 'forward', lambda s, n, rate: (rates.append(rate), rollout(s, n, rate))[1]
    )
    train(model, opt, [1])
    assert rates == [0.25, 0.25]


def test_pool_step_goes_on_from_where_states_ended(model_options, monkeypatch):
    model = build_model(model_options)
    train(model, model_options, [1, 2, 3])
    starts, ends = [], []
    rollout_and_optimize = model.rollout_and_optimize

    def watch(state, skip, gt):
        starts.append(state.clone())
        ends.append(rollout_and_optimize(state, skip, gt))
        return ends[-1]

    monkeypatch.setattr(model, 'rollout_and_optimize', watch)
    train(model, model_options, [4, 5])
    fresh, from_pool, fresh_again, from_pool_again = starts
    assert (model.network.automaton.output(fresh) == 0.5).all()
    assert (model.network.automaton.output(fresh_again) == 0.5).all()
    # In iteration 4 the pool held the final states of its first rollout only.
    assert all(any(torch.equal(state, end) for end in ends[0]) for state in from_pool)
    # Iteration 5 drew from the final states of the rollouts before.
    earlier = [*ends[1], *ends[2]]
    assert all(any(torch.equal(state, end) for end in earlier) for state in from_pool_again)


def test_corruption_follows_the_curriculum_of_the_phase(model_options):
    model = build_model(model_options)
    hit = {}
    for iteration in (1, 3, 4, 7):
        model.update_learning_rate(iteration)
        model.feed_data({'gt': torch.full((8, 3, 64, 64), 0.5)})
        hit[iteration] = (model.lq != model.gt).float().mean().item()
    # The progress is 0 and 2/3 in phase 1, 0 and 3/4 in phase 2; the probability is at least 0.25.
    for iteration, probability in ((1, 0.25), (3, 2 / 3), (4, 0.25), (7, 0.75)):
        assert hit[iteration] == pytest.approx(probability, abs=0.02)


@pytest.mark.parametrize('make', [copy.deepcopy, pixel_options, plain_options])
def test_validation_scores_are_those_of_basicsr(model_options, make, tmp_path):
    opt = make(model_options)
    if opt['network_g']['type'] == 'PixelViTCA':
        opt['network_g']['update_rate'] = 1.0  # so that nothing is random
    model = build_model(opt)
    train(model, opt, range(1, 8))
    model.save(0, 7)
    loader = loader_of(opt, 'val')
    evaluator_of(model, opt, loader).evaluate(7)

    one_at_a_time = opt | {'model_type': 'SRModel', 'is_train': False}
    one_at_a_time['path'] = opt['path'] | {'pretrain_network_g': str(tmp_path / 'models' / 'net_g_7.pth')}
    metrics = {name: {'type': f'calculate_{name}', 'crop_border': 0} for name in ('psnr', 'ssim')}
    one_at_a_time['val'] = opt['val'] | {'metrics': metrics}
    reference = build_model(one_at_a_time)
    reference.validation(loader, 'compare', None)

    with open(tmp_path / 'scores.csv', newline='') as file:
        rows = {row['metric']: row for row in csv.DictReader(file)}
    for name, expected in reference.metric_results.items():
        assert float(rows[name]['restored']) == pytest.approx(expected, abs=1e-4)
        assert float(rows[name]['gain']) == pytest.approx(
            float(rows[name]['restored']) - float(rows[name]['corrupted'])
        )
    sheet = cv2.imread(str(tmp_path / 'visualization' / 'photos_val' / 'sheet_7.png'))
    assert sheet is not None
    assert sheet.std() > 10


def test_what_is_drawn_in_validation_depends_on_the_image_alone(model_options, monkeypatch):
    """It depends neither on batches nor on the number of ranks nor on earlier random numbers."""
    opt = pixel_options(model_options)
    model = build_model(opt)
    train(model, opt, range(1, 4))  # an untrained rule does not change the image
    loader = loader_of(opt, 'val')
    test = model.test
    restored = []
    monkeypatch.setattr(model, 'test', lambda: (test(), restored.append(model.output)))

    def validated(share, batch):
        restored.clear()
        monkeypatch.setattr(distributed, 'shard_range', lambda _: share)
        opt['val']['batch_size'] = batch
        evaluator_of(model, opt, loader).evaluate(3)
        return torch.cat(restored)

    whole = validated(range(7), 4)
    before = torch.get_rng_state()
    shares = [validated(range(4), 3), validated(range(4, 7), 2)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(torch.cat(shares), whole, rtol=0, atol=0)
    torch.rand(1)
    torch.testing.assert_close(validated(range(7), 7), whole, rtol=0, atol=0)
    image = loader.dataset[0]['lq'][None]
    assert not torch.equal(model.network(image), model.network(image))


def test_images_without_truth_have_steps_and_no_sheet(model_options, tmp_path):
    model = build_model(model_options)
    model.update_learning_rate(4)
    loader = loader_of(model_options, 'val')

    class Untrue:
        dataset = loader.dataset

        def __iter__(self):
            return ({key: value for key, value in batch.items() if key != 'gt'} for batch in loader)

    evaluator_of(model, model_options, Untrue()).evaluate(4)
    folder = tmp_path / 'visualization' / 'photos_val'
    assert [path.name for path in folder.iterdir()] == ['steps_4.png']


@pytest.mark.parametrize('full_for', ['photos_val/sheet_4.png', 'tile_000/tile_000_4.png', 'scores.csv'])
def test_a_full_disk_in_validation(model_options, tmp_path, little_room, monkeypatch, full_for):
    model = build_model(model_options)
    model.update_learning_rate(4)
    model_options['val']['save_img'] = 'tile' in full_for
    evaluator = evaluator_of(model, model_options, 'val')
    if full_for == 'scores.csv':
        monkeypatch.setattr(evaluator, '_write_sheets', lambda *_: None)
        monkeypatch.setattr(evaluator, '_keep_if_best', lambda *_: '')
    monkeypatch.setattr(sys, 'stderr', io.StringIO())  # pytest redirects it to a file
    with little_room(10), pytest.raises(LNCAError, match='make room, then resume with --auto_resume') as error:
        evaluator.evaluate(4)
    assert full_for in str(error.value)
    assert '\n' not in str(error.value)
    assert [file for file in tmp_path.rglob('*') if file.is_file()] == []


def test_metrics_of_basicsr_work_too(model_options, tmp_path):
    batched = build_model(model_options)
    loader = loader_of(model_options, 'val')
    batched.update_learning_rate(4)
    evaluator_of(batched, model_options, loader).evaluate(4)
    for name in ('psnr', 'ssim'):
        model_options['val']['metrics'][name]['type'] = f'calculate_{name}'
    evaluator_of(batched, model_options, loader).evaluate(4)
    with open(tmp_path / 'scores.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for first, second in zip(rows[:2], rows[2:], strict=True):
        assert float(first['restored']) == pytest.approx(float(second['restored']), abs=1e-9)


def test_a_gain_is_positive_where_lower_is_better(model_options, tmp_path, monkeypatch, log):
    monkeypatch.setattr(scores, '_sum_of_scores', lambda images, truth, options: len(images) * 9.0 - images.mean() / 99)
    model_options['val']['metrics'] = {'error': {'type': 'calculate_psnr', 'crop_border': 0, 'better': 'lower'}}
    model_options['val']['selection_metric'] = 'error'
    model = build_model(model_options)
    model.update_learning_rate(4)
    written = {}

    class Writer:
        add_image = staticmethod(lambda *arguments, **more: None)
        add_scalar = staticmethod(lambda name, value, iteration: written.update({name: value}))

    loader = loader_of(model_options, 'val')
    evaluator = Evaluator(model, [loader], model_options, Checkpointer(model, model_options['path']), Writer())
    evaluator.evaluate(4)
    with open(tmp_path / 'scores.csv', newline='') as file:
        (row,) = csv.DictReader(file)
    gain = float(row['corrupted']) - float(row['restored'])
    assert gain != 0
    assert float(row['gain']) == written['metrics/photos_val/error_gain'] == pytest.approx(gain)
    assert evaluator.gains['photos_val']['error'] == pytest.approx(gain / float(row['corrupted']))
    assert f'gain: {gain:+.4f}' in log.text


def test_the_autoencoder_is_scored_by_its_ceiling(model_options):
    model = build_model(model_options)
    model.update_learning_rate(1)
    item = next(iter(loader_of(model_options, 'val')))
    model.feed_data(item)
    model.test()
    autoencoder = model.network.autoencoder.eval()
    with torch.no_grad():
        expected = autoencoder.decode(autoencoder.encode(model.gt)[0], autoencoder.encode(model.lq)[1])
    torch.testing.assert_close(model.output, expected)
    model.update_learning_rate(4)
    model.test()
    with torch.no_grad():
        torch.testing.assert_close(model.output, model.network.eval()(model.lq))


def test_restoration_in_bfloat16(model_options):
    item = next(iter(loader_of(model_options, 'val')))
    restored = {}
    for precision in ('float32', 'bfloat16'):
        torch.manual_seed(0)
        model = build_model({**model_options, 'val': {**model_options['val'], 'precision': precision}})
        model.feed_data(item)
        model.test()
        restored[precision] = model.output
        assert model.output.dtype == torch.float32
    difference = (restored['bfloat16'] - restored['float32']).abs().max()
    assert 0 < difference < 0.02


def test_validation_leaves_training_as_it_was(model_options):
    model = build_model(model_options)
    train(model, model_options, range(1, 5))
    modes = {name: module.training for name, module in model.network.named_modules()}
    assert modes['automaton.dropout']
    assert not modes['autoencoder.encoder.down1.norm']
    evaluator_of(model, model_options, 'val').evaluate(4)
    assert {name: module.training for name, module in model.network.named_modules()} == modes


@pytest.mark.parametrize('with_empty_phase', [False, True])
def test_the_best_network_is_kept_and_scored_at_the_end(model_options, tmp_path, monkeypatch, with_empty_phase):
    model_options['val']['val_freq'] = 2
    if with_empty_phase:
        model_options = with_joint_phase(model_options, iters=0)
    model = build_model(model_options)
    best = tmp_path / 'models' / 'net_g_best.pth'
    evaluator = evaluator_of(model, model_options, 'val', 'val_test')
    train(model, model_options, range(1, 4))
    evaluator.evaluate(2)
    assert not best.exists()  # the ceiling of the autoencoder does not count
    train(model, model_options, [4])
    evaluator.evaluate(4)
    weights = checkpoint.load(best)['params']
    assert same(weights, model.network.state_dict())
    evaluator.best['value'] = 2.0  # nothing can beat it
    train(model, model_options, [5, 6])
    evaluator.evaluate(6)
    evaluator.evaluate(6)  # once
    assert same(weights, checkpoint.load(best)['params'])
    assert not same(weights, model.network.state_dict())
    trained, scored = state_of(model.network), []
    test_batch = model.test
    monkeypatch.setattr(model, 'test', lambda: (scored.append(state_of(model.network)), test_batch()))
    evaluator.evaluate_best(7)
    assert scored and all(same(weights, network) for network in scored)
    assert same(trained, model.network.state_dict())
    datasets = [row.split(',')[2] for row in (tmp_path / 'scores.csv').read_text().splitlines()[1:]]
    assert datasets == ['photos_val'] * 6 + ['photos_test'] * 2


@pytest.mark.parametrize('iteration', [2, 5])
def test_a_nan_names_the_loss_the_iteration_and_the_phase(model_options, iteration):
    model_options['train']['max_consecutive_nonfinite'] = 0
    model = build_model(model_options)
    train(model, model_options, range(1, iteration))
    before = state_of(model.network)
    with torch.no_grad():
        part = model.network.autoencoder if iteration == 2 else model.network.automaton
        next(part.parameters()).fill_(float('nan'))
    phase = model.phases[iteration > 3].name
    with pytest.raises(LNCAError, match=rf'the loss reconstruction is nan in iteration {iteration} of phase {phase}'):
        train(model, model_options, [iteration])
    changed = [name for name, value in model.network.named_parameters() if not torch.equal(before[name], value)]
    assert len(changed) == 1  # the one that was set to NaN above


@pytest.mark.parametrize('iteration', [2, 5])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_training_goes_on_after_a_batch_of_nans(model_options, iteration, value):
    model = build_model(model_options)
    train(model, model_options, range(1, iteration))
    before, optimizer = state_of(model.network), copy.deepcopy(model.optimizer.state_dict()['state'])
    in_pool = len(model.pool)
    model.update_learning_rate(iteration)
    model.feed_data({'gt': torch.full((4, 3, 16, 16), value)})
    model.optimize_parameters(iteration)
    assert model.skipped > 0
    assert len(model.pool) == in_pool
    if iteration == 2:  # both steps of the batch were skipped: nothing has changed
        assert same(before, model.network.state_dict())
        assert {name: entry['step'] for name, entry in model.optimizer.state_dict()['state'].items()} == {
            name: entry['step'] for name, entry in optimizer.items()
        }
    train(model, model_options, range(iteration + 1, 8))
    assert model.skipped_in_a_row == 0
    assert all(tensor.isfinite().all() for tensor in model.network.state_dict().values())
    assert all(tensor.isfinite().all() for tensor in model.pool.state_dict()['tensors'].values())


def test_a_second_step_that_is_skipped_leaves_what_the_first_did(model_options, monkeypatch):
    model_options['train']['ema_decay'] = 0.5
    model = build_model(model_options)
    train(model, model_options, [1])
    between = {}
    second = model.equivalence_losses

    def broken(*images):
        between.update(state_of(model.network))
        return {name: loss * float('nan') for name, loss in second(*images).items()}

    monkeypatch.setattr(model, 'equivalence_losses', broken)
    before, average = state_of(model.network), state_of(model.net_g_ema)
    train(model, model_options, [2])
    assert model.skipped == 1
    assert same(between, model.network.state_dict())
    running = [name for name in before if 'running_mean' in name]
    assert not any(torch.equal(before[name], between[name]) for name in running if 'autoencoder' in name)
    assert not same(average, model.net_g_ema.state_dict())

    # Without any step the average does not change; the number of skipped steps is saved.
    monkeypatch.setattr(model, 'equivalence_losses', lambda *images: {})
    average = state_of(model.net_g_ema)
    assert not same(average, model.network.state_dict())
    model.update_learning_rate(3)
    model.feed_data({'gt': torch.full((4, 3, 16, 16), float('nan'))})
    model.optimize_parameters(3)
    assert same(average, model.net_g_ema.state_dict())
    assert (model.skipped, model.skipped_in_a_row) == (2, 2)
    train(model, model_options, [3])
    model.save(0, 3)
    resumed = build_model(model_options)
    resumed.resume_training(checkpoint.load(f'{model_options["path"]["training_states"]}/3.state'))
    assert (resumed.skipped, resumed.skipped_in_a_row) == (2, 0)


def test_moving_average(model_options, tmp_path):
    model_options['train']['ema_decay'] = 0.5
    model = build_model(model_options)
    train(model, model_options, range(1, 8))
    average, network = model.net_g_ema.state_dict(), model.network.state_dict()
    assert not same(average, network)
    running = [name for name in network if 'running' in name]
    assert running
    assert all(torch.equal(average[name], network[name]) for name in running)
    model.save(0, 7)
    saved = checkpoint.load(tmp_path / 'models' / 'net_g_7.pth')
    assert same(saved['params'], network)
    assert same(saved['params_ema'], average)


def test_automaton_on_pixels(model_options):
    opt = pixel_options(model_options)
    model = build_model(opt)
    assert isinstance(model.network, PixelViTCA)
    before = state_of(model.network)
    train(model, opt, range(1, 8))
    assert not same(before, model.network.state_dict())
    assert model.log_dict.keys() == {'state_max'} | {
        f'l_automaton_{n}' for n in ('reconstruction', 'output_overflow', 'hidden_overflow')
    }


def test_training_lowers_the_loss(model_options):
    opt = plain_options(model_options)
    opt['train'] |= {'total_iter': 200, 'pixel_opt': {'type': 'MSELoss'}}
    model = build_model(opt)
    batch = next(iter(loader_of(opt, 'train')))
    losses = []
    for iteration in range(1, 201):
        model.update_learning_rate(iteration)
        model.feed_data(batch)
        model.optimize_parameters(iteration)
        losses.append(model.log_dict['l_training_pixel'])
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_batch_of_one_without_negatives(model_options):
    model_options['datasets']['train']['batch_size_per_gpu'] = 1
    with pytest.raises(LNCAError, match='the negatives of distance_opt'):
        check_model(LNCAModel, model_options)
    del model_options['train']['autoencoder']['distance_opt']
    check_model(LNCAModel, model_options)
    model = build_model(model_options)
    train(model, model_options, [1])
    assert 'l_autoencoder_reconstruction' in model.log_dict


def states(tmp_path):
    return sorted(path.name for path in (tmp_path / 'training_states').iterdir())


def test_what_may_have_diverged_replaces_no_checkpoint(model_options, tmp_path):
    model = build_model(model_options)
    checkpointer = Checkpointer(model, model_options['path'], keep_last=1)
    train(model, model_options, [1])
    checkpointer.save(1, epoch=0)
    model.update_learning_rate(2)
    model.feed_data({'gt': torch.full((4, 3, 16, 16), float('nan'))})
    model.optimize_parameters(2)
    checkpointer.save(2, epoch=0)
    assert checkpointer.last_saved == 1
    assert states(tmp_path) == ['1.state']
    assert not (tmp_path / 'models' / 'net_g_2.pth').exists()
    model.opt['train']['max_consecutive_nonfinite'] = 2
    model.update_learning_rate(3)
    model.feed_data({'gt': torch.full((4, 3, 16, 16), float('nan'))})
    with pytest.raises(NonFiniteError, match='lower train.autoencoder.optim_g.lr'):
        model.optimize_parameters(3)
    train(model, model_options, [3])
    checkpointer.save(3, epoch=0)
    assert states(tmp_path) == ['3.state']


def test_states_have_their_order_also_where_the_clock_goes_back(tmp_path):
    for number in (3, 1, 2):
        state = tmp_path / f'{number}.state'
        state.touch()
        touch_as_latest(state)
        os.utime(state, ns=(state.stat().st_mtime_ns + 3600 * 10**9,) * 2)
        touch_as_latest(state)
    assert [path.stem for path in list_checkpoints(tmp_path)] == ['3', '1', '2']


def test_the_best_network_is_chosen_anew_where_the_file_is_of_another(model_options, tmp_path):
    model = build_model(model_options)
    train(model, model_options, range(1, 6))
    checkpointer, evaluator = Checkpointer(model, model_options['path']), evaluator_of(model, model_options, 'val')
    evaluator.best = {'value': 0.5, 'iter': 4}
    checkpointer.save_network('best', best=evaluator.best)
    state = evaluator.state_dict()

    def resumed():
        other = evaluator_of(model, model_options, 'val')
        other.load_state_dict(state, 5, is_due=False)
        return other.best

    assert resumed() == {'value': 0.5, 'iter': 4}
    # The run finds a better network after its last checkpoint, and is killed.
    checkpointer.save_network('best', best={'value': 0.6, 'iter': 6})
    assert resumed() == {}
    (tmp_path / 'models' / 'net_g_best.pth').unlink()
    assert resumed() == {}


def another_optimizer(opt):
    for phase in ('autoencoder', 'automaton'):
        opt['train'][phase]['optim_g'] = {'type': 'SGD', 'lr': 0.01}


def another_phase(opt):
    opt['train'] = with_joint_phase(opt)['train']


def longer_autoencoder(opt):
    opt['train']['autoencoder']['iters'] += 3
    opt['train']['total_iter'] += 3


def shorter_automaton(opt):
    opt['train']['total_iter'] -= opt['train']['automaton']['iters'] - 1
    opt['train']['automaton']['iters'] = 1


def another_tile(opt):
    opt['datasets']['train']['gt_size'] = 8


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (another_optimizer, 'its optimizers are Adam, Adam, not SGD, SGD'),
        (another_phase, 'its phases are autoencoder, automaton, not autoencoder, automaton, joint'),
        (longer_autoencoder, 'of the 3 iterations of its phase autoencoder, 3 are done, and .* is 6'),
        (shorter_automaton, 'of the 4 iterations of its phase automaton, 2 are done, and .* is 1'),
        (another_tile, 'tiles of'),
    ],
)
def test_a_state_of_other_options_is_refused_in_one_line(model_options, tmp_path, change, words):
    model = build_model(model_options)
    train(model, model_options, range(1, 6))
    model.save(0, 5)
    path = tmp_path / 'training_states' / '5.state'
    state = checkpoint.load(path)
    model_options['path']['resume_state'] = str(path)
    change(model_options)
    model = build_model(model_options)
    with pytest.raises(LNCAError, match=f'5.state: is of a training with other options.*{words}') as error:
        model.resume_training(state)
    assert '\n' not in str(error.value)


@pytest.fixture
def resumed(model_options, tmp_path):
    """A function that resumes a model after two iterations with other options of the optimizer."""

    def resume(before, after):
        options = model_options['train']['autoencoder']['optim_g']
        options.clear()
        options.update({'lr': 0.01, **before})
        model = build_model(model_options)
        train(model, model_options, [1, 2])
        model.save(0, 2)
        options.clear()
        options.update({'type': before['type'], 'lr': 0.01, **after})
        other = build_model(model_options)
        other.resume_training(checkpoint.load(tmp_path / 'training_states' / '2.state'))
        return other

    return resume


def test_options_of_the_optimizer_may_change_on_resuming(resumed, model_options, log):
    after = {'weight_decay': 0.1, 'betas': [0.5, 0.9], 'lr': 0.02, 'amsgrad': True}
    model = resumed({'type': 'Adam', 'eps': 1e-6}, after)
    (group,) = model.optimizers[0].param_groups
    assert (group['weight_decay'], list(group['betas']), group['initial_lr'], group['eps']) == (
        0.1,
        [0.5, 0.9],
        0.02,
        1e-8,
    )
    assert group['lr'] == pytest.approx(2 * 0.01 * (1 + math.cos(math.pi / 3)) / 2)
    (line,) = [line for line in log.text.splitlines() if 'optim_g: changed' in line]
    assert (
        'train.autoencoder.optim_g: changed amsgrad from the default to True, '
        'betas from the default to [0.5, 0.9], '
        'eps from 1e-06 to the default, lr from 0.01 to 0.02, weight_decay from the default to 0.1.'
    ) in line
    train(model, model_options, [3])
    assert all(state['step'] == 6 for state in model.optimizer.state.values())
    assert model.skipped == 0


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        ({'type': 'SGD'}, {'momentum': 0.9}),
        ({'type': 'SGD', 'momentum': 0.9}, {}),
        ({'type': 'RMSprop'}, {'momentum': 0.9, 'centered': True}),
    ],
)
def test_an_optimizer_resumes_with_more_state_or_less(resumed, model_options, before, after):
    model = resumed(before, after)
    train(model, model_options, [3])
    assert model.skipped == 0


def test_an_unchanged_optimizer_resumes_in_silence(resumed, log):
    same_options = {'type': 'Adam', 'betas': [0.9, 0.99]}
    resumed(same_options, same_options)
    assert 'changed' not in log.text


def test_a_pool_of_whole_states_is_refused_in_one_line(model_options, tmp_path):
    model = build_model(model_options)
    train(model, model_options, range(1, 6))
    model.save(0, 5)
    path = tmp_path / 'training_states' / '5.state'
    model_options['path']['resume_state'] = str(path)
    state = checkpoint.load(path)
    for rank in state['ranks']:
        tensors = rank['pool']['tensors']
        tensors['state'] = torch.cat([tensors['state'][:, :4], tensors['state']], dim=1)
    with pytest.raises(LNCAError, match=r'5.state: .*its pool keeps \{12\} channels .* change 8'):
        build_model(model_options).resume_training(state)
