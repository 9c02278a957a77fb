"""The log of a run: environment and options, then losses, learning rate and remaining time."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lnca_model.training.phases import Phase, phase_at

from basicsr.utils import MessageLogger, get_env_info, get_root_logger, get_time_str
from basicsr.utils.options import dict2str


def start_log(opt: Mapping[str, Any], kind: str) -> logging.Logger:
    """Open the log file of a run and log its environment and options.

    Args:
        opt: the options.
        kind: start of the file's name, ``'train'`` or ``'test'``.

    Returns:
        BasicSR's logger. The logger ``lnca``, of the packages that do not need BasicSR, gets the same handlers.
    """
    file = Path(opt['path']['log']) / f'{kind}_{opt["name"]}_{get_time_str()}.log'
    logger = get_root_logger(log_file=str(file))
    logging.getLogger('lnca').handlers = logger.handlers
    logger.info(get_env_info())
    logger.info(dict2str(opt))
    return logger


class PhaseLogger(MessageLogger):
    """BasicSR's MessageLogger, with the remaining time of the phase instead of the run.

    The remaining time of the run is unknown, since phases differ in speed. The learning rate and the number of the
    phase are also written to TensorBoard.

    Args:
        opt: the options.
        phases: the phases of the run.
        start_iter: iteration that the run resumes after; 0 for a new run.
        tb_logger: a TensorBoard writer, or None.
    """

    max_iters: int
    start_iter: int
    start_time: float

    def __init__(
        self, opt: Mapping[str, Any], phases: Sequence[Phase], start_iter: int = 0, tb_logger: Any = None
    ) -> None:
        super().__init__(opt, start_iter, tb_logger)
        self._phases = phases
        self._previous = (start_iter, self.start_time)

    def __call__(self, log_vars: dict[str, Any]) -> None:
        """Log the losses, learning rates and timing of an iteration."""
        iteration, rate = log_vars['iter'], log_vars['lrs'][0]
        phase = phase_at(self._phases, iteration)
        if self.max_iters != phase.last:
            self.max_iters = phase.last
            self.start_iter, self.start_time = self._previous
        super().__call__(log_vars)
        self._previous = (iteration, time.time())
        if self.tb_logger and 'debug' not in self.exp_name:
            self.tb_logger.add_scalar('learning_rate', rate, iteration)
            self.tb_logger.add_scalar('phase', self._phases.index(phase) + 1, iteration)
