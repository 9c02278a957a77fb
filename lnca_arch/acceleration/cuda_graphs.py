"""Rollouts without gradients on CUDA, free of gaps between the launches of kernels: captured as a CUDA graph."""

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from lnca_utils.errors import first_line

# Larger grids keep the GPU busy by themselves, and a graph holds on to the memory of what it computes.
MOST_CELLS = 1 << 17
GRAPHS_A_RULE = 4

Run = Callable[[Tensor, Tensor], Tensor]

# None for what was seen once: it is captured when it comes again, so that pictures of ever new sizes are not slowed.
_graphs: 'weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Graph | None]]' = weakref.WeakKeyDictionary()
_refused: 'weakref.WeakSet[nn.Module]' = weakref.WeakSet()


class Graph:
    """``run(given, changing)``, captured for the shapes of these."""

    def __init__(self, run: Run, given: Tensor, changing: Tensor) -> None:
        self._given, self._changing = given.clone(), changing.clone()
        self._graph = torch.cuda.CUDAGraph()
        self._lock = threading.Lock()
        stream = torch.cuda.Stream(changing.device)
        # A cast that autocast has kept from before would be read where it is no longer.
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode='thread_local'):
                self._result = run(self._given, self._changing)
        finally:
            torch.set_autocast_cache_enabled(cached)

    def __call__(self, given: Tensor, changing: Tensor) -> Tensor:
        with self._lock:
            self._given.copy_(given)
            self._changing.copy_(changing)
            self._graph.replay()
            return self._result.clone()


def run_with_cuda_graph(rule: nn.Module, run: Run, given: Tensor, changing: Tensor, settings: Hashable) -> Tensor:
    """``run(given, changing)``, from its second time on by a CUDA graph.

    Args:
        rule: reads of ``run`` go to its parameters, and see what they have become.
        run: what to compute; it may overwrite ``changing``.
        given, changing: its arguments, on CUDA.
        settings: what else ``run`` depends on.
    """
    if rule in _refused or changing[..., 0].numel() > MOST_CELLS or torch.cuda.is_current_stream_capturing():
        return run(given, changing)
    with torch.cuda.device_of(changing):
        return _graphed(rule, run, given, changing, settings)


def _graphed(rule: nn.Module, run: Run, given: Tensor, changing: Tensor, settings: Hashable) -> Tensor:
    key = (
        changing.shape,
        changing.dtype,
        changing.device,
        torch.cuda.current_stream(changing.device),
        torch.is_inference_mode_enabled(),  # whose tensors nothing else may overwrite
        torch.is_autocast_enabled('cuda') and torch.get_autocast_dtype('cuda'),
        tuple(parameter.data_ptr() for parameter in rule.parameters()),
        settings,
    )
    graphs = _graphs.setdefault(rule, OrderedDict())
    seen = key in graphs
    graph = graphs.pop(key, None)
    if seen and graph is None:
        try:
            graph = Graph(run, given, changing)
        except RuntimeError as error:
            _refused.add(rule)
            logging.getLogger('basicsr').warning(
                'The automaton runs without a CUDA graph, more slowly: %s', first_line(error)
            )
    result = graph(given, changing) if graph else run(given, changing)
    if rule not in _refused:
        graphs[key] = graph
        if len(graphs) > GRAPHS_A_RULE:
            graphs.popitem(last=False)
    return result
