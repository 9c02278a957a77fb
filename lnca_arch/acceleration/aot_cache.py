"""Ahead-of-time compiled steps of the automata, cached on disk.

They run on a CPU, without gradients. Advantages over ``torch.compile``: a process that finds its program in the cache
neither compiles nor imports the compiler, which takes seconds; one program works for grids of every size; and no Python
runs between kernels.
"""

import contextlib
import functools
import hashlib
import logging
import os
import platform
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lnca_arch.acceleration.compiled_step import Step, make_step
from lnca_arch.acceleration.fused_form import FusedForm
from lnca_utils.cache import cache_dir
from lnca_utils.errors import first_line

if TYPE_CHECKING:
    from lnca_arch.automata.cellular_automaton import CellularAutomaton

# A process compiles after this many cell updates: 64 steps of a latent network on 512×512 pixels. Compiling takes half
# a minute, once per machine.
CELLS_WORTH_COMPILING = 1 << 20

MIN_SIDE = 2  # torch.export specialises on sides of 1
MAX_SIDE = 1 << 24

_lock = threading.Lock()


class ProgramSignature(NamedTuple):
    """Everything that a compiled program depends on, except for the code and the machine.

    Attributes:
        update: :attr:`FusedForm.update` of the rule.
        fixed, mutable: numbers of channels.
        masked: whether a step has an update mask.
        per_cell: numbers of channels of the tensors from :meth:`CellularAutomaton.static_features`.
        leaves: leaves of the pytree of fused parameters, with shapes in place of tensors.
        structure: structure of that pytree.
    """

    update: Callable[..., Tensor]
    fixed: int
    mutable: int
    masked: bool
    per_cell: tuple[int, ...]
    leaves: tuple[Any, ...]
    structure: TreeSpec


def load_or_compile_step(
    rule: 'CellularAutomaton',
    form: FusedForm,
    params: Any,
    fixed: Tensor,
    per_cell: Sequence[Tensor],
    masked: bool,
    steps: int,
) -> Step | None:
    """Return the step of a rule: the compiled program, or the eager function until compiling pays.

    Args:
        rule, form: the rule and its fused form.
        params: its fused parameters.
        fixed: fixed channels of the cells, ``(N, H, W, in_channels)``.
        per_cell: from :meth:`CellularAutomaton.static_features`.
        masked: whether a step has an update mask.
        steps: number of steps of the rollout; its cell updates count towards compiling.

    Returns:
        The step, or None if compiling failed or the rollout cannot use a program: it is not in float32 on a CPU, it has
        dropout or autocast, a side of the grid is 1, or the rule is not of this package.
    """
    leaves, structure = tree_flatten(params)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    is_eligible = (
        all(tensor.device.type == 'cpu' and tensor.dtype == torch.float32 for tensor in (fixed, *tensors))
        and min(fixed.shape[1:3]) >= MIN_SIDE
        and not rule.is_stochastic
        and not torch.is_autocast_enabled('cpu')
        and form.update.__module__.startswith('lnca_arch.')  # file names depend on the code of this package only
        and os.environ.get('TORCHDYNAMO_DISABLE', '0') != '1'
    )
    if not is_eligible:
        return None
    signature = ProgramSignature(
        form.update,
        rule.in_channels,
        rule.mutable_channels,
        masked,
        tuple(tensor.shape[-1] for tensor in per_cell),
        tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves),
        structure,
    )
    with _lock:
        program = _program(signature, torch.get_num_threads())
        program.prepare(fixed[..., 0].numel() * steps)
    if program.failed:
        return None
    run = program.run
    if run is None:
        return functools.partial(make_step(signature.update), params=params)

    # The program assumes contiguous tensors.
    tensors = [tensor.contiguous() for tensor in tensors]

    def step(fixed: Tensor, mutable: Tensor, update_mask: Tensor | None, per_cell: tuple[Tensor, ...]) -> Tensor:
        mask = [] if update_mask is None else [update_mask]
        return run([cells.contiguous() for cells in (fixed, mutable, *mask, *per_cell)] + tensors)

    return step


