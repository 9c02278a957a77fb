"""Inject faults into training runs and count those that lose nothing: ``python benchmarks/fault_injection.py``.

The runs train a small LatentNAFCA on tiles of noise with ``basicsr/train.py``, on one process unless stated otherwise,
and save a checkpoint every other iteration. A run survives a fault if, once resumed, it ends with weights and scores
that are bit for bit those of an undisturbed run.
"""

import copy
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from common import argument_parser, machine, machine_line, random_pairs
from results_store import markdown_of_rows
from tqdm import tqdm

from lnca_model import LNCAModel
from lnca_model.evaluation.evaluator import EXIT_BELOW_INPUT
from lnca_model.training import preemption
from lnca_utils import checkpoint
from lnca_utils.atomic import PARTIAL, write_json
from lnca_utils.errors import LNCAError

ROOT = Path(__file__).parents[1]
PHASES = LNCAModel.phase_names
ITERATIONS = 100  # per phase
LAST_FAULT = 10  # iterations before the end of a phase or run
POLL_SECONDS = 2e-4
EXIT_TIMEOUT = 60  # seconds within which the remaining processes of a lost one must end

# Moment of a kill → what it means that the kill hit this moment.
MOMENTS = {
    'at any moment': 'left a half-written file',
    'while a checkpoint is written': 'left a half-written file',
    'in a validation': 'came before the scores were written',
}

Row = dict[str, Any]


def main() -> None:
    parser = argument_parser(__doc__, repeats=20)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='which faults')
    parser.add_argument('--examples', type=int, default=10_000, help='inputs per parser')
    arguments = parser.parse_args()
    rows: list[Row] = []
    for part in arguments.parts:
        for row in PARTS[part](arguments.examples if part == 'input' else arguments.repeats):
            print(f'{row["fault"]}: tried {row["tried"]}, survived {row["survived"]}', file=sys.stderr)
            rows.append(row)
    print(markdown_of_rows(rows, digits=4))
    print(f'\n{machine_line(machine())}')
    if arguments.json:
        write_json(arguments.json, {'machine': machine(), 'faults': rows})
    if any(row['survived'] < row['tried'] for row in rows):
        raise SystemExit(1)


