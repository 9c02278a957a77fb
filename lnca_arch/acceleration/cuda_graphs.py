"""Rollouts without gradients as CUDA graphs, without gaps between kernel launches."""

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from lnca_utils.errors import first_line

# Larger grids keep the GPU busy without a graph, which would hold on to the memory of its tensors.
MAX_CELLS = 1 << 17
GRAPHS_PER_RULE = 4

Run = Callable[[Tensor, Tensor], Tensor]

# Rule → key of a rollout → its graph; None if the rollout was seen once. Only the second is captured, so that inputs of
# ever new sizes are not slowed down.
_graphs: 'weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Graph | None]]' = weakref.WeakKeyDictionary()
_uncapturable: 'weakref.WeakSet[nn.Module]' = weakref.WeakSet()


class Graph:
    """A CUDA graph of ``run(fixed, mutable)``, for tensors of the given shapes."""

    def __init__(self, run: Run, fixed: Tensor, mutable: Tensor) -> None:
        self._fixed, self._mutable = fixed.clone(), mutable.clone()
        self._graph = torch.cuda.CUDAGraph()
        self._lock = threading.Lock()
        stream = torch.cuda.Stream(mutable.device)
        # The graph must not read casts cached by autocast, which are freed later.
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode='thread_local'):
                self._result = run(self._fixed, self._mutable)
        finally:
            torch.set_autocast_cache_enabled(cached)

    def __call__(self, fixed: Tensor, mutable: Tensor) -> Tensor:
        """Return ``run(fixed, mutable)`` for tensors of the captured shapes."""
        with self._lock:
            self._fixed.copy_(fixed)
            self._mutable.copy_(mutable)
            self._graph.replay()
            return self._result.clone()


def run_with_cuda_graph(rule: nn.Module, run: Run, fixed: Tensor, mutable: Tensor, settings: Hashable) -> Tensor:
    """Compute ``run(fixed, mutable)``; from the second call with the same shapes and settings on, by a CUDA graph.

    Args:
        rule: the rule. Its graphs read its parameters in place, and are freed with it.
        run: the function to compute; it may overwrite ``mutable``.
        fixed, mutable: arguments of ``run``, on CUDA.
        settings: everything else that ``run`` depends on.
    """
    if rule in _uncapturable or mutable[..., 0].numel() > MAX_CELLS or torch.cuda.is_current_stream_capturing():
        return run(fixed, mutable)
    with torch.cuda.device_of(mutable):
        return _replay_or_capture(rule, run, fixed, mutable, settings)


def _replay_or_capture(rule: nn.Module, run: Run, fixed: Tensor, mutable: Tensor, settings: Hashable) -> Tensor:
    key = (
        mutable.shape,
        mutable.dtype,
        mutable.device,
        torch.cuda.current_stream(mutable.device),
        torch.is_inference_mode_enabled(),  # inference tensors cannot be overwritten outside of it
        torch.is_autocast_enabled('cuda') and torch.get_autocast_dtype('cuda'),
        tuple(parameter.data_ptr() for parameter in rule.parameters()),
        settings,
    )
    graphs = _graphs.setdefault(rule, OrderedDict())
    seen = key in graphs
    graph = graphs.pop(key, None)
    if seen and graph is None:
        try:
            graph = Graph(run, fixed, mutable)
        except RuntimeError as error:
            _uncapturable.add(rule)
            logging.getLogger('lnca').warning(
                'The automaton runs without a CUDA graph, more slowly: %s', first_line(error)
            )
    result = graph(fixed, mutable) if graph else run(fixed, mutable)
    if rule not in _uncapturable:
        graphs[key] = graph
        if len(graphs) > GRAPHS_PER_RULE:
            graphs.popitem(last=False)
    return result
