"""When CUDA graphs are made and used. Without a GPU, a stand-in takes their place that computes anew when replayed."""

import contextlib
import logging

import pytest
import torch

from lnca_arch import NAFCA
from lnca_arch.acceleration import cuda_graphs


class StandIn:
    """Records what is run within ``with capture(graph)``, as far as :class:`Graph` needs it."""

    made = 0

    def __init__(self):
        StandIn.made += 1
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.again()


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch):
    """What is asked of CUDA besides."""
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: 'stream')
    monkeypatch.setattr(torch.cuda, 'Stream', lambda device: 'another stream')


@pytest.fixture
def graphs(monkeypatch):
    """The number of graphs made so far."""
    StandIn.made = 0
    init = cuda_graphs.Graph.__init__

    def recorded(self, run, fixed, mutable):
        init(self, run, fixed, mutable)
        self._graph.again = lambda: self._result.copy_(run(self._fixed, self._mutable))

    monkeypatch.setattr(cuda_graphs.Graph, '__init__', recorded)
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', StandIn)
    monkeypatch.setattr(torch.cuda, 'graph', lambda graph, **_: contextlib.nullcontext())
    return lambda: StandIn.made


@pytest.fixture
def rule():
    return NAFCA(3, 3, 4, embed_channels=16).eval()


def cells(rule, size=4):
    return torch.rand(1, size, size, 3), torch.rand(1, size, size, rule.mutable_channels)


def run_of(rule):
    """A run that overwrites what it is given to change, as a rollout may, and reads the rule's parameters."""

    def run(fixed, mutable):
        return mutable.mul_(2).add_(fixed.sum() + rule.head.bias.sum())

    return run


def test_a_graph_from_the_second_time_on(graphs, rule):
    run = run_of(rule)
    with torch.no_grad():
        for made in (0, 1, 1, 1):
            fixed, mutable = cells(rule)
            expected = run(fixed.clone(), mutable.clone())
            torch.testing.assert_close(cuda_graphs.run_with_cuda_graph(rule, run, fixed, mutable, ()), expected)
            assert graphs() == made
            rule.head.bias.add_(1)  # as a step of the optimizer does


def test_results_are_not_overwritten_by_the_next(graphs, rule):
    with torch.no_grad():
        results = [cuda_graphs.run_with_cuda_graph(rule, run_of(rule), *cells(rule), ()) for _ in range(4)]
        kept = results[2].clone()
        cuda_graphs.run_with_cuda_graph(rule, run_of(rule), *cells(rule), ())
    assert torch.equal(results[2], kept)


def test_a_graph_for_each_shape_setting_and_place_of_parameters(graphs, rule):
    with torch.no_grad():
        for _ in range(2):
            for size, settings in ((4, ()), (5, ()), (4, ('other',))):
                cuda_graphs.run_with_cuda_graph(rule, run_of(rule), *cells(rule, size), settings)
        assert graphs() == 3
        rule.head.bias = torch.nn.Parameter(rule.head.bias.clone())
        for _ in range(2):
            cuda_graphs.run_with_cuda_graph(rule, run_of(rule), *cells(rule), ())
        assert graphs() == 4


def test_what_inference_mode_made_is_not_overwritten_outside(graphs, rule):
    for _ in range(2):
        with torch.inference_mode():
            cuda_graphs.run_with_cuda_graph(rule, run_of(rule), *cells(rule), ())
    with torch.no_grad():
        for _ in range(3):
            cuda_graphs.run_with_cuda_graph(rule, run_of(rule), *cells(rule), ())
    assert graphs() == 2


def test_no_graph_within_a_graph(graphs, rule, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    with torch.no_grad():
        for _ in range(3):
            cuda_graphs.run_with_cuda_graph(rule, run_of(rule), *cells(rule), ())
    assert graphs() == 0


def test_what_failed_has_not_been_seen(graphs, rule):
    def full(fixed, mutable):
        raise torch.OutOfMemoryError('no memory')

    with torch.no_grad():
        with pytest.raises(torch.OutOfMemoryError):
            cuda_graphs.run_with_cuda_graph(rule, full, *cells(rule), ())
        cuda_graphs.run_with_cuda_graph(rule, run_of(rule), *cells(rule), ())
        assert graphs() == 0
        cuda_graphs.run_with_cuda_graph(rule, run_of(rule), *cells(rule), ())
    assert graphs() == 1


def test_few_graphs_are_kept(graphs, rule):
    with torch.no_grad():
        for size in range(1, 12):
            for _ in range(2):
                cuda_graphs.run_with_cuda_graph(rule, run_of(rule), *cells(rule, size), ())
    assert graphs() == 11
    assert len(cuda_graphs._graphs[rule]) == cuda_graphs.GRAPHS_PER_RULE


def test_no_graph_of_a_large_grid(graphs, rule, monkeypatch):
    monkeypatch.setattr(cuda_graphs, 'MAX_CELLS', 15)
    for _ in range(3):
        cuda_graphs.run_with_cuda_graph(rule, run_of(rule), *cells(rule), ())
    assert graphs() == 0


def test_a_failed_capture_is_said_once(rule, monkeypatch, caplog):
    def failing():
        raise RuntimeError('operation not permitted when stream is capturing\nmore')

    monkeypatch.setattr(torch.cuda, 'CUDAGraph', failing)
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger='lnca'):
        for _ in range(4):
            fixed, mutable = cells(rule)
            expected = run_of(rule)(fixed.clone(), mutable.clone())
            assert torch.equal(cuda_graphs.run_with_cuda_graph(rule, run_of(rule), fixed, mutable, ()), expected)
    (record,) = caplog.records
    assert record.message.endswith('operation not permitted when stream is capturing')
