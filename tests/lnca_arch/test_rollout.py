"""The fast rollout against the plain one that defines it."""

import functools
import logging

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from lnca_arch import NAFCA, ViTCA
from lnca_arch.acceleration import fused_rollout, halo_blocks
from lnca_arch.acceleration.compiled_step import CompiledOrEager
from lnca_arch.acceleration.fused_form import fused_form
from lnca_model.training.profiler import PeakMemory

RULES = {'nafca': NAFCA, 'vitca': ViTCA, 'depthwise': functools.partial(NAFCA, perception='depthwise')}
CPU = torch.device('cpu')


def rule_of(name, dtype=torch.float64, **more):
    """A small rule whose updates are not zero, as they are in a new one."""
    rule = RULES[name](3, 3, 4, embed_channels=16, **more).to(dtype)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return rule


def compare(rule, size=(2, 3, 5, 6), steps=5, update_rate=1.0, gradients=True, tolerance=1e-6):
    """The fast rollout gives the plain one's states and gradients, as shares of the largest value."""
    parameters = list(rule.parameters())
    state = rule.seed(torch.rand(size, dtype=parameters[0].dtype)).requires_grad_(gradients)
    results = []
    for run in (rule.reference_rollout, rule):
        torch.manual_seed(1)
        with torch.set_grad_enabled(gradients):
            final = run(state, steps, update_rate)
        found = torch.autograd.grad(final.square().mean(), [state, *parameters]) if gradients else ()
        results.append((final.detach(), *found))
    for plain, fast in zip(*results, strict=True):
        assert plain.abs().max() > 0
        assert (plain - fast).abs().max() <= tolerance * plain.abs().max()


@pytest.fixture(params=['uncompiled', 'compiled'])
def compilation(request, monkeypatch):
    """Both ways in which a step can be computed."""
    if request.param == 'compiled':
        compile_here(monkeypatch)
    fused_rollout.compiled.cache_clear()
    yield request.param
    if request.param == 'compiled':
        assert all(torch._dynamo.utils.counters['stats'][name] for name in ('calls_captured', 'unique_graphs'))
    fused_rollout.compiled.cache_clear()


def compile_here(monkeypatch):
    monkeypatch.delenv('TORCHDYNAMO_DISABLE')
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize('name', RULES)
def test_outputs_and_gradients(name, compilation):
    rule = rule_of(name).eval()
    compare(rule)
    compare(rule, gradients=False)


@pytest.mark.parametrize('name', RULES)
def test_masks_and_dropout_are_the_same(name, compilation):
    rule = rule_of(name).train()
    compare(rule, update_rate=0.5)
    compare(rule, update_rate=0.5, gradients=False)


def test_dropout_acts_in_training():
    """So that the test above compares more than a dropout of nothing."""
    rule = rule_of('nafca', dropout=0.5).train()
    state = rule.seed(torch.rand(1, 3, 8, 8, dtype=torch.float64))
    assert not torch.equal(rule(state, 2), rule(state, 2))
    assert torch.equal(rule.eval()(state, 2), rule(state, 2))


@pytest.mark.parametrize('name', RULES)
@pytest.mark.parametrize('memory', fused_rollout.CHECKPOINT_POLICIES)
def test_recomputation_replays_masks_and_dropout(name, memory):
    rule = rule_of(name).train()
    rule.activation_checkpointing = memory
    compare(rule, update_rate=0.5)


def test_recomputation_in_a_compiled_rollout(monkeypatch):
    compile_here(monkeypatch)
    fused_rollout.compiled.cache_clear()
    rule = rule_of('nafca').train()
    rule.activation_checkpointing = 'full'
    compare(rule, update_rate=0.5)
    fused_rollout.compiled.cache_clear()


@pytest.mark.parametrize('name', RULES)
@pytest.mark.parametrize('size', [(1, 3, 1, 1), (1, 3, 1, 7), (3, 3, 2, 2), (2, 3, 13, 6), (1, 3, 6, 40)])
@pytest.mark.parametrize('at_once', [1, 12, 2048])
def test_any_size_in_any_parts(name, size, at_once, monkeypatch):
    monkeypatch.setattr(halo_blocks, 'CELLS_PER_BLOCK', at_once)
    monkeypatch.setattr(halo_blocks, 'MAX_COLUMNS', 4)
    compare(rule_of(name).eval(), size, update_rate=0.5, gradients=False)


@pytest.mark.parametrize('shape', [(1, 1, 1), (7, 2, 2), (2, 13, 6), (1, 3, 40), (2, 5, 4), (1, 9, 17)])
@pytest.mark.parametrize('at_once', [1, 12, 2048])
@pytest.mark.parametrize('columns', [1, 5, 64])
def test_parts_hold_every_cell_once_with_its_neighbours(shape, at_once, columns, monkeypatch):
    monkeypatch.setattr(halo_blocks, 'CELLS_PER_BLOCK', at_once)
    monkeypatch.setattr(halo_blocks, 'MAX_COLUMNS', columns)
    times = torch.zeros(shape, dtype=torch.int)
    seen = set()
    for part in halo_blocks.halo_blocks(torch.Size(shape), CPU):
        times[part.images, part.rows.written, part.columns.written] += 1
        for span, length in ((part.rows, shape[1]), (part.columns, shape[2])):
            assert span.read.start <= max(0, span.written.start - 1)
            assert min(length, span.written.stop + 1) <= span.read.stop <= length
            assert range(length)[span.read][span.interior] == range(length)[span.written]
        seen.add((part.rows.read.stop - part.rows.read.start, part.columns.read.stop - part.columns.read.start))
    assert (times == 1).all()
    assert len(seen) == 1


