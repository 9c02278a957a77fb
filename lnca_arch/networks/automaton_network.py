"""What the networks share that restore an image with an automaton: ``net(image) → restored image``."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lnca_arch.automata.cellular_automaton import CellularAutomaton, check_update_rate

INFERENCE_STEPS = 64  # in the paper's validation and tests
REPORTED_STEPS = 4


class AutomatonNetwork(nn.Module):
    """An automaton between an image and its restoration. A subclass says how a state is seeded and rendered.

    Args:
        automaton: the rule.
        update_rate: probability that a cell takes part in a step, in training and in inference.
        steps: of the automaton in inference, at least 1.

    Attributes:
        image_channels: channels of the images.
        stride: what the sides of :meth:`seed`'s images are multiples of.
    """

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
        """Image ``(N, C, H, W)`` in [0, 1], sides divisible by ``stride`` → (state before the first step, skip)."""
        raise NotImplementedError

    def render(self, state: Tensor, skip: Tensor | None) -> Tensor:
        """A state and the skip from :meth:`seed` → image ``(N, C, H, W)``."""
        raise NotImplementedError

    def forward(self, image: Tensor, steps: int | None = None, update_rate: float | None = None) -> Tensor:
        """Restore images of any size.

        Args:
            image: ``(N, C, H, W)`` in [0, 1].
            steps: steps of the automaton; the network's own unless given.
            update_rate: the network's own unless given.

        Returns:
            The restored images, same shape.
        """
        return self.frames(image, [self.steps if steps is None else steps], update_rate)[0]

    def frames(
        self,
        image: Tensor,
        at: Sequence[int],
        update_rate: float | None = None,
        on_steps: Callable[[int], object] | None = None,
    ) -> list[Tensor]:
        """What becomes of images on the way.

        Args:
            image, update_rate: see :meth:`forward`.
            at: numbers of steps, rising.
            on_steps: called every few steps with how many these were, for who shows progress.

        Returns:
            The images as they are after each of these numbers of steps.
        """
        height, width = image.shape[-2:]
        rate = self.update_rate if update_rate is None else update_rate
        state, skip = self.seed(pad_to_multiple(image, self.stride))
        frames = []
        for done, steps in zip([0, *at], at, strict=False):
            at_once = max(1, steps - done) if on_steps is None else REPORTED_STEPS
            for start in range(done, steps, at_once):
                following = min(at_once, steps - start)
                state = self.automaton(state, following, rate)
                if on_steps is not None:
                    on_steps(following)
            frames.append(self.render(state, skip)[..., :height, :width])
        return frames


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Extend ``(N, C, H, W)`` at the bottom and right by reflection until H and W are multiples of ``multiple``.

    A reflection cannot be longer than the image; an image too small for it is extended by its last row or column.
    """
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    for amount, side, padding in ((bottom, height, (0, 0, 0, bottom)), (right, width, (0, right, 0, 0))):
        if amount:
            image = F.pad(image, padding, mode='reflect' if amount < side else 'replicate')
    return image
