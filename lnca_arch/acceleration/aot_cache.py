"""Steps of the automata that are compiled once on a machine and kept on its disk.

A processor takes them without gradients. Against ``torch.compile`` a process neither compiles nor imports the compiler,
which takes it seconds; one program fits grids of every size; and no Python runs between the kernels.
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
from lnca_utils.errors import first_line

if TYPE_CHECKING:
    from lnca_arch.automata.cellular_automaton import CellularAutomaton

# Compiling takes half a minute, once; until a process has applied a rule to so many cells, it goes without. That is 64
# steps of a latent network on a quarter of a megapixel.
CELLS_WORTH_COMPILING = 1 << 20

LEAST_SIDE = 2  # a program for grids of any size would take a side of 1 for a constant
MOST = 1 << 24

_ONE_AT_A_TIME = threading.Lock()


class ProgramSignature(NamedTuple):
    """What a program is compiled for; numbers of channels where tensors are of any height and width."""

    fused_update: Callable[..., Tensor]
    given: int
    changing: int
    masked: bool
    per_cell: tuple[int, ...]
    leaves: tuple[Any, ...]  # of ``folded``, the shapes instead of tensors
    structure: TreeSpec


def load_or_compile_step(
    rule: 'CellularAutomaton', folded: Any, given: Tensor, per_cell: Sequence[Tensor], masked: bool, steps: int
) -> Step | None:
    """The step of a rule with its parameters given: the program that is kept, or the eager function of ``make_step`` as
    long as a program is not worth compiling. None if there is no such program: for other cells than float32 on a
    processor, and where it cannot be compiled.

    Args:
        folded, per_cell: see :meth:`CellularAutomaton.fold` and :meth:`CellularAutomaton.static_features`.
        given: ``(N, H, W, in_channels)``.
        masked: whether only some of the cells take part in a step.
        steps: how many steps follow.
    """
    leaves, structure = tree_flatten(folded)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    suits = (
        all(tensor.device.type == 'cpu' and tensor.dtype == torch.float32 for tensor in (given, *tensors))
        and min(given.shape[1:3]) >= LEAST_SIDE
        and not rule.is_stochastic
        and not torch.is_autocast_enabled('cpu')
        and type(rule).fused_update.__module__.startswith('lnca_arch.')  # the code that a program's name stands for
        and os.environ.get('TORCHDYNAMO_DISABLE', '0') != '1'  # as for everything that is compiled
    )
    if not suits:
        return None
    layout = ProgramSignature(
        type(rule).fused_update,
        rule.in_channels,
        rule.mutable_channels,
        masked,
        tuple(tensor.shape[-1] for tensor in per_cell),
        tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves),
        structure,
    )
    with _ONE_AT_A_TIME:
        program = _program(layout, torch.get_num_threads())
        program.prepare(given[..., 0].numel() * steps)
    if program.failed:
        return None
    run = program.run
    if run is None:
        return functools.partial(make_step(layout.fused_update), folded=folded)

    # The program takes for granted how its tensors lie in memory.
    tensors = [tensor.contiguous() for tensor in tensors]

    def step(given: Tensor, changing: Tensor, update_mask: Tensor | None, per_cell: tuple[Tensor, ...]) -> Tensor:
        mask = [] if update_mask is None else [update_mask]
        return run([cells.contiguous() for cells in (given, changing, *mask, *per_cell)] + tensors)

    return step


class AotProgram:
    """The program of a layout: ``run``, None while there is none; or ``failed``, if it cannot be had."""

    def __init__(self, layout: ProgramSignature, threads: int) -> None:
        self.run: Callable[[list[Tensor]], Tensor] | None = None
        self.failed = False
        self._layout = layout
        self._cells = 0
        with self._or_without():
            self._path = cache_dir() / f'{_digest(layout, threads)}.pt2'
            if self._path.is_file():
                _check_owner(self._path.parent)
                self.run = _loaded(self._path)

    def prepare(self, cells: int) -> None:
        """Compile it if that has become worth it, with so many cells to apply it to."""
        self._cells += cells
        if self.run or self.failed or self._cells < CELLS_WORTH_COMPILING:
            return
        with self._or_without():
            kept_in = self._path.parent
            logging.getLogger('basicsr').warning(
                'Compiling the automaton, which takes about half a minute; it is kept in %s.', kept_in
            )
            kept_in.mkdir(parents=True, exist_ok=True, mode=0o700)
            _check_owner(kept_in)
            _compile(self._layout, self._path)
            self.run = _loaded(self._path)

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # without it everything works, only more slowly; compilers raise what they like
            self.failed = True
            logging.getLogger('basicsr').warning('The compiled automaton cannot be kept: %s', first_line(error))


@functools.cache
def _program(layout: ProgramSignature, threads: int) -> AotProgram:
    return AotProgram(layout, threads)


def cache_dir() -> Path:
    """Where programs are kept: ``lnca`` in the user's folder for caches."""
    caches = Path(os.environ.get('XDG_CACHE_HOME', ''))
    return (caches if caches.is_absolute() else Path.home() / '.cache') / 'lnca'


