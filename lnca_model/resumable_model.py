"""A training whose checkpoints are whole or not there, and from which it goes on exactly."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lnca_arch.errors import InputError, one_line
from lnca_data.atomic import write_json
from lnca_model import distributed, interruption
from lnca_model.course import Course
from lnca_model.random_state import random_state, restore_random_state
from lnca_model.resources import Resources
from lnca_restore import checkpoint

from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only

TICK = 10**6  # nanoseconds, which file systems tell apart


class ResumableModel(SRModel):
    """BasicSR's SRModel with checkpoints that hold all that an uninterrupted run would go on with. What a subclass has
    beside the network, the optimisers and the schedules, it adds to :meth:`training_state` or :meth:`process_state`,
    and takes back in :meth:`take_back`.

    Options:
        logger.keep_checkpoints: how many checkpoints to keep, the newest; all if left out.
    """

    #: Which images come when; none unless the pipeline has said so.
    course: Course | None = None

    def __init__(self, opt: dict[str, Any]) -> None:
        self.iteration = 0
        self.resources = Resources(torch.device('cuda' if opt['num_gpu'] else 'cpu'))
        self._saved = 0  # the last iteration of which there is a checkpoint
        self._ending = False
        super().__init__(opt)

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = 'params') -> None:
        weights = checkpoint.read_weights(net, load_path, strict, param_key)
        net.load_state_dict(weights, strict=strict)
        get_root_logger().info(
            f'Loaded {len(weights)} of {len(net.state_dict())} tensors of {type(net).__name__} from {load_path}.'
        )

    @property
    def is_sound(self) -> bool:
        """Whether the network is one to go on from. Checkpoints are of such ones alone."""
        return True

    def begin_iteration(self, current_iter: int) -> None:
        """What comes first in every iteration."""
        if self.is_sound:  # else the end is near, or an iteration that can be saved
            self.end_if_asked()
        self.resources.start()
        self.iteration = current_iter

    @master_only
    def save_network(
        self,
        net: Any,
        net_label: str,
        current_iter: int | str,
        param_key: Any = 'params',
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """BasicSR's layout under BasicSR's name, and beside it the options that rebuild the network, and more entries;
        written whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        nets, keys = (value if isinstance(value, list) else [value] for value in (net, param_key))
        content = {
            key: {name: tensor.cpu() for name, tensor in net.state_dict().items()}
            for net, key in zip(nets, keys, strict=True)
        }
        content[checkpoint.OPTIONS] = dict(self.opt[checkpoint.OPTIONS])
        name = f'{net_label}_{"latest" if current_iter == -1 else current_iter}.pth'
        checkpoint.save(content | dict(more or {}), Path(self.opt['path']['models']) / name)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        if current_iter == -1:
            return
        processes = distributed.gathered(self.process_state())
        if distributed.rank() == 0:
            state = {'epoch': epoch, 'iter': current_iter, **self.training_state(), 'processes': processes}
            path = Path(self.opt['path']['training_states']) / f'{current_iter}.state'
            checkpoint.save(state, path)
            mark_newest(path)

    def process_state(self) -> dict[str, Any]:
        """What a resumed run needs of each process, on the CPU."""
        return {'random': random_state()}

    def training_state(self) -> dict[str, Any]:
        """What a resumed run needs beside the network and that."""
        return {
            'kinds': self._kinds(),
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'resources': self.resources.state_dict(),
            **({'seen': self.course.at(self.iteration)['seen']} if self.course else {}),
        }

    def _kinds(self) -> list[str]:
        """Of the optimisers: one's state is nothing for another."""
        return [type(optimizer).__name__ for optimizer in self.optimizers]

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Called by BasicSR with the training state that is gone on from.

        Raises:
            InputError: it is of a training that the options do not describe.
        """
        path = self.opt['path']['resume_state']
        try:
            self.take_back(resume_state)
        except InputError:  # which has another cause, such as a process that is gone
            raise
        except Exception as error:  # what is missing, too much or of another size can raise anything
            raise InputError(
                f'{path}: is of a training with other options ({one_line(error)}); go on with those, or begin a run of '
                'another name, with the network under path.pretrain_network_g'
            ) from error

    def take_back(self, resume_state: dict[str, Any]) -> None:
        """Be as the training was that a state is of.

        Raises:
            ValueError, among others: it is of a training that the options do not describe.
        """
        if (kinds := resume_state.get('kinds', self._kinds())) != self._kinds():  # earlier checkpoints lack it
            raise ValueError(f'its optimisers are {", ".join(kinds)}, not {", ".join(self._kinds())}')
        for note in resume_state.get('notes', []):
            get_root_logger().warning(note)
        # How far schedules are; their lengths and rates are what the options say now.
        schedulers = [
            {key: saved[key] for key in ('last_epoch', '_step_count')} for saved in resume_state['schedulers']
        ]
        super().resume_training(resume_state | {'schedulers': schedulers})
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            for group, rate in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
                group['lr'] *= rate / group['initial_lr']
                group['initial_lr'] = rate
        self.resources.load_state_dict(resume_state['resources'])
        # Where there are more processes than there were, the others' go on from their seeds.
        if distributed.rank() < len(resume_state['processes']):
            restore_random_state(resume_state['processes'][distributed.rank()]['random'])
        self.iteration = self._saved = resume_state['iter']

    def save(self, epoch: int, current_iter: int) -> None:
        """Called by BasicSR every ``save_checkpoint_freq`` iterations, before it validates, and after the last with −1:
        then what training took is logged, and written to ``training.json``. Checkpoints that logger.keep_checkpoints
        does not keep are removed. There is none of a network that is not sound."""
        if current_iter != -1 and not self.is_sound:
            get_root_logger().warning(
                f'No checkpoint of iteration {current_iter:,}, whose step was skipped; the last one is of iteration '
                f'{self._saved:,}.'
            )
            return
        super().save(epoch, current_iter)
        if current_iter == -1:
            self._report_resources()
            return
        self._saved = current_iter
        self._remove_old_checkpoints()
        self.resources.interlude()

    @master_only
    def _remove_old_checkpoints(self) -> None:
        kept = self.opt['logger'].get('keep_checkpoints')
        if not kept:
            return
        paths = self.opt['path']
        for iteration in (int(path.stem) for path in states_in(paths['training_states'])[:-kept]):
            # The state first: no state is without its network, should this be cut off.
            for path in (f'{paths["training_states"]}/{iteration}.state', f'{paths["models"]}/net_g_{iteration}.pth'):
                Path(path).unlink(missing_ok=True)

    def end_if_asked(self) -> None:
        """If a signal has asked for it, end the process after the iteration that is done, its checkpoint written."""
        if not self._ending:
            return
        if self.iteration > self._saved:
            self.save(self.course.at(self.iteration)['epoch'], self.iteration)
        distributed.wait()  # a launcher ends all when one has ended
        asked = interruption.asked() or 'another process was asked to end'
        get_root_logger().warning(f'{asked}: saved iteration {self._saved:,}; --auto_resume goes on from there.')
        raise SystemExit(interruption.EXIT_CODE)

    @master_only
    def _report_resources(self) -> None:
        seconds, peak = self.resources.seconds, self.resources.peak_bytes
        figures = {
            'iterations': self.iteration,
            'seconds': seconds,
            'peak_memory_bytes': peak,
            'parameters': sum(parameter.numel() for parameter in self.network.parameters()),
        }
        get_root_logger().info(
            f'Trained {self.iteration:,} iterations in {seconds:,.1f} s, without waiting for data, validation and '
            f'checkpoints; peak memory {peak / 1e9:.2f} GB.'
        )
        write_json(Path(self.opt['path']['log']) / 'training.json', figures)

    def save_networks(self, current_iter: int | str, more: Mapping[str, Any]) -> None:
        """Save the network, its moving average if there is one, and more, as ``net_g_CURRENT_ITER.pth``."""
        if hasattr(self, 'net_g_ema'):
            self.save_network([self.net_g, self.net_g_ema], 'net_g', current_iter, ['params', 'params_ema'], more)
        else:
            self.save_network(self.net_g, 'net_g', current_iter, more=more)


def states_in(folder: Path | str) -> list[Path]:
    """The training states in a folder: ``ITERATION.state``; other names are somebody's own.

    In the order in which they were written: a run that went back to an earlier one overtakes what it had left behind.
    """
    states = [path for path in Path(folder).glob('*.state') if re.fullmatch('[0-9]+', path.stem)]
    return sorted(states, key=lambda path: (path.stat().st_mtime_ns, int(path.stem)))


def mark_newest(state: Path) -> None:
    """Have a training state be the last of :func:`states_in`, also where clocks go back or differ."""
    others = [other.stat().st_mtime_ns + TICK for other in states_in(state.parent) if other != state]
    moment = max([time.time_ns(), *others])
    os.utime(state, ns=(moment, moment))
