"""Scores of a network on the validation sets while it trains, and of the best network at the end."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
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
BEST = 'best'  # label of the best network's file, and its entry that says by which score
EXIT_BELOW_INPUT = 3  # exit code of a training whose network scores below its corrupted input


class PreemptedError(Exception):
    """A signal asks the run to end; the dataset that was being scored is scored when the run resumes."""


class Evaluator:
    """Restores and scores datasets with a model.

    Scores go to the log, to TensorBoard and to ``scores.csv``, pictures to ``visualization/DATASET``. The network that
    is best by ``val.selection_metric`` on the first dataset, in the last phase, is kept as ``net_g_best.pth``.

    Args:
        model: the model; its phase decides what is scored.
        loaders: loaders of batch size 1. Datasets with ``final_test: true`` are scored by :meth:`evaluate_best` alone.
        opt: the options; the block ``val`` and the paths ``log`` and ``visualization`` are used.
        checkpointer: saves the best network; None in a test.
        tb_logger: a TensorBoard writer, on rank 0.

    Attributes:
        best: ``{'value', 'iter'}`` of the best network; empty while there is none.
        gains: dataset → metric → gain of its last evaluation over the corrupted images, positive where the restored
            images are better, and relative to the score of the corrupted ones.
        best_gains: the same of the best network on the dataset that chose it.
        ceiling_gains: the same for the autoencoder with the latents of the ground truth.
    """

    def __init__(
        self,
        model: 'RestorationModel',
        loaders: Sequence[DataLoader],
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
        self.best: dict[str, float] = {}
        self.gains: dict[str, dict[str, float]] = {}
        self.best_gains: dict[str, float] = {}
        self.ceiling_gains: dict[str, dict[str, float]] = {}

    @property
    def selection_metric(self) -> str:
        return self._val.get('selection_metric', SELECTION_METRIC)

    def is_higher_better(self, metric: str) -> bool:
        return self._val['metrics'][metric].get('better', 'higher') == 'higher'

    @property
    def final_gains(self) -> tuple[str | None, dict[str, float]]:
        """The dataset that says how good the best network is, and its gains: the last with ``final_test``, else the one
        that chose the network."""
        if self._final_tests:
            name = self._final_tests[-1].dataset.opt['name']
            return name, self.gains.get(name, {})
        return self.selection_dataset, self.best_gains

    @property
    def selection_dataset(self) -> str | None:
        """Name of the dataset that chooses the best network."""
        return self._during[0].dataset.opt['name'] if self._during else None

    # --- when

    def evaluate(self, iteration: int) -> None:
        """Score every dataset that is scored in training and was not yet in this iteration.

        Raises:
            PreemptedError: a signal asks the run to end.
            LNCAError: the disk is full.
        """
        for loader in self._during:
            name = loader.dataset.opt['name']
            if self._evaluated.get(name) != iteration:
                with fork_rng():
                    self._guarded(loader, iteration)
                self._evaluated[name] = iteration

    def evaluate_best(self, iteration: int) -> None:
        """Score the datasets with ``final_test: true`` with the best network; raises as :meth:`evaluate`."""
        if not self._final_tests:
            return
        with self._best_network():
            for loader in self._final_tests:
                with fork_rng():
                    self._guarded(loader, iteration)

    def evaluate_all(self, label: str) -> None:
        """Score every dataset with the network as it is, for a test run. A label takes the iteration's place."""
        for loader in (*self._during, *self._final_tests):
            get_root_logger().info(f'Testing {loader.dataset.opt["name"]}...')
            self._evaluate_dataset(loader, label)

    def _guarded(self, loader: DataLoader, iteration: int) -> None:
        try:
            self._evaluate_dataset(loader, iteration)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise LNCAError(
                f'cannot write {error.filename} ({error.strerror}); checkpoints are untouched: make room, then go on '
                'with --auto_resume'
            ) from error

    @contextmanager
    def _best_network(self) -> Iterator[None]:
        """Score the best network; afterwards the network is the trained one again."""
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
        return {
            'best': self.best,
            'evaluated': self._evaluated,
            'gains': self.gains,
            'best_gains': self.best_gains,
            'ceiling_gains': self.ceiling_gains,
        }

    def load_state_dict(self, saved: Mapping[str, Any], iteration: int, is_due: bool) -> None:
        """Restore the state after an iteration, and drop what will be scored again from ``scores.csv``.

        Args:
            saved: from :meth:`state_dict`.
            iteration: of the checkpoint.
            is_due: whether this iteration is to be evaluated. Its checkpoint was saved before.
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
        """The best score of a checkpoint, if net_g_best.pth is of the same network; empty if it belongs to another run
        or to an iteration after the checkpoint."""
        path = self._models / f'{NETWORK}_{BEST}.pth'
        try:
            kept = checkpoint.load(path).get(BEST, best)  # earlier checkpoints lack it
        except LNCAError:
            kept = {}
        if kept == best:
            return best
        get_root_logger().warning(f'{path} belongs to another run; the best score is reset.')
        return {}

    # --- one dataset

    def _evaluate_dataset(self, loader: DataLoader, iteration: int | str) -> None:
        """Score a dataset, each rank its share, and write scores and pictures."""
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
            self._write_pictures(name, iteration, scores)
        self._report(name, iteration, scores)

    def _write_pictures(self, name: str, iteration: int | str, scores: ScoreAccumulator) -> None:
        folder = self._paths['visualization'] / name
        pictures = {'sheet': folder / f'sheet_{iteration}.png'}
        scores.write_contact_sheet(pictures['sheet'])
        steps = self._model.intermediate_images() if self._model.is_train else {}
        if steps:
            folder.mkdir(parents=True, exist_ok=True)
            pictures['steps'] = folder / f'steps_{iteration}.png'
            write_contact_sheet(
                pictures['steps'], {title: to_bgr(images)[..., ::-1] for title, images in steps.items()}
            )
        for kind, path in pictures.items():
            if self._tb_logger and path.is_file():
                image = cv2.imread(str(path))[..., ::-1]
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
        """Log the scores, append them to ``scores.csv``, and keep the network if it is the best so far."""
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
        best = self.best.get('value')
        higher = self.is_higher_better(self.selection_metric)
        if best is None or (value > best if higher else value < best):
            self.best = {'value': value, 'iter': iteration}
            self.best_gains = self.gains[self.selection_dataset]
            if self._checkpointer is not None:
                self._checkpointer.save_network(BEST, **{BEST: self.best})
        return (
            f'\t best {self.selection_metric}: {self.best["value"]:.4f} in iteration {self.best["iter"]:,}, kept as '
            f'{NETWORK}_{BEST}.pth'
        )


def _relative(gain: float, score: float) -> float:
    """A gain relative to a score; the PSNR of equal images is infinite."""
    if not math.isfinite(score):
        return 0.0 if gain == 0 or math.isnan(gain) else math.copysign(1.0, gain)
    return gain / max(abs(score), 1e-12)