def _check_owner(path: Path) -> None:
    """Raise PermissionError if others can write to a folder, from which code is run."""
    if os.name == 'posix':
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError(f'{path} can be written to by other users; take that right from them')


def _digest(layout: ProgramSignature, threads: int) -> str:
    """A name for what a program depends on: the layout, the code, the compiler and the processor."""
    rule = layout.fused_update.__module__.rpartition('.')[2]
    digest = hashlib.sha256()
    for part in (rule, layout.fused_update.__qualname__, layout[1:], torch.__version__, threads, _processor()):
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


def _compile(layout: ProgramSignature, path: Path) -> None:
    dim = torch.export.Dim
    n, h, w = dim('n', min=1, max=MOST), dim('h', min=LEAST_SIDE, max=MOST), dim('w', min=LEAST_SIDE, max=MOST)
    every, shared = {0: n, 1: h, 2: w}, {1: h, 2: w}
    example = (3, 5, 6)
    arguments = [torch.zeros(*example, layout.given), torch.zeros(*example, layout.changing)]
    shapes: list[Any] = [every, every]
    if layout.masked:
        arguments.append(torch.ones(*example, 1, dtype=torch.bool))
        shapes.append(every)
    for channels in layout.per_cell:
        arguments.append(torch.zeros(1, *example[1:], channels))
        shapes.append(shared)
    for leaf in layout.leaves:
        if isinstance(leaf, torch.Size):
            arguments.append(torch.zeros(leaf))
            shapes.append(None)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        program = torch.export.export(_Step(layout), tuple(arguments), dynamic_shapes=(tuple(shapes),), strict=False)
        written = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(temporary) / path.name))
        os.replace(written, path)


class _Step(nn.Module):
    """:func:`lnca_arch.acceleration.compiled_step.make_step`, its tensors in one row."""

    def __init__(self, layout: ProgramSignature) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, *tensors: Tensor) -> Tensor:
        layout, following = self.layout, iter(tensors)
        given, changing = next(following), next(following)
        update_mask = next(following) if layout.masked else None
        per_cell = tuple(next(following) for _ in layout.per_cell)
        leaves = [next(following) if isinstance(leaf, torch.Size) else leaf for leaf in layout.leaves]
        return make_step(layout.fused_update)(
            given, changing, update_mask, tree_unflatten(leaves, layout.structure), per_cell
        )


def _loaded(path: Path) -> Callable[[list[Tensor]], Tensor]:
    """A program from a file. It is code that runs."""
    try:
        # What torch._inductor.aoti_load_package does, without the import of the compiler.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), 'model', False, 1, -1)
        return lambda tensors: loader.run(tensors)[0]
    except (AttributeError, TypeError):  # another version of torch
        package = torch._inductor.aoti_load_package(str(path))
        return lambda tensors: package(*tensors)
