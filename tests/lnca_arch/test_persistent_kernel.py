"""Rollouts in one kernel: the kernels, interpreted where there is no GPU, and when they are used."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import interpreted_kernels
import pytest
import torch
from interpreted_kernels import CASES, rule_of

from lnca_arch import NAFCA
from lnca_arch.acceleration import fused_nafca, fused_rollout, persistent_kernel
from lnca_arch.acceleration.fused_form import fused_form
from lnca_arch.acceleration.fused_nafca import gate_update
from lnca_arch.acceleration.parameter_folding import normalize
from lnca_arch.acceleration.persistent_kernel import KernelParams, PersistentKernel
from lnca_arch.automata.nafca import LAYER_NORM_EPS

TOLERANCE = {'float32': 1e-5, 'float16': 0.02}

triton = pytest.importorskip('triton')


@pytest.fixture(scope='module')
def differences():
    result = subprocess.run(
        [sys.executable, interpreted_kernels.__file__],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': '.'},
    )
    assert result.returncode == 0, result.stderr
    return dict(zip(CASES, json.loads(result.stdout), strict=True))


@pytest.mark.parametrize('case', CASES, ids=str)
def test_a_kernel_takes_the_steps_of_its_rule(differences, case):
    assert differences[case] <= TOLERANCE[case[1]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', ['nafca, as published', 'vitca, as published'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_on_a_gpu(name, dtype, caplog):
    persistent_kernel._verified.clear()
    rule = rule_of(name, 16, 32).cuda()
    state = rule.seed(torch.rand(4, 16, 8, 8, device='cuda'))
    with torch.no_grad(), torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
        plain, fast = rule.reference_rollout(state, 4), rule(state, 4)
    assert (plain - fast).abs().max() <= persistent_kernel.TOLERANCE[dtype] * plain.abs().max()
    assert not [record for record in caplog.records if record.name == 'lnca']
    assert list(persistent_kernel._verified.values()) == [True]


# --- when they are used, a stand-in taking a kernel's place


@pytest.fixture
def rule(monkeypatch):
    """One whose rollouts would fit, as on a GPU, with nothing trusted yet."""
    monkeypatch.setattr(persistent_kernel, '_verified', {})
    monkeypatch.setattr(fused_rollout, 'is_supported', lambda *_: True)
    stand_in = PersistentKernel('kernel', lambda rule, params: KernelParams([params], {}))
    monkeypatch.setitem(fused_nafca.FORMS, 'gate', fused_nafca.FORMS['gate']._replace(kernel=stand_in))
    return rule_of('nafca', 3, 4)


def use(rule, monkeypatch, take_steps):
    monkeypatch.setattr(persistent_kernel, 'take_steps', take_steps)
    state = rule.seed(torch.rand(2, 3, 4, 4))
    with torch.no_grad():
        torch.testing.assert_close(rule(state, 5), rule.reference_rollout(state, 5))


def test_a_kernel_that_agrees_is_used(rule, monkeypatch, caplog):
    taken = []

    def good(kernel, packed, state, per_cell, steps, dtype):
        taken.append(steps)
        (params,) = packed.linears
        for _ in range(steps):
            state[..., 3:] += gate_update(state, params)

    torch.manual_seed(1)
    for _ in range(3):
        use(rule, monkeypatch, good)
    drawn = torch.rand(3)
    assert taken == [persistent_kernel.TRIAL_STEPS, 5, 5, 5]
    assert not caplog.records
    # The trial draws no random numbers that others would have drawn.
    torch.manual_seed(1)
    for _ in range(3):
        use(rule, monkeypatch, good)
    assert torch.equal(torch.rand(3), drawn)


def test_a_new_rule_hides_nothing(rule, monkeypatch, caplog):
    """Neither of its blocks changes anything yet, so a kernel without them gives the same."""

    def head_alone(kernel, packed, state, per_cell, steps, dtype):
        (params,) = packed.linears
        for _ in range(steps):
            state[..., 3:] += torch.nn.functional.linear(normalize(state, LAYER_NORM_EPS), *params.head)

    use(NAFCA(3, 3, 4, embed_channels=16).eval(), monkeypatch, head_alone)
    assert list(persistent_kernel._verified.values()) == [False]


def failing(*_):
    raise RuntimeError('out of resource: shared memory\nmore')


def wrong(kernel, packed, state, per_cell, steps, dtype):
    state += 0.01


def not_a_number(kernel, packed, state, per_cell, steps, dtype):
    state.fill_(torch.nan)


@pytest.mark.parametrize(
    ('kernel', 'words'), [(failing, 'out of resource: shared memory'), (wrong, 'differs by'), (not_a_number, 'nan')]
)
def test_a_kernel_that_does_not_is_left_and_that_is_said_once(rule, monkeypatch, caplog, kernel, words):
    with caplog.at_level(logging.WARNING, logger='lnca'):
        for _ in range(3):
            use(rule, monkeypatch, kernel)
    (record,) = caplog.records
    assert words in record.message
    assert 'more slowly' in record.message
    assert '\n' not in record.message


def test_no_memory_is_no_reason_to_do_without(rule, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError('no memory')

    with pytest.raises(torch.OutOfMemoryError):
        use(rule, monkeypatch, full)


def test_what_fits(monkeypatch):
    def is_supported(rule, size=(2, 8, 8), dtype=torch.float32, update_rate=1.0):
        fixed = SimpleNamespace(device=torch.device('cuda'), shape=(*size, 3), dtype=dtype)
        return persistent_kernel.is_supported(rule, fused_form(rule), fixed, update_rate)

    rule = rule_of('nafca', 3, 4)
    assert is_supported(rule)
    assert is_supported(rule, (5000, 8, 8))
    assert not is_supported(rule, (2, 8, 9))
    assert not is_supported(rule, (0, 8, 8))
    assert not is_supported(rule, dtype=torch.bfloat16)
    assert not is_supported(rule, update_rate=0.5)
    assert not is_supported(rule.train())
    assert is_supported(rule_of('vitca', 3, 4).train())
    assert not persistent_kernel.is_supported(rule.eval(), fused_form(rule), torch.rand(2, 8, 8, 3), 1.0)
    monkeypatch.setitem(fused_nafca.FORMS, 'gate', fused_nafca.FORMS['gate']._replace(kernel=None))
    assert not is_supported(rule)


def test_gradients_are_taken_by_single_steps(rule, monkeypatch):
    monkeypatch.setattr(persistent_kernel, 'take_steps', wrong)
    state = rule.seed(torch.rand(2, 3, 4, 4))
    torch.testing.assert_close(rule(state, 2), rule.reference_rollout(state, 2))
