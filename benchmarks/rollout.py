"""The fused rollout of the automata compared with the reference rollout: ``python benchmarks/rollout.py``.

Each row of the tables is measured in a process of its own.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import argument_parser, machine, medians
from results_store import markdown_of_rows
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from lnca_arch import LatentNAFCA, LatentViTCA, PixelViTCA
from lnca_arch.networks.automaton_network import INFERENCE_STEPS, AutomatonNetwork
from lnca_model.evaluation.scores import to_bgr
from lnca_model.metrics import calculate_ssim_batch
from lnca_model.training.profiler import PeakMemory, give_back_freed_memory, keep_freed_memory
from lnca_utils.atomic import write_json

NETWORKS = {kind.__name__: kind for kind in (LatentNAFCA, LatentViTCA, PixelViTCA)}
TRAINING_STEPS = 32
MATRIX_SIDE = 2048  # of the torch.mm that rates are compared with


class Row(NamedTuple):
    """A network and a batch of square images of ``size`` pixels."""

    network: str
    batch: int
    size: int


INFERENCE = [
    *(Row(name, *shape) for name in ('LatentNAFCA', 'LatentViTCA') for shape in ((32, 32), (8, 32), (8, 128))),
    Row('PixelViTCA', 8, 32),
]
TRAINING = [Row('LatentNAFCA', 32, 128), Row('LatentViTCA', 32, 128), Row('PixelViTCA', 32, 32)]
GROWTH = [Row(network, 1, size) for network in ('LatentNAFCA', 'LatentViTCA') for size in (256, 512, 1024, 2048)]


def main() -> None:
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='what to measure')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS), help='which rows')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='where to measure')
    arguments = parser.parse_args()

    figures: dict[str, Any] = {'machine': machine()}
    print(figures['machine'])
    for part in arguments.parts:
        measure, rows = PARTS[part]
        rows = [row for row in rows if row.network in arguments.networks]
        figures[part] = []
        for row in tqdm(rows, desc=part, unit='row', leave=False):
            figures[part].append({**row._asdict(), **_in_new_process(measure, row, arguments)})
        print(f'\n{part.capitalize()}\n', markdown_of_rows(figures[part], digits=3), sep='\n', flush=True)
        if arguments.json:
            write_json(arguments.json, figures)


def _in_new_process(measure: Callable, row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a row; none if memory ran out."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(measure, row, torch.device(arguments.device), arguments.repeats).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):
            return {}


def inference(row: Row, device: torch.device, repeats: int) -> dict[str, float]:
    """Measure 64 steps without gradients: seconds, memory, rate relative to torch.mm, and difference of the states."""
    network, state, _, _ = _prepare(row, device)
    rule, rate = network.automaton.eval(), network.update_rate
    with torch.no_grad():
        calls = {
            'plain': lambda: _seeded(rule.reference_rollout, state, INFERENCE_STEPS, rate),
            'fast': lambda: _seeded(rule, state, INFERENCE_STEPS, rate),
        }
        results = {name: call() for name, call in calls.items()}
        memory = {f'{name}, memory GB': _peak_gigabytes(call, device) for name, call in calls.items()}
        seconds, matmul_rate = _timed(calls, repeats, device)
    with FlopCounterMode(display=False) as counter:
        rule.reference_rollout(state, 1)
    operations = INFERENCE_STEPS * counter.get_total_flops()
    return {
        **_seconds_columns(seconds),
        'ratio': seconds['plain'] / seconds['fast'],
        **{f'{name}, GFLOP/s': operations / value / 1e9 for name, value in seconds.items()},
        'torch.mm, GFLOP/s': matmul_rate,
        'fast / torch.mm': operations / seconds['fast'] / 1e9 / matmul_rate,
        **memory,
        'difference': _relative_difference([results['plain']], [results['fast']]),
    }


def training(row: Row, device: torch.device, repeats: int) -> dict[str, float]:
    """Measure a training step of 32 automaton steps: seconds, peak memory, and difference of the gradients."""
    keep_freed_memory()  # as basicsr/train.py does
    network, state, skip, image = _prepare(row, device)
    rule, rate = network.automaton.train(), network.update_rate
    parameters = list(rule.parameters())

    def gradients(rollout: Callable[..., Tensor]) -> list[Tensor]:
        restored = network.render(_seeded(rollout, state, TRAINING_STEPS, rate), skip)
        return torch.autograd.grad(F.mse_loss(restored, image), parameters)

    calls = {'fast': lambda: gradients(rule), 'plain': lambda: gradients(rule.reference_rollout)}
    results, memory = {}, {}
    for name, call in calls.items():  # the reference last, since it fragments the memory
        results[name] = call()
        memory[f'{name}, memory GB'] = _peak_gigabytes(call, device)
    seconds, _ = _timed(calls, repeats, device)
    return {
        **_seconds_columns(seconds),
        'fast / plain': seconds['fast'] / seconds['plain'],
        **memory,
        'difference': _relative_difference(results['plain'], results['fast']),
    }


def precision(row: Row, device: torch.device, repeats: int) -> dict[str, float]:
    """Measure restoration in float32 and bfloat16: seconds, difference and SSIM of the images."""
    network, _, _, image = _prepare(row, device)

    def restore(is_reduced: bool) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_reduced):
            return _seeded(network, image)

    with torch.no_grad():
        calls = {'float32': lambda: restore(False), 'bfloat16': lambda: restore(True)}
        results = {name: call() for name, call in calls.items()}
        seconds, _ = _timed(calls, repeats, device)
    expected, reduced = results['float32'], results['bfloat16']
    return {
        **_seconds_columns(seconds),
        'ratio': seconds['float32'] / seconds['bfloat16'],
        'difference': _relative_difference([expected], [reduced]),
        'SSIM': float(calculate_ssim_batch(to_bgr(expected), to_bgr(reduced), crop_border=0).mean()),
    }


def growth(row: Row, device: torch.device, repeats: int) -> dict[str, float]:
    """Measure 64 steps without gradients: time and memory per pixel."""
    network, state, _, _ = _prepare(row, device)
    rule = network.automaton.eval()
    pixels = row.batch * row.size**2
    with torch.no_grad():
        calls = {'fast': lambda: rule(state, INFERENCE_STEPS, network.update_rate)}
        calls['fast']()
        memory = _peak_gigabytes(calls['fast'], device)
        seconds, _ = _timed(calls, repeats, device)
    return {'µs a pixel': seconds['fast'] / pixels * 1e6, 'bytes a pixel': memory * 1e9 / pixels}


PARTS = {
    'inference': (inference, INFERENCE),
    'precision': (precision, INFERENCE),
    'training': (training, TRAINING),
    'growth': (growth, GROWTH),
}


def _prepare(row: Row, device: torch.device) -> tuple[AutomatonNetwork, Tensor, Tensor | None, Tensor]:
    """Return a network, the seed and skip of images, and these images.

    The parameters are perturbed, since the updates of a new network are zero.
    """
    torch.manual_seed(0)
    network = NETWORKS[row.network]().to(device).eval()
    image = torch.rand(row.batch, 3, row.size, row.size, device=device)
    with torch.no_grad():
        for parameter in network.automaton.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        state, skip = network.seed(image)
    return network, state, skip, image


def _seeded(rollout: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a rollout with the same random numbers each time."""
    torch.manual_seed(0)
    return rollout(*arguments)


def _timed(calls: dict[str, Callable], repeats: int, device: torch.device) -> tuple[dict[str, float], float]:
    """Return the median seconds of the calls, and the rate of a torch.mm in GFLOP/s, measured in turn with them."""

    def synchronized(call: Callable) -> Callable[[], None]:
        def run() -> None:
            call()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)

        return run

    matrix = torch.rand(MATRIX_SIDE, MATRIX_SIDE, device=device)
    calls = {**calls, 'torch.mm': lambda: torch.mm(matrix, matrix)}
    seconds = medians({name: synchronized(call) for name, call in calls.items()}, repeats)
    return seconds, 2 * MATRIX_SIDE**3 / seconds.pop('torch.mm') / 1e9


def _seconds_columns(seconds: dict[str, float]) -> dict[str, float]:
    return {f'{name}, s': value for name, value in seconds.items()}


def _peak_gigabytes(call: Callable, device: torch.device) -> float:
    """Return the peak memory of a call above the memory in use before it."""
    give_back_freed_memory()
    memory = PeakMemory(device)
    call()
    return memory.read() / 1e9


def _relative_difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Return the largest absolute difference of any two tensors, relative to the largest absolute expected value."""
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(expected, actual, strict=True))


if __name__ == '__main__':
    main()
