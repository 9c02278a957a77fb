"""Validation during training, final tests of the best network, and tests of trained networks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from lnca_data.io.contact_sheet import write_contact_sheet
from lnca_data.io.images import write_image
from lnca_model import distributed
from lnca_model.checkpointing.checkpointer import NETWORK, Checkpointer
from lnca_model.checkpointing.rng_state import fork_rng
from lnca_model.evaluation.scores import (
    ScoreAccumulator,
    append_scores,
    batch_by_shape,
    drop_scores_after,
    to_bgr,
)
from lnca_model.training import preemption
from lnca_utils import checkpoint
from lnca_utils.errors import DISK_FULL, LNCAError

from basicsr.utils import get_root_logger

if TYPE_CHECKING:
    from lnca_model.models.restoration_model import RestorationModel

DEFAULT_BATCH_SIZE = 64
SELECTION_METRIC = 'ssim'
BEST = 'best'  # label of the best network's file, and key of its score in that file
EXIT_BELOW_INPUT = 3  # exit code of a training whose restored images score below the corrupted ones


class PreemptedError(Exception):
    """The run was preempted during an evaluation; the resumed run repeats the evaluation."""


class Evaluator:
    """Restores and scores datasets with a model.

    Scores are written to the log, to TensorBoard and to ``scores.csv``, images to ``visualization/DATASET``. A gain is
    the difference between the scores of the restored and the corrupted images, positive if the restored ones are
    better. In the last phase, the network with the best ``val.selection_metric`` on the first dataset is kept as
    ``net_g_best.pth``.

    Args:
        model: the model; its phase determines what is scored.
        loaders: loaders with batch size 1. :meth:`evaluate_best` scores the datasets with ``final_test: true``,
            :meth:`evaluate` the others.
        opt: the options, of which ``name``, ``val`` and ``path`` are used.
        checkpointer: saves the best network; None in a test.
        tb_logger: a TensorBoard writer on rank 0, or None.

    Attributes:
        best: ``{'value': score, 'iter': iteration}`` of the best network; empty if there is none yet.
        gains: dataset → metric → gain in the last evaluation, relative to the score of the corrupted images.
        best_gains: metric → relative gain of the best network on :attr:`selection_dataset`.
        ceiling_gains: like ``gains``, but of the autoencoder alone, given the latents of the ground truth.
    """

    def __init__(
        self,
        model: 'RestorationModel',
        loaders: Sequence[Any],
        opt: Mapping[str, Any],
        checkpointer: Checkpointer | None = None,
        tb_logger: Any = None,
    ) -> None:
        self._model = model
        self._during = [loader for loader in loaders if not loader.dataset.opt.get('final_test')]
        self._final_tests = [loader for loader in loaders if loader.dataset.opt.get('final_test')]
        self._val = opt.get('val') or {}
        self._name = opt['name']
        self._paths = {name: Path(opt['path'][name]) for name in ('log', 'visualization')}
        self._models = Path(opt['path'].get('models', ''))
        self._checkpointer = checkpointer
        self._tb_logger = tb_logger
        self._evaluated: dict[str, int] = {}  # dataset → iteration of its last evaluation
        self.best: dict[str, Any] = {}
        self.gains: dict[str, dict[str, float]] = {}
        self.best_gains: dict[str, float] = {}
        self.ceiling_gains: dict[str, dict[str, float]] = {}

    @property
    def selection_metric(self) -> str:
        """Name of the metric that chooses the best network."""
        return self._val.get('selection_metric', SELECTION_METRIC)

    def is_higher_better(self, metric: str) -> bool:
        """Return whether higher values of a metric are better."""
        return self._val['metrics'][metric].get('better', 'higher') == 'higher'

    @property
    def final_gains(self) -> tuple[str | None, dict[str, float]]:
        """Name of the dataset that a training is finally judged by, and metric → relative gain on it.

        It is the last dataset with ``final_test: true``, or :attr:`selection_dataset` if there is none.
        """
        if self._final_tests:
            name = self._final_tests[-1].dataset.opt['name']
            return name, self.gains.get(name, {})
        return self.selection_dataset, self.best_gains

    @property
    def selection_dataset(self) -> str | None:
        """Name of the dataset that chooses the best network."""
        return self._during[0].dataset.opt['name'] if self._during else None

    # --- evaluations

    def evaluate(self, iteration: int) -> None:
        """Score the datasets without ``final_test: true``, unless they were already scored in this iteration.

        Args:
            iteration: number of the iteration.

        Raises:
            PreemptedError: if a signal asks the run to end.
            LNCAError: if the disk is full.
        """
        for loader in self._during:
            name = loader.dataset.opt['name']
            if self._evaluated.get(name) != iteration:
                self._evaluate_in_training(loader, iteration)
                self._evaluated[name] = iteration

    def evaluate_best(self, iteration: int) -> None:
        """Score the best network on the datasets with ``final_test: true``.

        Args:
            iteration: number of the last iteration.

        Raises:
            PreemptedError: if a signal asks the run to end.
            LNCAError: if the disk is full.
        """
        if not self._final_tests:
            return
        with self._best_network():
            for loader in self._final_tests:
                self._evaluate_in_training(loader, iteration)

    def evaluate_all(self, label: str) -> None:
        """Score the current network on all datasets.

        Args:
            label: label to use in ``scores.csv`` and in file names instead of the iteration.
        """
        for loader in (*self._during, *self._final_tests):
            get_root_logger().info(f'Testing {loader.dataset.opt["name"]}...')
            self._evaluate_dataset(loader, label)

    def _evaluate_in_training(self, loader: Any, iteration: int) -> None:
        """Score a dataset; keep the state of the random number generators, and report a full disk as LNCAError."""
        try:
            with fork_rng():
                self._evaluate_dataset(loader, iteration)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise LNCAError(
                f'{error.filename}: cannot be written ({error.strerror}), checkpoints are untouched; make room, then '
                'resume with --auto_resume'
            ) from error

    @contextmanager
    def _best_network(self) -> Iterator[None]:
        """Load the best network for the duration of the block."""
        network = self._model.scored_network
        trained = deepcopy(network.state_dict())
        path = self._models / f'{NETWORK}_{BEST}.pth'
        if distributed.rank() == 0 and self.best and path.is_file():
            self._model.load_network(network, str(path), param_key='params_ema')
        distributed.broadcast(network.state_dict().values())
        try:
            yield
        finally:
            network.load_state_dict(trained)

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain data."""
        return {
            'best': self.best,
            'evaluated': self._evaluated,
            'gains': self.gains,
            'best_gains': self.best_gains,
            'ceiling_gains': self.ceiling_gains,
        }

    def load_state_dict(self, saved: Mapping[str, Any], iteration: int, is_due: bool) -> None:
        """Restore the state, and remove the rows from ``scores.csv`` that will be written again.

        Args:
            saved: from :meth:`state_dict`.
            iteration: iteration of the checkpoint.
            is_due: whether an evaluation is due in this iteration. It runs after the checkpoint is saved, so it may be
                missing.
        """
        self.best = distributed.broadcast_from_rank0(lambda: self._still_kept(dict(saved['best'])))
        self._evaluated = dict(saved['evaluated'])
        self.gains = dict(saved['gains'])
        self.best_gains = dict(saved['best_gains'])
        self.ceiling_gains = dict(saved['ceiling_gains'])
        if distributed.rank() == 0:
            names = [loader.dataset.opt['name'] for loader in self._during]
            unscored = [name for name in names if is_due and self._evaluated.get(name) != iteration]
            final_test = {loader.dataset.opt['name'] for loader in self._final_tests}
            drop_scores_after(self._paths['log'] / 'scores.csv', iteration, unscored, final_test)

    def _still_kept(self, best: dict[str, float]) -> dict[str, float]:
        """Return the best score of a checkpoint, or an empty dict if ``net_g_best.pth`` is not of that score.

        The file may be missing, belong to another run, or have been replaced after the checkpoint was saved.
        """
        path = self._models / f'{NETWORK}_{BEST}.pth'
        try:
            kept = checkpoint.load(path).get(BEST, best)  # files of earlier versions have no score
        except LNCAError:
            kept = {}
        if kept == best:
            return best
        get_root_logger().warning(f'{path} belongs to another run; the best score is reset.')
        return {}

    # --- one dataset

    def _evaluate_dataset(self, loader: Any, iteration: int | str) -> None:
        """Score a dataset, which is divided among the ranks, and write scores and images."""
        name = loader.dataset.opt['name']
        share = distributed.shard_range(len(loader.dataset))
        scores = ScoreAccumulator(self._val.get('metrics') or {}, len(loader.dataset), share.start)
        images = DataLoader(Subset(loader.dataset, share)) if len(share) < len(loader.dataset) else loader
        batches = batch_by_shape(images, self._val.get('batch_size', DEFAULT_BATCH_SIZE))
        self._model.first_image_index = share.start
        is_silent = distributed.rank() > 0
        with tqdm(total=len(share), unit='image', desc=name, leave=False, disable=is_silent) as progress:
            for batch in preemption.until_preempted(batches, self._model.device):
                if batch is None:
                    raise PreemptedError
                self._model.feed_data(batch)
                self._model.test()
                restored = to_bgr(self._model.output)
                if self._model.gt is not None:
                    scores.add(to_bgr(self._model.lq), restored, to_bgr(self._model.gt))
                if self._val.get('save_img'):
                    for image, key in zip(restored, batch['lq_path'], strict=True):
                        self._save_image(image, Path(key).stem, name, iteration)
                self._model.first_image_index += len(restored)
                progress.update(len(restored))
        scores.reduce()
        if distributed.rank() == 0:
            self._write_sheets(name, iteration, scores)
        self._report(name, iteration, scores)

    def _write_sheets(self, name: str, iteration: int | str, scores: ScoreAccumulator) -> None:
        """Write a contact sheet and, in training, a sheet of intermediate steps; also write them to TensorBoard."""
        folder = self._paths['visualization'] / name
        sheets = {'sheet': folder / f'sheet_{iteration}.png'}
        scores.write_contact_sheet(sheets['sheet'])
        steps = self._model.intermediate_images() if self._model.is_train else {}
        if steps:
            folder.mkdir(parents=True, exist_ok=True)
            sheets['steps'] = folder / f'steps_{iteration}.png'
            write_contact_sheet(
                sheets['steps'], {title: list(to_bgr(images)[..., ::-1]) for title, images in steps.items()}
            )
        for kind, path in sheets.items():
            if self._tb_logger and path.is_file():
                image = np.asarray(cv2.imread(str(path)))[..., ::-1]
                self._tb_logger.add_image(f'{kind}/{name}', image, iteration, dataformats='HWC')

    def _save_image(self, image: Any, name: str, dataset: str, iteration: int | str) -> None:
        folder = self._paths['visualization']
        if self._model.is_train:
            path = folder / name / f'{name}_{iteration}.png'
        else:
            path = folder / dataset / f'{name}_{self._val.get("suffix") or self._name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, image)

    def _report(self, name: str, iteration: int | str, scores: ScoreAccumulator) -> None:
        """Log the scores, append them to ``scores.csv``, and save the network if it is the best so far."""
        restored, corrupted = scores.scores('restored'), scores.scores('corrupted')
        lines = [f'Validation {name}, {self._model.score_label}']
        rows = []
        gains: dict[str, float] = {}
        for metric, value in restored.items():
            gain = value - corrupted[metric] if self.is_higher_better(metric) else corrupted[metric] - value
            gains[metric] = _relative(gain, corrupted[metric])
            lines.append(f'\t # {metric}: {value:.4f}\tcorrupted: {corrupted[metric]:.4f}\tgain: {gain:+.4f}')
            rows.append((iteration, self._model.score_label, name, metric, value, corrupted[metric], gain))
            if self._tb_logger:
                for suffix, scalar in (('', value), ('_corrupted', corrupted[metric]), ('_gain', gain)):
                    self._tb_logger.add_scalar(f'metrics/{name}/{metric}{suffix}', scalar, iteration)
        if gains:
            (self.ceiling_gains if self._model.is_oracle_eval else self.gains)[name] = gains
        if self.selection_metric in restored and name == self.selection_dataset and self._model.is_in_last_phase:
            lines.append(self._keep_if_best(restored[self.selection_metric], iteration))
        get_root_logger().info('\n'.join(lines))
        if distributed.rank() == 0:
            append_scores(self._paths['log'] / 'scores.csv', rows)

    def _keep_if_best(self, value: float, iteration: int | str) -> str:
        """Save the network if its score is the best so far; return a line for the log."""
        best = self.best.get('value')
        higher = self.is_higher_better(self.selection_metric)
        if best is None or (value > best if higher else value < best):
            self.best = {'value': value, 'iter': iteration}
            self.best_gains = self.gains.get(self.selection_dataset or '', {})
            if self._checkpointer is not None:
                self._checkpointer.save_network(BEST, **{BEST: self.best})
        return (
            f'\t best {self.selection_metric}: {self.best["value"]:.4f} in iteration {self.best["iter"]:,}, kept as '
            f'{NETWORK}_{BEST}.pth'
        )


def _relative(gain: float, score: float) -> float:
    """Return a gain relative to a score; ±1 or 0 if the score is infinite, such as the PSNR of equal images."""
    if not math.isfinite(score):
        return 0.0 if gain == 0 or math.isnan(gain) else math.copysign(1.0, gain)
    return gain / max(abs(score), 1e-12)