class Project:
    """A folder for training runs, each in an experiment of its own.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / 'basicsr').mkdir()
        (folder / 'basicsr' / 'train.py').write_text((ROOT / 'basicsr' / 'train.py').read_text())
        pairs = random_pairs(folder, tiles=21)
        options = yaml.safe_load((ROOT / 'options' / 'lnca_plus_photos.yml').read_text())
        train, val = options['datasets']['train'], options['datasets']['val']
        train.update(dataroot_gt=pairs['dataroot_gt'], batch_size_per_gpu=4, persistent_workers=False)
        val.update(pairs)
        del options['datasets']['val_test']
        options['network_g'].update(latent_channels=4, hidden_channels=4, embed_channels=8)
        options['train']['total_iter'] = len(PHASES) * ITERATIONS
        for phase in PHASES:
            options['train'][phase]['iters'] = ITERATIONS
        options['train']['automaton'].update(pool_size=20, steps=[1, 3])
        options['val']['val_freq'] = 10
        options['logger'].update(print_freq=1, save_checkpoint_freq=2, keep_last_checkpoints=3, use_tb_logger=False)
        options['num_gpu'] = 0
        self.options = options

    def start(self, name: str, processes: int = 1) -> subprocess.Popen:
        """Start a training run, or resume it."""
        options = copy.deepcopy(self.options) | {'name': name}
        file = self.folder / f'{name}.yml'
        file.write_text(yaml.safe_dump(options))
        torchrun = ['-m', 'torch.distributed.run', f'--nproc_per_node={processes}'] if processes > 1 else []
        launcher = ['--launcher', 'pytorch'] if processes > 1 else []
        return subprocess.Popen(
            [sys.executable, *torchrun, 'basicsr/train.py', '-opt', file, '--auto_resume', *launcher],
            cwd=self.folder,
            # Compilation would take longer than the training, and the processes would compete for the cores.
            env=os.environ | {'TORCHDYNAMO_DISABLE': '1', 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, name: str, processes: int = 1) -> None:
        """Start or resume a training run and wait for its end."""
        process = self.start(name, processes)
        _, output = process.communicate()
        # No network can restore random tiles. torchrun ends with 1, whatever its processes end with.
        if process.returncode not in (0, EXIT_BELOW_INPUT) and 'score below the corrupted ones' not in output:
            raise RuntimeError(output)

    def experiment(self, name: str) -> Path:
        return self.folder / 'experiments' / name

    def partial_files(self, name: str) -> list[Path]:
        """Return the checkpoint files that are being written."""
        return [file for kind in ('models', 'training_states') for file in (self.experiment(name) / kind).glob(PARTIAL)]

    def sheet_times(self, name: str) -> dict[Path, int]:
        """Return contact sheet → modification time. A validation writes its sheet before its scores."""
        return {file: file.stat().st_mtime_ns for file in self.experiment(name).glob('visualization/*/sheet_*.png')}

    def scores(self, name: str) -> str:
        file = self.experiment(name) / 'scores.csv'
        return file.read_text() if file.exists() else ''

    def are_equal(self, first: str, second: str) -> bool:
        """Return whether two experiments have the same weights and scores."""
        folders = self.experiment(first), self.experiment(second)
        for network in ('net_g_latest.pth', 'net_g_best.pth'):
            weights, others = (checkpoint.load(folder / 'models' / network)['params'] for folder in folders)
            if not all(torch.equal(weights[key], others[key]) for key in others):
                return False
        return self.scores(first) == self.scores(second)


def _wait_for_iteration(process: subprocess.Popen, iteration: int) -> None:
    """Read the log of a run until it reports an iteration."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if 'iter:' in line and 'lr:(' in line and int(line.split('iter:')[1].split(',')[0]) >= iteration:
            return
    raise RuntimeError(''.join(lines))


