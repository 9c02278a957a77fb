"""Restoration of photographs with a trained network."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lnca_arch.networks.automaton_network import AutomatonNetwork
from lnca_data.io.photographs import read_photograph
from lnca_restore.pretrained import load_network
from lnca_restore.tiled_inference import restore_tiled, windows
from lnca_utils.errors import LNCAError, one_line

BATCH_PIXELS = 1 << 16  # number of pixels in a batch of small tiles


class TileConfig(NamedTuple):
    """Side of a tile and overlap of neighbours, in pixels."""

    side: int
    overlap: int


# An automaton takes little memory; other networks have many channels for every pixel. A ViTCA only works on a grid of
# the size that it was trained on.
AUTOMATON, FIXED_GRID, OTHER = TileConfig(1024, 64), TileConfig(32, 8), TileConfig(256, 32)
OTHER_STRIDE = 8  # tiles of networks without an automaton start at multiples of this


class Restorer:
    """A trained network that restores photographs of any size and kind.

    Args:
        network: a network on any device that maps ``(N, C, H, W)`` in [0, 1] to the same shape.
        tile: side of the tiles in pixels, a multiple of 8. Larger tiles take more memory and less time. Default: 1024;
            32 for a ViTCA, 256 for networks without an automaton.
        overlap: overlap of neighbouring tiles in pixels, at most half of ``tile``, and a multiple of 8 and of twice the
            network's stride (8 for networks without an automaton). Default: the largest such number up to 64; up to 8
            for a ViTCA, 32 for networks without an automaton.

    Raises:
        LNCAError: if ``tile`` or ``overlap`` is invalid.
    """

    def __init__(self, network: nn.Module, tile: int | None = None, overlap: int | None = None) -> None:
        self.network = network.eval()
        if isinstance(network, AutomatonNetwork):
            self.fixed_grid, self.stride = network.automaton.fixed_grid, network.stride
            default = FIXED_GRID if self.fixed_grid else AUTOMATON
        else:
            self.fixed_grid, self.stride, default = False, OTHER_STRIDE, OTHER
        side = default.side if tile is None else tile
        unit = max(8, 2 * self.stride)  # an overlap is a multiple of this
        if side <= 0 or side % 8:
            raise LNCAError(f'tile: must be a multiple of 8 and at least 8, got {side}')
        if overlap is None:
            overlap = min(default.overlap // unit, side // 2 // unit) * unit
        if overlap % unit or not 0 <= overlap <= side // 2:
            raise LNCAError(
                f'overlap: must be a multiple of {unit} and at most half of the tile of {side} pixels, got {overlap}'
            )
        self.tiles = TileConfig(side, overlap)
        self.image_channels = getattr(network, 'image_channels', 3)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: Path | str,
        option_file: Path | str | None = None,
        device: torch.device | str | None = None,
        **tiles: int | None,
    ) -> 'Restorer':
        """Create a restorer with a network from :func:`~lnca_restore.pretrained.load_network`.

        Args:
            name_or_path: ``'denoise'`` or ``'deblur'``, which are bundled, or the path of a checkpoint.
            option_file: a YAML file with a block ``network_g``, for a checkpoint that does not describe its network.
            device: device to restore on. Default: CUDA if available, else the CPU.
            tiles: ``tile`` and ``overlap``, see :class:`Restorer`.

        Raises:
            LNCAError: if the model or the device is not available, or the tiles are invalid.
        """
        device = _check_device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        return cls(load_network(name_or_path, option_file).network.to(device), **tiles)

    def __call__(self, image: np.ndarray | Path | str, steps: int | None = None, progress: bool = False) -> np.ndarray:
        """Restore a photograph.

        Args:
            image: ``(H, W)`` or ``(H, W, C)`` with C one of 1 (grey), 3 (RGB) and 4 (RGBA, whose alpha is kept); uint8,
                uint16, or floating-point in [0, 1]. Or the path of a file; its photograph is turned upright.
            steps: number of steps of the automaton. Default: the network's.
            progress: whether to show a progress bar.

        Returns:
            The restored photograph, of the same shape and dtype.

        Raises:
            LNCAError: if the image or the file is invalid.
        """
        return self.intermediate_outputs(image, None if steps is None else [steps], progress)[0]

    def intermediate_outputs(
        self, image: np.ndarray | Path | str, steps: Sequence[int] | None = None, progress: bool = False
    ) -> list[np.ndarray]:
        """Restore a photograph and return it after several numbers of steps.

        Args:
            image, progress: see :meth:`__call__`.
            steps: numbers of steps of the automaton, ascending. Default: the network's number of steps only.

        Returns:
            A photograph for each number of steps, of the same shape and dtype as ``image``.

        Raises:
            LNCAError: if the image, the file or the steps are invalid.
        """
        if not isinstance(image, np.ndarray):
            if not isinstance(image, str | Path):
                raise LNCAError(f'image: must be an array or a path, got {type(image).__name__}; use np.asarray')
            image = read_photograph(image).upright()
        _check_image(image)
        step_counts = self.check_steps(steps)
        pixels = image if image.ndim == 3 else image[..., None]
        outputs = [pixels.copy() for _ in step_counts]
        restored = [output[..., :3] for output in outputs]
        side, overlap = self.tiles
        colours, height, width = pixels[..., :3], *pixels.shape[:2]
        is_padded = self.fixed_grid and min(height, width) < side
        if is_padded:
            colours = np.pad(colours, ((0, max(0, side - height)), (0, max(0, side - width)), (0, 0)), mode='reflect')
            restored = [np.empty_like(colours) for _ in step_counts]
        rows, columns = (
            windows(length, side, overlap, self.stride, exact=self.fixed_grid) for length in colours.shape[:2]
        )
        # Count steps rather than tiles, so that the bar shows progress within a tile.
        total, unit = len(rows) * len(columns), 'tile'
        if step_counts[-1] is not None:
            total, unit = total * step_counts[-1], 'step'
        with tqdm(total=total, unit=unit, leave=False, disable=not progress) as bar:
            restore = functools.partial(
                self._restore_tiles, steps=step_counts, on_done=bar.update if progress else None
            )
            restore_tiled(colours, restore, restored, rows, columns, max(1, BATCH_PIXELS // side**2))
        if is_padded:
            for output, result in zip(outputs, restored, strict=True):
                output[..., :3] = result[:height, :width]
        return [output.reshape(image.shape) for output in outputs]

    def check_steps(self, steps: Sequence[int] | None) -> list[Any]:
        """Validate numbers of steps.

        Args:
            steps: as for :meth:`intermediate_outputs`.

        Returns:
            The numbers of steps, with the default filled in; ``[None]`` for a network without an automaton.

        Raises:
            LNCAError: if they are not ascending whole numbers from 0, or the network has no automaton.
        """
        if not isinstance(self.network, AutomatonNetwork):
            if steps is not None:
                raise LNCAError(f'steps: {type(self.network).__name__} has no automaton; leave them out')
            return [None]
        counts = [self.network.steps] if steps is None else list(steps)
        are_whole = all(isinstance(count, int | np.integer) for count in counts)
        if not counts or not are_whole or counts[0] < 0 or counts != sorted(counts):
            raise LNCAError(f'steps: must be ascending whole numbers from 0, got {counts}')
        return counts

    @torch.no_grad()
    def _restore_tiles(
        self, tiles: np.ndarray, steps: list[Any], on_done: Callable[[int], object] | None
    ) -> list[np.ndarray]:
        parameter = next(self.network.parameters())
        scale = 1 if np.issubdtype(tiles.dtype, np.floating) else np.iinfo(tiles.dtype).max
        images = torch.from_numpy(tiles.astype(np.float32) / np.float32(scale)).permute(0, 3, 1, 2).to(parameter.device)
        channels = images.shape[1]
        if channels < self.image_channels:  # a grey image for a colour network
            images = images.expand(-1, self.image_channels, -1, -1)
        elif channels > self.image_channels:  # each channel separately for a grey network
            images = images.flatten(0, 1)[:, None]
        images = images.contiguous()
        if isinstance(self.network, AutomatonNetwork):
            on_steps = None if on_done is None else lambda count: on_done(count * len(tiles))
            results = self.network.intermediate_outputs(images, steps, on_steps=on_steps)
        else:
            results = [self.network(images)]
            if on_done is not None:
                on_done(len(tiles))
        if channels < self.image_channels:
            results = [result.mean(dim=1, keepdim=True) for result in results]
        elif channels > self.image_channels:
            results = [result.unflatten(0, (-1, channels))[:, :, 0] for result in results]
        return [result.permute(0, 2, 3, 1).cpu().numpy() for result in results]


def _check_device(device: torch.device | str) -> torch.device | str:
    """Return a device, or raise LNCAError if it cannot be used."""
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = one_line(error).partition('. ')[0]
        raise LNCAError(f'device {device}: cannot be used here ({reason}); use cpu') from None
    return device


def _check_image(image: np.ndarray) -> None:
    """Raise LNCAError unless an image has a valid shape, type and range."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] not in (1, 3, 4)) or not image.size:
        raise LNCAError(f'image: must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {image.shape}')
    if image.dtype not in (np.uint8, np.uint16) and not np.issubdtype(image.dtype, np.floating):
        raise LNCAError(f'image: must be uint8, uint16 or floating-point, got {image.dtype}')
    if not np.issubdtype(image.dtype, np.floating):
        return
    if not np.isfinite(image).all():
        raise LNCAError('image: has NaNs or infinite values; replace them')
    # Allow the overshoot of resized images, but not values up to 255.
    if not -1 <= image.min() <= image.max() <= 2:
        raise LNCAError(
            f'image: floating-point values must be in [0, 1], got {image.min():g} to {image.max():g}; divide by 255'
        )
