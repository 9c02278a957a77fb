"""What goes wrong on real machines, done on purpose and counted: ``python benchmarks/fault_injection.py``.

Trainings are runs of ``basicsr/train.py``, a small LatentNAFCA on tiles of noise, with one worker and a checkpoint
every other iteration. A fault is survived if nothing is lost: a run that is killed and goes on ends in the weights, to
the last bit, and the scores of one that was left alone.
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
from common import argument_parser, in_one_line, machine, random_pairs
from results_store import markdown_table
from tqdm import tqdm

from lnca_model import LNCAModel
from lnca_model.evaluation.evaluator import EXIT_BELOW_INPUT
from lnca_model.training import preemption
from lnca_utils import checkpoint
from lnca_utils.atomic import PARTIAL, write_json
from lnca_utils.errors import LNCAError

ROOT = Path(__file__).parents[1]
PHASES = LNCAModel.phase_names
ITERATIONS = 100  # a phase
POLL_SECONDS = 2e-4
PATIENCE = 60  # seconds within which a lost process ends the others

Row = dict[str, Any]


def main() -> None:
    parser = argument_parser(__doc__, repeats=20)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='which faults')
    parser.add_argument('--examples', type=int, default=10_000, help='inputs for each parser')
    arguments = parser.parse_args()
    rows: list[Row] = []
    for part in arguments.parts:
        for row in PARTS[part](arguments.examples if part == 'input' else arguments.repeats):
            print(f'{row["fault"]}: tried {row["tried"]}, survived {row["survived"]}', file=sys.stderr)
            rows.append(row)
    print(markdown_table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows]))
    print(f'\n{in_one_line(machine())}')
    if arguments.json:
        write_json(arguments.json, {'machine': machine(), 'faults': rows})
    if any(row['survived'] < row['tried'] for row in rows):
        raise SystemExit(1)


class Project:
    """A folder in which trainings run, each in an experiment of its own."""

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
        """Begin a training, or go on with it."""
        options = copy.deepcopy(self.options) | {'name': name}
        file = self.folder / f'{name}.yml'
        file.write_text(yaml.safe_dump(options))
        launcher = ['-m', 'torch.distributed.run', f'--nproc_per_node={processes}'] if processes > 1 else []
        more = ['--launcher', 'pytorch'] if processes > 1 else []
        return subprocess.Popen(
            [sys.executable, *launcher, 'basicsr/train.py', '-opt', file, '--auto_resume', *more],
            cwd=self.folder,
            # Compiling would take longer than what is trained here, and threads would wait for each other.
            env=os.environ | {'TORCHDYNAMO_DISABLE': '1', 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self, name: str, processes: int = 1) -> None:
        """Have a training go on to its end."""
        process = self.start(name, processes)
        _, said = process.communicate()
        # Random tiles have nothing to restore; torchrun ends with 1 whatever its processes end with.
        if process.returncode not in (0, EXIT_BELOW_INPUT) and 'score below the corrupted ones' not in said:
            raise RuntimeError(said)

    def experiment(self, name: str) -> Path:
        return self.folder / 'experiments' / name

    def partial(self, name: str) -> list[Path]:
        """Files that are being written."""
        return [file for kind in ('models', 'training_states') for file in (self.experiment(name) / kind).glob(PARTIAL)]

    def sheets(self, name: str) -> dict[Path, int]:
        """When each validation's pictures were written, which is done before its scores are."""
        return {file: file.stat().st_mtime_ns for file in self.experiment(name).glob('visualization/*/sheet_*.png')}

    def scores(self, name: str) -> str:
        file = self.experiment(name) / 'scores.csv'
        return file.read_text() if file.exists() else ''

    def same(self, first: str, second: str) -> bool:
        """Whether two experiments have ended in the same weights and scores."""
        folders = self.experiment(first), self.experiment(second)
        for network in ('net_g_latest.pth', 'net_g_best.pth'):
            weights, others = (checkpoint.load(folder / 'models' / network)['params'] for folder in folders)
            if not all(torch.equal(weights[key], others[key]) for key in others):
                return False
        return self.scores(first) == self.scores(second)


def until(process: subprocess.Popen, iteration: int) -> None:
    """Read what a training says until it has come to an iteration."""
    said = []
    for line in process.stderr:
        said.append(line)
        if 'iter:' in line and 'lr:(' in line and int(line.split('iter:')[1].split(',')[0]) >= iteration:
            return
    raise RuntimeError(''.join(said))


