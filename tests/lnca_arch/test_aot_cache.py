"""The step that is compiled once and kept on disk, against the plain rollout."""

import functools
import logging
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from lnca_arch import NAFCA, ViTCA
from lnca_arch.acceleration import aot_cache, fused_nafca, fused_vitca
from lnca_arch.acceleration.fused_form import fused_form

SIZES = [(1, 2, 2), (2, 3, 2), (1, 8, 8), (9, 4, 4), (1, 13, 70), (2, 50, 45)]


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    """A folder of programs for all tests of this module: each takes half a minute to compile."""
    return tmp_path_factory.mktemp('cache')


@pytest.fixture
def kept(cache, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(cache))
    monkeypatch.delenv('TORCHDYNAMO_DISABLE')
    monkeypatch.setattr(aot_cache, 'CELLS_WORTH_COMPILING', 0)
    aot_cache._program.cache_clear()
    yield cache / 'lnca'
    aot_cache._program.cache_clear()


class CompiledOrEager(BaseException):
    """Not an Exception, without which the rollout would go on."""


@pytest.fixture
def no_compiling(monkeypatch):
    def compile_(*_):
        raise CompiledOrEager

    monkeypatch.setattr(aot_cache, '_compile', compile_)


def rule_of(kind):
    torch.manual_seed(0)
    rule = kind(3, 3, 4, embed_channels=16).eval()
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return rule


def compare(rule, size, update_rate=1.0):
    state = rule.seed(torch.rand(size[0], 3, *size[1:]))
    found = []
    with torch.no_grad():
        for rollout in (rule.reference_rollout, rule):
            torch.manual_seed(1)
            found.append(rollout(state, 5, update_rate))
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()


@pytest.mark.parametrize(
    ('kind', 'update_rate'),
    [
        (NAFCA, 1.0),
        pytest.param(functools.partial(NAFCA, perception='depthwise'), 1.0, marks=pytest.mark.slow),
        pytest.param(ViTCA, 0.5, marks=pytest.mark.slow),
    ],
)
def test_one_program_for_every_size(kind, update_rate, kept):
    """Of other parameters, too, and without a change to the random numbers."""
    rule = rule_of(kind)
    before = set(kept.glob('*'))
    for size in SIZES:
        compare(rule, size, update_rate)
    rule.head.weight.data.mul_(2)
    compare(rule, SIZES[-1], update_rate)
    for parameter in rule.parameters():  # in another order in memory
        parameter.data = parameter.data.transpose(0, -1).contiguous().transpose(0, -1)
    compare(rule, SIZES[-1], update_rate)
    (program,) = set(kept.iterdir()) - before  # nothing else is left behind
    assert program.match(f'{fused_form(rule).update.__module__.rpartition(".")[2]}-*.pt2')


def test_the_next_process_does_without_the_compiler(kept):
    compare(rule_of(NAFCA), SIZES[0])
    code = (
        'import sys, torch\n'
        'from lnca_arch import NAFCA\n'
        'from lnca_arch.acceleration import aot_cache\n'
        'loaded = []\n'
        'load = aot_cache._load\n'
        'aot_cache._load = lambda path: loaded.append(path) or load(path)\n'
        f'torch.set_num_threads({torch.get_num_threads()})\n'
        'rule = NAFCA(3, 3, 4, embed_channels=16).eval()\n'
        'with torch.no_grad():\n'
        '    rule(rule.seed(torch.rand(1, 3, 9, 9)), 3)\n'
        'print(len(loaded), "torch._dynamo" in sys.modules)\n'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False, env=os.environ)
    assert result.stdout.split() == ['1', 'False'], result.stderr


def test_little_work_is_not_compiled(kept, no_compiling, monkeypatch):
    monkeypatch.setattr(aot_cache, 'CELLS_WORTH_COMPILING', 1 << 20)
    rule = NAFCA(2, 2, 2, embed_channels=4).eval()
    with torch.no_grad():
        state = rule.seed(torch.rand(1, 2, 32, 32))
        rule(state, 1000)
        with pytest.raises(CompiledOrEager):
            rule(state, 25)