class AotProgram:
    """The compiled program of a signature.

    Attributes:
        run: a function from the list of tensors to the result; None until the program is loaded.
        failed: whether loading or compiling failed.
    """

    def __init__(self, signature: ProgramSignature, threads: int) -> None:
        self.run: Callable[[list[Tensor]], Tensor] | None = None
        self.failed = False
        self._signature = signature
        self._cells = 0
        with self._report_failure():
            self._path = cache_dir() / f'{_digest(signature, threads)}.pt2'
            if self._path.is_file():
                _check_owner(self._path.parent)
                self.run = _load(self._path)

    def prepare(self, cells: int) -> None:
        """Count ``cells`` more cell updates, and compile the program once there are enough."""
        self._cells += cells
        if self.run or self.failed or self._cells < CELLS_WORTH_COMPILING:
            return
        with self._report_failure():
            folder = self._path.parent
            logging.getLogger('lnca').warning(
                'Compiling the automaton, which takes about half a minute; it is kept in %s.', folder
            )
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _check_owner(folder)
            _compile(self._signature, self._path)
            self.run = _load(self._path)

    @contextlib.contextmanager
    def _report_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # compilers raise anything; without the program, rollouts are only slower
            self.failed = True
            logging.getLogger('lnca').warning('The compiled automaton cannot be kept: %s', first_line(error))


@functools.cache
def _program(signature: ProgramSignature, threads: int) -> AotProgram:
    return AotProgram(signature, threads)


def _check_owner(path: Path) -> None:
    """Raise PermissionError if a folder of programs belongs to another user, or other users can write to it."""
    if os.name == 'posix':
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError(f'{path} can be written to by other users; take that right from them')


def _digest(signature: ProgramSignature, threads: int) -> str:
    """Return a file name that depends on the signature, threads, code, version of PyTorch and CPU."""
    rule = signature.update.__module__.rpartition('.')[2]
    digest = hashlib.sha256()
    for part in (rule, signature.update.__qualname__, signature[1:], torch.__version__, threads, _processor()):
        digest.update(repr(part).encode())
    for path in sorted(Path(__file__).parents[1].rglob('*.py')):
        digest.update(path.read_bytes())
    return f'{rule}-{digest.hexdigest()[:24]}'


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line for line in lines if line.startswith(('flags', 'Features')))
    except (OSError, StopIteration):
        return platform.processor() + platform.machine()


def _compile(signature: ProgramSignature, path: Path) -> None:
    dim = torch.export.Dim
    n, h, w = dim('n', min=1, max=MAX_SIDE), dim('h', min=MIN_SIDE, max=MAX_SIDE), dim('w', min=MIN_SIDE, max=MAX_SIDE)
    every, shared = {0: n, 1: h, 2: w}, {1: h, 2: w}
    example = (3, 5, 6)
    arguments = [torch.zeros(*example, signature.fixed), torch.zeros(*example, signature.mutable)]
    shapes: list[Any] = [every, every]
    if signature.masked:
        arguments.append(torch.ones(*example, 1, dtype=torch.bool))
        shapes.append(every)
    for channels in signature.per_cell:
        arguments.append(torch.zeros(1, *example[1:], channels))
        shapes.append(shared)
    for leaf in signature.leaves:
        if isinstance(leaf, torch.Size):
            arguments.append(torch.zeros(leaf))
            shapes.append(None)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        program = torch.export.export(_Step(signature), tuple(arguments), dynamic_shapes=(tuple(shapes),), strict=False)
        written = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(temporary) / path.name))
        os.replace(written, path)


class _Step(nn.Module):
    """The function of :func:`lnca_arch.acceleration.compiled_step.make_step` as a module with flat arguments."""

    def __init__(self, signature: ProgramSignature) -> None:
        super().__init__()
        self.signature = signature

    def forward(self, *tensors: Tensor) -> Tensor:
        signature, following = self.signature, iter(tensors)
        fixed, mutable = next(following), next(following)
        update_mask = next(following) if signature.masked else None
        per_cell = tuple(next(following) for _ in signature.per_cell)
        leaves = [next(following) if isinstance(leaf, torch.Size) else leaf for leaf in signature.leaves]
        return make_step(signature.update)(
            fixed, mutable, update_mask, tree_unflatten(leaves, signature.structure), per_cell
        )


def _load(path: Path) -> Callable[[list[Tensor]], Tensor]:
    """Load a program, which runs code from the file."""
    try:
        # What torch._inductor.aoti_load_package does, without importing the compiler.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), 'model', False, 1, -1)
        return lambda tensors: loader.run(tensors)[0]
    except (AttributeError, TypeError):  # another version of torch
        package = torch._inductor.aoti_load_package(str(path))
        return lambda tensors: package(*tensors)