def _kills(count: int) -> Iterator[Row]:
    """SIGKILL at any moment, as soon as a checkpoint is being written, and as soon as a validation has its sheet."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.ended('whole')
        for number, phase in enumerate(PHASES):
            for moment, kill in MOMENTS.items():
                name = f'{phase}_{moment.replace(" ", "_")}'
                met = 0
                for turn in tqdm(range(count), desc=f'kills, {phase}, {moment}', unit='kill', leave=False):
                    met += kill(project, name, turn, number * ITERATIONS + 1 + turn * (ITERATIONS - 10) // count)
                project.ended(name)
                yield _row(
                    f'SIGKILL in phase {phase}, {moment}',
                    count,
                    count * project.same(name, 'whole'),
                    f'resumed each time; {met} kills {MET[kill]}; final and best weights bit-identical, scores too',
                )


def _kill_at_any_moment(project: Project, name: str, turn: int, iteration: int) -> bool:
    process = project.start(name)
    until(process, iteration)
    time.sleep(random.random() * 0.1)
    _kill(process)
    return bool(project.partial(name))


def _kill_in_a_save(project: Project, name: str, turn: int, iteration: int) -> bool:
    process = project.start(name)
    until(process, iteration)
    _wait(process, lambda: project.partial(name))
    _kill(process)
    return bool(project.partial(name))


def _kill_in_a_validation(project: Project, name: str, turn: int, iteration: int) -> bool:
    """Every other time it is the validation that makes up for the one before, which was killed."""
    before = project.sheets(name)
    process = project.start(name)
    if turn % 2 == 0:
        until(process, iteration)
        before = project.sheets(name)
    scores = project.scores(name)
    _wait(process, lambda: project.sheets(name) != before)
    _kill(process)
    return project.scores(name) == scores


# How a training is killed, once it has come to an iteration; true if it was in the midst of what the moment names.
MOMENTS: dict[str, Callable[[Project, str, int, int], bool]] = {
    'at any moment': _kill_at_any_moment,
    'while a checkpoint is written': _kill_in_a_save,
    'in a validation': _kill_in_a_validation,
}
MET = {
    _kill_at_any_moment: 'left a half-written file',
    _kill_in_a_save: 'left a half-written file',
    _kill_in_a_validation: 'came before the scores were written',
}


def _wait(process: subprocess.Popen, condition: Callable[[], Any]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(POLL_SECONDS)


def _kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def _signals(count: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        # No checkpoint but the one that the signal asks for.
        project.options['logger']['save_checkpoint_freq'] = 10 * ITERATIONS
        project.ended('whole')
        for name in preemption.SIGNALS:
            survived = 0
            for turn in tqdm(range(count), desc=name, unit='signal', leave=False):
                process = project.start(name)
                until(process, 1 + turn * (len(PHASES) * ITERATIONS - 10) // count)
                process.send_signal(getattr(signal, name))
                process.communicate()
                survived += process.returncode == preemption.EXIT_CODE
            project.ended(name)
            yield _row(
                name,
                count,
                survived if project.same(name, 'whole') else 0,
                f'saved, exit code {preemption.EXIT_CODE}; after all of them the weights bit-identical, scores too',
            )


def _damaged(count: int) -> Iterator[Row]:
    """A bit flipped anywhere in the newest training state, or its end cut off."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / '3.state'
        checkpoint.save({'iter': 3, 'weights': torch.rand(500)}, file)
        whole, expected = file.read_bytes(), checkpoint.load(file)['weights']
        flips = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
        for fault, contents in (
            ('a bit of a checkpoint flipped', flips),
            ('a checkpoint cut off', [whole[:length] for length in range(len(whole))]),
        ):
            survived = refused = 0
            for content in contents:
                file.write_bytes(content)
                try:
                    loaded = checkpoint.load(file)
                    survived += loaded['iter'] == 3 and torch.equal(loaded['weights'], expected)
                except LNCAError:
                    refused += 1
            yield _row(
                fault,
                len(contents),
                survived + refused,
                f'{refused} refused, so that the one before is used; {survived} of no consequence',
            )


def _lost_process(count: int) -> Iterator[Row]:
    """One of two processes is killed."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.options['datasets']['train']['batch_size_per_gpu'] = 2
        project.ended('whole', processes=2)
        survived, slowest = 0, 0.0
        for turn in tqdm(range(count), desc='lost processes', unit='kill', leave=False):
            process = project.start('lost', processes=2)
            until(process, 1 + turn * (len(PHASES) * ITERATIONS - 10) // count)
            children = psutil.Process(process.pid).children()
            random.choice(children).kill()
            killed = time.monotonic()
            try:
                process.communicate(timeout=PATIENCE)
                survived += not any(child.is_running() for child in children)
            except subprocess.TimeoutExpired:
                for left in (*children, process):
                    left.kill()
                process.communicate()
            slowest = max(slowest, time.monotonic() - killed)
        project.ended('lost', processes=2)
        yield _row(
            'SIGKILL of one of two processes',
            count,
            survived if project.same('lost', 'whole') else 0,
            f'the other ended within {slowest:.0f} s; after all of them the weights bit-identical, scores too',
        )


def _input(count: int) -> Iterator[Row]:
    """Input that nobody would write, for the parsers that are ours."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.xml'
        command = [sys.executable, '-m', 'pytest', '-q', f'--junit-xml={report}', ROOT / 'tests' / 'fuzz']
        subprocess.run(
            command, cwd=ROOT, env=os.environ | {'FUZZ_EXAMPLES': str(count)}, stdout=sys.stderr, check=False
        )
        for case in ElementTree.parse(report).iter('testcase'):
            failed = case.find('failure') is not None or case.find('error') is not None
            what = case.get('name').removeprefix('test_').replace('_', ' ')
            took = float(case.get('time'))
            yield _row(
                f'hostile input: {what}', count, 0 if failed else count, f'taken or refused in one line; {took:.0f} s'
            )


def _row(fault: str, tried: int, survived: int, what_happened: str) -> Row:
    return {'fault': fault, 'tried': tried, 'survived': survived, 'what happened': what_happened}


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    'kills': _kills,
    'signals': _signals,
    'damage': _damaged,
    'processes': _lost_process,
    'input': _input,
}


if __name__ == '__main__':
    main()
