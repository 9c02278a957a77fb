"""Base class of the networks that restore an image with an automaton."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lnca_arch.automata.cellular_automaton import CellularAutomaton, check_update_rate

INFERENCE_STEPS = 64  # as in the paper's validation and tests
STEPS_PER_REPORT = 4


class AutomatonNetwork(nn.Module):
    """Restores an image with an automaton.

    A subclass defines :meth:`seed` and :meth:`render`.

    Args:
        automaton: the rule.
        update_rate: probability that a cell is updated in a step, in training and in inference.
        steps: number of steps in inference, at least 1.

    Attributes:
        image_channels: number of image channels.
        stride: height and width of an image passed to :meth:`seed` must be multiples of this.

    Raises:
        ValueError: if an argument is out of range.
    """

    automaton: CellularAutomaton
    steps: int
    image_channels: int

    stride = 1

    def __init__(self, automaton: CellularAutomaton, update_rate: float, steps: int) -> None:
        super().__init__()
        check_update_rate(update_rate)
        if steps < 1:
            raise ValueError(f'steps must be at least 1, got {steps}')
        self.automaton = automaton
        self.update_rate = update_rate
        self.steps = steps

    def seed(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the state before the first step, and the skip; None for networks without one.

        Args:
            image: ``(N, C, H, W)`` in [0, 1], H and W divisible by ``stride``.
        """
        raise NotImplementedError

    def render(self, state: Tensor, skip: Tensor | None = None) -> Tensor:
        """Return the image ``(N, C, H, W)`` of a state and the skip from :meth:`seed`."""
        raise NotImplementedError

    def forward(self, image: Tensor, steps: int | None = None, update_rate: float | None = None) -> Tensor:
        """Restore images of any size.

        Args:
            image: ``(N, C, H, W)`` in [0, 1].
            steps: number of steps. Default: the network's.
            update_rate: probability that a cell is updated in a step. Default: the network's.

        Returns:
            The restored images, same shape.

        Raises:
            ValueError: if ``steps`` is negative.
        """
        return self.intermediate_outputs(image, [self.steps if steps is None else steps], update_rate)[0]

    def intermediate_outputs(
        self,
        image: Tensor,
        steps: Sequence[int],
        update_rate: float | None = None,
        on_steps: Callable[[int], object] | None = None,
    ) -> list[Tensor]:
        """Restore images and return the result after each of several numbers of steps.

        Args:
            image, update_rate: see :meth:`forward`.
            steps: numbers of steps, ascending.
            on_steps: called every few steps with the number of steps since the last call.

        Returns:
            The restored images for each number of steps, of the same shape as ``image``.
        """
        if not steps or steps[0] < 0 or list(steps) != sorted(steps):
            raise ValueError(f'steps must be ascending and at least 0, got {list(steps)}')
        height, width = image.shape[-2:]
        rate = self.update_rate if update_rate is None else update_rate
        state, skip = self.seed(pad_to_multiple(image, self.stride))
        images = []
        for first, last in zip([0, *steps], steps, strict=False):
            chunk = max(1, last - first) if on_steps is None else STEPS_PER_REPORT
            for start in range(first, last, chunk):
                count = min(chunk, last - start)
                state = self.automaton(state, count, rate)
                if on_steps is not None:
                    on_steps(count)
            images.append(self.render(state, skip)[..., :height, :width])
        return images


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad ``(N, C, H, W)`` at the bottom and right by reflection until H and W are multiples of ``multiple``.

    Images too small to be reflected are padded with their last row or column.
    """
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    for amount, size, padding in ((bottom, height, (0, 0, 0, bottom)), (right, width, (0, right, 0, 0))):
        if amount:
            image = F.pad(image, padding, mode='reflect' if amount < size else 'replicate')
    return image
