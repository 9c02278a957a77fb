"""Validation: the scores of the restored images beside those of the corrupted ones, and the network that was best."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from lnca_arch.errors import DISK_FULL, InputError
from lnca_data.images import write_image
from lnca_data.sheet import write_sheet
from lnca_model import distributed, interruption
from lnca_model.random_state import random_state_kept
from lnca_model.resumable_model import ResumableModel
from lnca_model.validation import Batch, Validation, append_scores, equal_batches, forget_scores, to_bgr
from lnca_restore import checkpoint

from basicsr.utils import get_root_logger

DEFAULT_VALIDATION_BATCH = 64
PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
SELECTION_METRIC = 'ssim'
BEST = 'best'  # what net_g_best.pth says of itself
EXIT_BELOW_INPUT = 3  # exit code of a training that ends with a network worse than none


class ScoredModel(ResumableModel):
    """Restores images in batches, scores them, and keeps the network that was best on validation.

    Options:
        datasets.val_NAME.at_end: score this dataset once, after training, with the best network.
        val.batch_size: tiles restored at once.
        val.precision: ``float32``, or ``bfloat16`` for products when images are restored: faster where the machine can.
        val.selection_metric: a name under val.metrics; the best network is the best by it on the first val dataset.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.best: dict[str, float] = {}
        self.validated: dict[str, int] = {}  # dataset → the iteration of its last validation
        self.first_number = 0  # of the batch that was fed last, in its dataset
        self.gains: dict[str, float] = {}  # dataset → gain in the selection metric, of its last validation
        self._resumed = False
        super().__init__(opt)

    def training_state(self) -> dict[str, Any]:
        return {**super().training_state(), 'best': self.best, 'validated': self.validated}

    def take_back(self, resume_state: dict[str, Any]) -> None:
        super().take_back(resume_state)
        self.best = distributed.agreed(lambda: self._still_kept(resume_state['best']))
        self.validated = resume_state['validated']
        self._resumed = True
        if distributed.rank() == 0:
            at_end = {dataset['name'] for dataset in self.opt['datasets'].values() if dataset.get('at_end')}
            forget_scores(Path(self.opt['path']['log']) / 'scores.csv', self.iteration, self._unscored(), at_end)

    def _still_kept(self, best: dict[str, float]) -> dict[str, float]:
        """The best as a state has it, if net_g_best.pth is of it; nothing if it is of an iteration that this run comes
        to yet, and may come to with another network."""
        path = Path(self.opt['path']['models']) / 'net_g_best.pth'
        try:
            kept = checkpoint.load(path).get(BEST, best)  # earlier checkpoints lack it
        except InputError:
            kept = {}
        if kept == best:
            return best
        get_root_logger().warning(f'{path} is not of what this run has been through; the best is chosen anew.')
        return {}

    def _unscored(self) -> list[str]:
        """The datasets whose validation after the iteration that is done is still to come, also if that is the last
        one: its checkpoint was written before."""
        every = (self.opt.get('val') or {}).get('val_freq')
        if not every or (self.iteration % every and self.iteration < self.opt['train']['total_iter']):
            return []
        return [name for name in self._validated_names() if self.validated.get(name) != self.iteration]

    def _validated_names(self) -> list[str]:
        """The names of the datasets that are validated while the network trains, in their order."""
        return [
            options['name']
            for key, options in self.opt['datasets'].items()
            if key.startswith('val') and not options.get('at_end')
        ]

    def begin_iteration(self, current_iter: int) -> None:
        """Before the first one, score what was not scored when the run ended, which had written its checkpoint
        before."""
        if self._resumed:
            self._resumed = False
            unscored = self._unscored()
            for loader in self.opt['validating'].loaders if unscored else []:
                if loader.dataset.opt['name'] in unscored:
                    self.validation(
                        loader, self.iteration, self.opt['validating'].tb_logger, self.opt['val']['save_img']
                    )
        super().begin_iteration(current_iter)

    @property
    def scored_network(self) -> nn.Module:
        """The moving average if there is one."""
        return getattr(self, 'net_g_ema', None) or self.net_g

    @contextmanager
    def in_evaluation(self) -> Iterator[nn.Module]:
        """The network that is scored, in evaluation mode, without gradients and in val.precision."""
        net = self.scored_network
        # Not all of the network trains: each part goes back to the mode that it was in.
        training = [module for module in net.modules() if module.training]
        net.eval()
        precision = PRECISIONS[(self.opt.get('val') or {}).get('precision', 'float32')]
        reduced = torch.autocast(self.device.type, precision, enabled=precision != torch.float32)
        try:
            with torch.no_grad(), reduced:
                yield net
        finally:
            for module in training:
                module.training = True

    def test(self) -> None:
        with self.in_evaluation() as network:
            self.output = self.restore(network).float()

    def restore(self, network: nn.Module) -> Tensor:
        """The restored images of the batch that was fed last."""
        if getattr(network, 'update_rate', 1) == 1:
            return network(self.lq)
        # Which cells take part in a step is drawn by an image's number alone, so that scores depend neither on the
        # batch, nor on the number of processes, nor on where the training is.
        restored = []
        with random_state_kept():
            for number, image in enumerate(self.lq.split(1), self.first_number):
                torch.manual_seed(number)
                restored.append(network(image))
        return torch.cat(restored)

    def trace(self, network: nn.Module) -> dict[str, Tensor]:
        """Some images of the batch that was fed last, on their way: title → ``(N, C, H, W)``; none unless the network
        has an automaton."""
        return {}

    def validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool = False) -> None:
        """Called by BasicSR every ``val_freq`` iterations, and after training with a number beyond the last. Ends the
        process if a signal asks for it; what was not scored is when the run goes on.

        Raises:
            InputError: the disk is full.
            SystemExit: the training is over and its network scores below the corrupted input, exit code 3.
        """
        self._validate(dataloader, current_iter, tb_logger, save_img)
        validating = self.opt.get('validating')
        is_over = validating and self.is_train and current_iter > self.opt['train']['total_iter']
        if is_over and dataloader is validating.loaders[-1]:
            self._check_final_gain(dataloader.dataset.opt['name'], tb_logger)

    def _validate(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        at_end = False
        if self.is_train:
            total = self.opt['train']['total_iter']
            at_end = dataloader.dataset.opt.get('at_end', False)
            if at_end and current_iter <= total:
                return
            name = dataloader.dataset.opt['name']
            if not at_end and current_iter > total and self.validated.get(name) == total:
                return
            current_iter = min(current_iter, total)
            self.end_if_asked()
        with random_state_kept(), self._best_network() if at_end else nullcontext():
            try:
                super().validation(dataloader, current_iter, tb_logger, save_img)
            except OSError as error:
                if not self.is_train or error.errno not in DISK_FULL:
                    raise
                raise InputError(
                    f'cannot write {error.filename} ({error.strerror}); checkpoints are untouched: make room, then go '
                    'on with --auto_resume'
                ) from error
        if self.is_train:
            self.end_if_asked()
            self.validated[name] = current_iter
        self.resources.interlude()

    @contextmanager
    def _best_network(self) -> Iterator[None]:
        """In here the best network is scored; then it is the trained one again, of which a checkpoint may be due."""
        trained = deepcopy(self.scored_network.state_dict())
        path = Path(self.opt['path']['models']) / 'net_g_best.pth'
        if distributed.rank() == 0 and self.best and path.is_file():
            self.load_network(self.scored_network, str(path), param_key='params_ema')
        distributed.share(self.scored_network.state_dict().values())
        try:
            yield
        finally:
            self.scored_network.load_state_dict(trained)

    def _until_asked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of this process, until any process is asked to end.

        One that has had its last goes on asking as long as another has more, so that none waits for an answer.
        """
        batches = iter(batches)
        while True:
            batch = next(batches, None)
            answers = distributed.known_to_all((interruption.asked() is not None, batch is not None))
            self._ending |= any(asked for asked, _ in answers)
            if self._ending or not any(more for _, more in answers):
                return
            if batch is not None:
                yield batch

    def dist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        self.nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """Called by BasicSR with a loader of batch size 1. Each process restores and scores its share."""
        dataset_options = dataloader.dataset.opt
        name = dataset_options['name']
        share = distributed.share_of(len(dataloader.dataset))
        validation = Validation(self.opt['val'].get('metrics') or {}, len(dataloader.dataset), share.start)
        images = DataLoader(Subset(dataloader.dataset, share)) if len(share) < len(dataloader.dataset) else dataloader
        batches = equal_batches(images, self.opt['val'].get('batch_size', DEFAULT_VALIDATION_BATCH))
        self.first_number = share.start
        others = distributed.rank() > 0
        with tqdm(total=len(share), unit='image', desc=name, leave=False, disable=others) as progress:
            for batch in self._until_asked(batches):
                self.feed_data(batch)
                self.test()
                restored = to_bgr(self.output)
                if self.gt is not None:
                    validation.add(to_bgr(self.lq), restored, to_bgr(self.gt))
                if save_img:
                    for image, key in zip(restored, batch['lq_path'], strict=True):
                        self._save_image(image, Path(key).stem, name, current_iter)
                self.first_number += len(restored)
                progress.update(len(restored))
        if self._ending:
            return
        validation.put_together()
        if distributed.rank() == 0:
            self._write_pictures(name, current_iter, validation, tb_logger)
        self._report(dataset_options, current_iter, validation, tb_logger)

    def _write_pictures(self, name: str, current_iter: int | str, validation: Validation, tb_logger: Any) -> None:
        folder = Path(self.opt['path']['visualization']) / name
        pictures = {'sheet': folder / f'sheet_{current_iter}.png'}
        validation.write_sheet(pictures['sheet'])
        with self.in_evaluation() as network:
            trace = self.trace(network) if self.is_train else {}
        if trace:
            folder.mkdir(parents=True, exist_ok=True)
            pictures['trace'] = folder / f'trace_{current_iter}.png'
            write_sheet(pictures['trace'], {title: to_bgr(images)[..., ::-1] for title, images in trace.items()})
        for kind, path in pictures.items():
            if tb_logger and path.is_file():
                tb_logger.add_image(f'{kind}/{name}', cv2.imread(str(path))[..., ::-1], current_iter, dataformats='HWC')

    def _save_image(self, image: Any, name: str, dataset_name: str, current_iter: int | str) -> None:
        folder = Path(self.opt['path']['visualization'])
        if self.is_train:
            path = folder / name / f'{name}_{current_iter}.png'
        else:
            path = folder / dataset_name / f'{name}_{self.opt["val"].get("suffix") or self.opt["name"]}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, image)

    def _report(
        self, dataset_options: Mapping[str, Any], current_iter: int | str, validation: Validation, tb_logger: Any
    ) -> None:
        """Log the scores, write them to ``scores.csv``, and keep the network if it is the best so far."""
        name, corrupted = dataset_options['name'], validation.scores('corrupted')
        lines = [f'Validation {name}, {self.scored_as()}']
        rows = []
        for metric, value in validation.scores('restored').items():
            gain = value - corrupted[metric]
            if metric == self._selection_metric():
                self._note_gain(name, gain if self._is_higher_better(metric) else -gain)
            lines.append(f'\t # {metric}: {value:.4f}\tcorrupted: {corrupted[metric]:.4f}\tgain: {gain:+.4f}')
            rows.append((current_iter, self.scored_as(), name, metric, value, corrupted[metric], gain))
            if tb_logger:
                for suffix, scalar in (('', value), ('_corrupted', corrupted[metric]), ('_gain', gain)):
                    tb_logger.add_scalar(f'metrics/{name}/{metric}{suffix}', scalar, current_iter)
        if rows and self._selects_by(dataset_options):
            lines.append(self._keep_if_best(validation.scores('restored'), current_iter))
        get_root_logger().info('\n'.join(lines))
        if distributed.rank() == 0:
            append_scores(Path(self.opt['path']['log']) / 'scores.csv', rows)

    def _note_gain(self, name: str, gain: float) -> None:
        """Take the gain of a dataset in the selection metric."""
        self.gains[name] = gain

    def _check_final_gain(self, name: str, tb_logger: Any) -> None:
        """End the process with :data:`EXIT_BELOW_INPUT` if the gain of a dataset is below 0."""
        gain = self.gains.get(name, 0.0)
        if gain >= 0:
            return
        get_root_logger().error(
            f'{name}: the restored images score {-gain:.4f} below the corrupted ones by {self._selection_metric()}; '
            f'{self._cause_of_loss()}'
        )
        if tb_logger:
            tb_logger.close()
        raise SystemExit(EXIT_BELOW_INPUT)

    def _cause_of_loss(self) -> str:
        """Why the network may restore nothing, and what to do about it."""
        return 'train for longer, or at another learning rate'

    def scored_as(self) -> str:
        """What the log says of the network that was scored."""
        return 'restored by the network'

    def _selects_by(self, dataset_options: Mapping[str, Any]) -> bool:
        """Whether a dataset chooses the best network: the first one that is validated, in the last phase that
        trains."""
        if not self.is_train or self.phase.last < self.phases[-1].last:
            return False
        return (
            self._validated_names()[:1] == [dataset_options['name']]
            and self._selection_metric() in self.opt['val']['metrics']
        )

    def _selection_metric(self) -> str:
        return self.opt['val'].get('selection_metric', SELECTION_METRIC)

    def _is_higher_better(self, metric: str) -> bool:
        return self.opt['val']['metrics'][metric].get('better', 'higher') == 'higher'

    def _keep_if_best(self, restored: Mapping[str, float], current_iter: int) -> str:
        metric = self._selection_metric()
        value, best = restored[metric], self.best.get('value')
        if best is None or (value > best if self._is_higher_better(metric) else value < best):
            self.best = {'value': value, 'iter': current_iter}
            self.save_networks('best', {BEST: self.best})
        return f'\t best {metric}: {self.best["value"]:.4f} in iteration {self.best["iter"]:,}, kept as net_g_best.pth'