def _wait(process: subprocess.Popen, condition: Callable[[], Any]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(POLL_SECONDS)


def _fault_iteration(turn: int, count: int, iterations: int = len(PHASES) * ITERATIONS) -> int:
    """Return the iteration of a fault; the faults are spread evenly over a phase, or by default over a run."""
    return 1 + turn * (iterations - LAST_FAULT) // count


def _kills(count: int) -> Iterator[Row]:
    """Kill runs at a random moment, while a checkpoint is written, and during a validation."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.finish('whole')
        for number, phase in enumerate(PHASES):
            for moment, hit in MOMENTS.items():
                name = f'{phase}_{moment.replace(" ", "_")}'
                hits = 0
                for turn in tqdm(range(count), desc=f'kills, {phase}, {moment}', unit='kill', leave=False):
                    iteration = number * ITERATIONS + _fault_iteration(turn, count, ITERATIONS)
                    hits += _kill_at(project, name, moment, turn, iteration)
                project.finish(name)
                yield _row(
                    f'SIGKILL in phase {phase}, {moment}',
                    count,
                    count * project.are_equal(name, 'whole'),
                    f'resumed each time; {hits} kills {hit}; final and best weights bit-identical, scores too',
                )


def _kill_at(project: Project, name: str, moment: str, turn: int, iteration: int) -> bool:
    """Kill a run after an iteration, at one of the :data:`MOMENTS`, and return whether it hit that moment.

    In odd turns the killed validation is the one that a resumed run repeats first.
    """
    is_validation = moment == 'in a validation'
    before = project.sheet_times(name)
    process = project.start(name)
    if not is_validation or turn % 2 == 0:
        _wait_for_iteration(process, iteration)
        before = project.sheet_times(name)
    scores = project.scores(name)
    if is_validation:
        _wait(process, lambda: project.sheet_times(name) != before)
    elif moment == 'at any moment':
        time.sleep(random.random() * 0.1)
    else:
        _wait(process, lambda: project.partial_files(name))
    process.kill()
    process.communicate()
    return project.scores(name) == scores if is_validation else bool(project.partial_files(name))


def _signals(count: int) -> Iterator[Row]:
    """Send runs the signals of preemption."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.options['logger']['save_checkpoint_freq'] = 10 * ITERATIONS  # the signal alone causes a checkpoint
        project.finish('whole')
        for name in preemption.SIGNALS:
            survived = 0
            for turn in tqdm(range(count), desc=name, unit='signal', leave=False):
                process = project.start(name)
                _wait_for_iteration(process, _fault_iteration(turn, count))
                process.send_signal(getattr(signal, name))
                process.communicate()
                survived += process.returncode == preemption.EXIT_CODE
            project.finish(name)
            yield _row(
                name,
                count,
                survived if project.are_equal(name, 'whole') else 0,
                f'saved, exit code {preemption.EXIT_CODE}; after all of them the weights bit-identical, scores too',
            )


def _damaged_files(count: int) -> Iterator[Row]:
    """Flip each bit position of a checkpoint file in turn, and truncate the file at each length."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / '3.state'
        checkpoint.save({'iter': 3, 'weights': torch.rand(500)}, file)
        whole, expected = file.read_bytes(), checkpoint.load(file)['weights']
        flips = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
        for fault, contents in (
            ('a bit of a checkpoint flipped', flips),
            ('a checkpoint cut off', [whole[:length] for length in range(len(whole))]),
        ):
            harmless = refused = 0
            for content in contents:
                file.write_bytes(content)
                try:
                    loaded = checkpoint.load(file)
                    harmless += loaded['iter'] == 3 and torch.equal(loaded['weights'], expected)
                except LNCAError:
                    refused += 1
            yield _row(
                fault,
                len(contents),
                harmless + refused,
                f'{refused} refused, so that the previous one is used; {harmless} without effect',
            )


def _lost_processes(count: int) -> Iterator[Row]:
    """Kill one of two distributed processes."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.options['datasets']['train']['batch_size_per_gpu'] = 2
        project.finish('whole', processes=2)
        survived, slowest = 0, 0.0
        for turn in tqdm(range(count), desc='lost processes', unit='kill', leave=False):
            process = project.start('lost', processes=2)
            _wait_for_iteration(process, _fault_iteration(turn, count))
            children = psutil.Process(process.pid).children()
            random.choice(children).kill()
            killed = time.monotonic()
            try:
                process.communicate(timeout=EXIT_TIMEOUT)
                survived += not any(child.is_running() for child in children)
            except subprocess.TimeoutExpired:
                for remaining in (*children, process):
                    remaining.kill()
                process.communicate()
            slowest = max(slowest, time.monotonic() - killed)
        project.finish('lost', processes=2)
        yield _row(
            'SIGKILL of one of two processes',
            count,
            survived if project.are_equal('lost', 'whole') else 0,
            f'the other ended within {slowest:.0f} s; after all of them the weights bit-identical, scores too',
        )


def _hostile_input(count: int) -> Iterator[Row]:
    """Run the fuzz tests of the parsers."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.xml'
        command = [sys.executable, '-m', 'pytest', '-q', f'--junit-xml={report}', ROOT / 'tests' / 'fuzz']
        subprocess.run(
            command, cwd=ROOT, env=os.environ | {'FUZZ_EXAMPLES': str(count)}, stdout=sys.stderr, check=False
        )
        for case in ElementTree.parse(report).iter('testcase'):
            failed = case.find('failure') is not None or case.find('error') is not None
            name = case.get('name').removeprefix('test_').replace('_', ' ')
            seconds = float(case.get('time'))
            yield _row(
                f'hostile input: {name}', count, 0 if failed else count, f'read or refused in one line; {seconds:.0f} s'
            )


def _row(fault: str, tried: int, survived: int, outcome: str) -> Row:
    return {'fault': fault, 'tried': tried, 'survived': survived, 'what happened': outcome}


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    'kills': _kills,
    'signals': _signals,
    'damage': _damaged_files,
    'processes': _lost_processes,
    'input': _hostile_input,
}


if __name__ == '__main__':
    main()
