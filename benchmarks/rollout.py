"""The rollout of the automata, its plain definition against the fast one: ``python benchmarks/rollout.py``.

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
from common import argument_parser, machine, matmul_gflops, medians
from results_store import markdown_table
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


class Row(NamedTuple):
    """One row: a network and ``batch`` square images of ``size`` pixels."""

    network: str
    batch: int
    size: int


INFERENCE = [
    Row('LatentNAFCA', 32, 32),
    Row('LatentNAFCA', 8, 32),
    Row('LatentNAFCA', 8, 128),
    Row('LatentViTCA', 32, 32),
    Row('LatentViTCA', 8, 32),
    Row('LatentViTCA', 8, 128),
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
            figures[part].append({**row._asdict(), **_alone(measure, row, arguments)})
        names = list(dict.fromkeys(name for row in figures[part] for name in row))
        cells = [[_text(row.get(name)) for name in names] for row in figures[part]]
        print(f'\n{part.capitalize()}\n', markdown_table(names, cells), sep='\n', flush=True)
        if arguments.json:
            write_json(arguments.json, figures)


def _alone(measure: Callable, row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``measure`` returns, called in a new process; nothing if the memory was not enough for it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(measure, row, torch.device(arguments.device), arguments.repeats).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):
            return {}


def _text(figure: Any) -> str:
    return '–' if figure is None else f'{figure:.3g}' if isinstance(figure, float) else str(figure)


def inference(row: Row, device: torch.device, repeats: int) -> dict[str, float]:
    """64 steps without gradients: seconds, the share of the rate of a torch.mm, and by how much the states differ."""
    network, state, _, _ = _prepared(row, device)
    rule, rate = network.automaton.eval(), network.update_rate
    with torch.no_grad():
        calls = {
            'plain': lambda: _seeded(rule.reference_rollout, state, INFERENCE_STEPS, rate),
            'fast': lambda: _seeded(rule, state, INFERENCE_STEPS, rate),
        }
        results = {name: call() for name, call in calls.items()}
        memory = {f'{name}, memory GB': _peak(call, device) for name, call in calls.items()}
        seconds, peak = _timed(calls, repeats, device)
    operations = INFERENCE_STEPS * _operations_of_a_step(network, state)
    return {
        **{f'{name}, s': value for name, value in seconds.items()},
        'ratio': seconds['plain'] / seconds['fast'],
        **{f'{name}, GFLOP/s': operations / value / 1e9 for name, value in seconds.items()},
        'torch.mm, GFLOP/s': peak,
        'fast / torch.mm': operations / seconds['fast'] / 1e9 / peak,
        **memory,
        'difference': _difference([results['plain']], [results['fast']]),
    }


def training(row: Row, device: torch.device, repeats: int) -> dict[str, float]:
    """An optimisation step without the optimiser, 32 steps of the automaton: seconds, peak memory, and by how much the
    gradients differ."""
    keep_freed_memory()  # as basicsr/train.py does
    network, state, skip, image = _prepared(row, device)
    rule, rate = network.automaton.train(), network.update_rate
    parameters = list(rule.parameters())

    def gradients(rollout: Callable[..., Tensor], memory: str | None = None) -> list[Tensor]:
        rule.activation_checkpointing = memory
        restored = network.render(_seeded(rollout, state, TRAINING_STEPS, rate), skip)
        return torch.autograd.grad(F.mse_loss(restored, image), parameters)

    calls = {'fast': lambda: gradients(rule), 'plain': lambda: gradients(rule.reference_rollout)}
    results, memory = {}, {}
    for name, call in calls.items():  # the plain one last, since it leaves the memory in pieces
        results[name] = call()
        memory[f'{name}, memory GB'] = _peak(call, device)
    seconds, _ = _timed(calls, repeats, device)
    return {
        **{f'{name}, s': value for name, value in seconds.items()},
        'fast / plain': seconds['fast'] / seconds['plain'],
        **memory,
        'difference': _difference(results['plain'], results['fast']),
    }


def precision(row: Row, device: torch.device, repeats: int) -> dict[str, float]:
    """Images restored with products in float32 and in bfloat16: seconds, by how much the images differ, and how
    alike they are."""
    network, _, _, image = _prepared(row, device)

    def rollout(reduced: bool) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            return _seeded(network, image)

    with torch.no_grad():
        calls = {'float32': lambda: rollout(False), 'bfloat16': lambda: rollout(True)}
        results = {name: call() for name, call in calls.items()}
        seconds, _ = _timed(calls, repeats, device)
    return {
        **{f'{name}, s': value for name, value in seconds.items()},
        'ratio': seconds['float32'] / seconds['bfloat16'],
        'difference': _difference([results['float32']], [results['bfloat16']]),
        'SSIM': _similarity(results['float32'], results['bfloat16']),
    }


def growth(row: Row, device: torch.device, repeats: int) -> dict[str, float]:
    """64 steps without gradients: time and memory of a pixel."""
    network, state, _, _ = _prepared(row, device)
    rule = network.automaton.eval()
    pixels = row.batch * row.size**2
    with torch.no_grad():
        calls = {'fast': lambda: rule(state, INFERENCE_STEPS, network.update_rate)}
        calls['fast']()
        memory = _peak(calls['fast'], device)
        seconds, _ = _timed(calls, repeats, device)
    return {'µs a pixel': seconds['fast'] / pixels * 1e6, 'bytes a pixel': memory * 1e9 / pixels}


PARTS = {
    'inference': (inference, INFERENCE),
    'precision': (precision, INFERENCE),
    'training': (training, TRAINING),
    'growth': (growth, GROWTH),
}


def _prepared(row: Row, device: torch.device) -> tuple[AutomatonNetwork, Tensor, Tensor | None, Tensor]:
    """A network whose updates are not zero, as they are in a new one; the state and skip of images, and those."""
    torch.manual_seed(0)
    network = NETWORKS[row.network]().to(device).eval()
    image = torch.rand(row.batch, 3, row.size, row.size, device=device)
    with torch.no_grad():
        for parameter in network.automaton.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        state, skip = network.seed(image)
    return network, state, skip, image


def _seeded(rollout: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """A rollout with the same random numbers each time."""
    torch.manual_seed(0)
    return rollout(*arguments)


def _timed(calls: dict[str, Callable], repeats: int, device: torch.device) -> tuple[dict[str, float], float]:
    """Median seconds of the calls, and the rate of a torch.mm between them, in GFLOP/s."""

    def finished(call: Callable) -> Callable[[], None]:
        def run() -> None:
            call()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)

        return run

    name, mm, gflops = matmul_gflops(device)
    seconds = medians({key: finished(call) for key, call in {**calls, name: mm}.items()}, repeats)
    return seconds, gflops(seconds.pop(name))


def _peak(call: Callable, device: torch.device) -> float:
    """Peak memory of a call above what there was before it, in GB."""
    give_back_freed_memory()
    memory = PeakMemory(device)
    call()
    return memory.read() / 1e9


def _operations_of_a_step(network: AutomatonNetwork, state: Tensor) -> int:
    """Multiplications and additions of the linear maps in a plain step."""
    with FlopCounterMode(display=False) as counter:
        network.automaton.reference_rollout(state, 1)
    return counter.get_total_flops()


def _similarity(expected: Tensor, found: Tensor) -> float:
    """Mean SSIM of images in [0, 1]."""
    return float(calculate_ssim_batch(to_bgr(expected), to_bgr(found), crop_border=0).mean())


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference in any of the tensors, as a share of its largest value."""
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(expected, found, strict=True))


if __name__ == '__main__':
    main()