@pytest.mark.parametrize('name', ['nafca', 'depthwise', pytest.param('vitca', marks=pytest.mark.slow)])
def test_changing_shapes_compile(name, monkeypatch):
    compile_here(monkeypatch)
    fused_rollout.compiled.cache_clear()
    rule = rule_of(name).eval()
    for size in ((1, 3, 4, 4), (3, 3, 5, 4), (2, 3, 7, 6), (4, 3, 4, 9)):
        compare(rule, size, steps=2, gradients=False)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] < 4
    fused_rollout.compiled.cache_clear()


@pytest.mark.parametrize('size', [(2, 3, 4, 4), (1, 3, 1, 1)])
def test_the_state_that_it_starts_from_stays(size):
    rule = rule_of('nafca').eval()
    state = rule.seed(torch.rand(size, dtype=torch.float64))
    before = state.clone()
    with torch.no_grad():
        rule(state, 3)
    assert torch.equal(state, before)


@pytest.mark.parametrize('name', RULES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(name, dtype):
    rule = rule_of(name, torch.float32).eval()
    with torch.autocast('cpu', dtype=dtype):
        compare(rule, gradients=False, tolerance=0.03)


@pytest.mark.parametrize('name', RULES)
def test_one_thousand_calls_take_no_more_memory(name):
    rule = rule_of(name, torch.float32).eval()
    state = rule.seed(torch.rand(4, 3, 32, 32))
    with torch.no_grad():
        rule(state, 2)
        memory = PeakMemory(CPU)
        for _ in range(1000):
            rule(state, 1)
    # A state kept a call would be 160 MB.
    assert memory.read() < 40e6


@pytest.mark.parametrize('name', RULES)
def test_inference_memory_does_not_grow_with_steps(name):
    rule = rule_of(name, torch.float32).eval()
    state = rule.seed(torch.rand(8, 3, 32, 32))
    with torch.no_grad():
        rule(state, 2)
        memory = PeakMemory(CPU)
        rule(state, 500)
    # What 500 steps change would be 115 MB.
    assert memory.read() < 40e6


@pytest.mark.parametrize('name', RULES)
def test_checkpointing_decides_what_is_kept(name):
    """Bytes that autograd keeps until the gradients are computed."""

    def kept(memory, steps=8):
        rule.activation_checkpointing = memory
        storages = {}
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: storages.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
        )
        with hooks:
            final = rule(state, steps)
        assert final.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    rule = rule_of(name, torch.float32).train()
    state = rule.seed(torch.rand(2, 3, 16, 16))
    full, alternate, none = (kept(policy) for policy in ('full', 'alternate', 'none'))
    assert full < 0.2 * none
    assert 0.4 * none < alternate < 0.7 * none
    assert kept(None) == none


def test_a_large_batch_is_recomputed(monkeypatch):
    rule = rule_of('nafca', torch.float32).train()
    recomputed = []
    checkpoint = fused_rollout.checkpoint
    monkeypatch.setattr(
        fused_rollout, 'checkpoint', lambda *given, **how: recomputed.append(1) or checkpoint(*given, **how)
    )
    state = rule.seed(torch.rand(2, 3, 8, 8))
    rule(state, 5)
    assert not recomputed
    monkeypatch.setattr(
        fused_rollout, 'MAX_ACTIVATION_BYTES', 5 * 2 * 8 * 8 * fused_form(rule).activations_per_cell * 4 - 1
    )
    rule(state, 5)
    assert len(recomputed) == 5


def test_uncompiled_where_there_is_no_compiler(monkeypatch, caplog):
    compile_here(monkeypatch)
    fused_rollout.compiled.cache_clear()
    rule = rule_of('nafca').eval()
    # Not by monkeypatch, which cannot restore options that are aliases.
    no_compiler = torch._inductor.config.patch({'cpp.cxx': ('no-such-compiler',), 'force_disable_caches': True})
    with no_compiler, caplog.at_level(logging.WARNING, logger='lnca'):
        compare(rule, gradients=False)
        compare(rule, gradients=False)
    (message,) = [record.message for record in caplog.records if record.name == 'lnca']
    assert 'uncompiled' in message
    assert 'no-such-compiler' in message
    fused_rollout.compiled.cache_clear()


def test_other_errors_are_not_hidden(monkeypatch):
    def broken(*_):
        raise torch.OutOfMemoryError('no memory')

    step = CompiledOrEager(broken)
    step._compiled = broken
    with pytest.raises(torch.OutOfMemoryError):
        step()
    assert not issubclass(torch.OutOfMemoryError, TorchDynamoException)