def test_other_cells_are_computed_otherwise(kept, no_compiling, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('TORCHDYNAMO_DISABLE', '1')
    with torch.no_grad():
        small = rule_of(NAFCA)
        small(small.seed(torch.rand(1, 3, 4, 4)), 1)
    monkeypatch.delenv('TORCHDYNAMO_DISABLE')
    monkeypatch.setattr('lnca_arch.acceleration.fused_rollout.compiled', aot_cache.make_step)
    with torch.no_grad():
        small(small.seed(torch.rand(1, 3, 1, 4)), 1)
        with torch.autocast('cpu', torch.bfloat16):
            small(small.seed(torch.rand(1, 3, 4, 4)), 1)
        small.train()
        small(small.seed(torch.rand(1, 3, 4, 4)), 1)

        class Mine(NAFCA):
            pass

        mine = rule_of(Mine)
        mine(mine.seed(torch.rand(1, 3, 4, 4)), 1)
        double = rule_of(NAFCA).double()
        double(double.seed(torch.rand(1, 3, 4, 4, dtype=torch.float64)), 1)
    small(small.seed(torch.rand(1, 3, 4, 4)), 1).sum().backward()
    with torch.no_grad(), pytest.raises(CompiledOrEager):
        small.eval()(small.seed(torch.rand(1, 3, 4, 4)), 1)


def without_a_program(caplog):
    """What the log says when nothing can be kept, after states that are right."""
    rule = rule_of(NAFCA)
    with caplog.at_level(logging.WARNING, logger='lnca'):
        compare(rule, SIZES[1])
        compare(rule, SIZES[2])
    return [record.message for record in caplog.records if record.name == 'lnca']


def test_where_it_cannot_be_kept_it_is_said_once(kept, tmp_path, monkeypatch, caplog):
    (tmp_path / 'lnca').write_text('in the way')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr('lnca_arch.acceleration.fused_rollout.compiled', aot_cache.make_step)
    compiling, cannot = without_a_program(caplog)
    assert compiling == f'Compiling the automaton, which takes about half a minute; it is kept in {tmp_path}/lnca.'
    assert cannot.startswith('The compiled automaton cannot be kept: ')


def test_a_broken_program(kept, no_compiling, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr('lnca_arch.acceleration.fused_rollout.compiled', aot_cache.make_step)
    monkeypatch.setattr(aot_cache, '_digest', lambda *_: 'a')
    (tmp_path / 'lnca').mkdir(mode=0o700)
    (tmp_path / 'lnca' / 'a.pt2').write_bytes(b'junk')
    (message,) = without_a_program(caplog)
    assert message.startswith('The compiled automaton cannot be kept: ')


@pytest.mark.parametrize('there', [True, False])
def test_a_folder_that_others_can_write_to(there, kept, no_compiling, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr('lnca_arch.acceleration.fused_rollout.compiled', aot_cache.make_step)
    monkeypatch.setattr(aot_cache, '_digest', lambda *_: 'a')
    (tmp_path / 'lnca').mkdir()
    (tmp_path / 'lnca').chmod(0o770)
    if there:
        (tmp_path / 'lnca' / 'a.pt2').write_bytes(b'')
    assert 'lnca can be written to by other users' in without_a_program(caplog)[-1]


def test_no_home(kept, no_compiling, monkeypatch, caplog):
    def home():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
    monkeypatch.setattr('pathlib.Path.home', home)
    monkeypatch.setattr('lnca_arch.acceleration.fused_rollout.compiled', aot_cache.make_step)
    assert without_a_program(caplog) == ['The compiled automaton cannot be kept: Could not determine home directory.']


def test_without_a_compiler(kept, tmp_path):
    code = (
        'import torch\n'
        'from lnca_arch import NAFCA\n'
        'from lnca_arch.acceleration import aot_cache\n'
        'aot_cache.CELLS_WORTH_COMPILING = 0\n'
        'rule = NAFCA(3, 3, 4, embed_channels=16).eval()\n'
        'state = rule.seed(torch.rand(1, 3, 9, 9))\n'
        'with torch.no_grad():\n'
        '    for _ in range(2):\n'
        '        torch.testing.assert_close(rule(state, 3), rule.reference_rollout(state, 3))\n'
        'print("the same")\n'
    )
    without = {'CXX': 'no-such-compiler', 'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1', 'XDG_CACHE_HOME': str(tmp_path)}
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False, env=os.environ | without
    )
    assert result.stdout == 'the same\n', result.stderr
    said = [line for line in result.stderr.splitlines() if 'automaton' in line]
    assert [line.split(':')[0] for line in said] == [
        'Compiling the automaton, which takes about half a minute; it is kept in ' + str(tmp_path / 'lnca.'),
        'The compiled automaton cannot be kept',
        'The automaton runs uncompiled, more slowly',
    ]
    assert not list(tmp_path.rglob('*.pt2'))


def test_a_program_belongs_to_code_processor_and_threads(monkeypatch):
    signature = aot_cache.ProgramSignature(fused_nafca.gate_update, 3, 7, False, (), (torch.Size([2]),), None)
    code = pathlib.Path.read_bytes
    names = {aot_cache._digest(signature, 2), aot_cache._digest(signature, 1)}
    names.add(aot_cache._digest(signature._replace(masked=True), 2))
    names.add(aot_cache._digest(signature._replace(leaves=(torch.Size([3]),)), 2))
    names.add(aot_cache._digest(signature._replace(update=fused_vitca.fused_update), 2))
    names.add(aot_cache._digest(signature._replace(update=aot_cache.load_or_compile_step), 2))
    monkeypatch.setattr(torch, '__version__', '9.9')
    names.add(aot_cache._digest(signature, 2))
    monkeypatch.setattr(aot_cache, '_processor', lambda: 'another')
    names.add(aot_cache._digest(signature, 2))
    monkeypatch.setattr('pathlib.Path.read_bytes', lambda path: code(path) + b'# changed')
    names.add(aot_cache._digest(signature, 2))
    assert len(names) == 9
    assert aot_cache._digest(signature, 2) in names
