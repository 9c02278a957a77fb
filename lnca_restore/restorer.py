"""Restoring photographs with a trained network."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lnca_arch.networks.automaton_network import AutomatonNetwork
from lnca_data.io.photographs import read_photograph
from lnca_restore.pretrained import load_network
from lnca_restore.tiled_inference import restore_tiled, windows
from lnca_utils.errors import LNCAError, one_line

PIXELS_AT_ONCE = 1 << 16  # small tiles go together, up to about so many pixels


class TileConfig(NamedTuple):
    """Side of a tile, and what neighbours have in common, in pixels."""

    side: int
    overlap: int


# An automaton takes little memory; others keep many channels of all pixels. A ViTCA is tied to the grid that it was
# trained at.
AUTOMATON, TIED_AUTOMATON, OTHER = TileConfig(1024, 64), TileConfig(32, 8), TileConfig(256, 32)
OTHER_STRIDE = 8  # where the tiles of networks without an automaton begin


class Restorer:
    """A trained network that takes photographs of any size and kind.

    Args:
        network: on any device; ``(N, C, H, W)`` in [0, 1] → the same.
        tile: side of the tiles in pixels, a multiple of 8; larger ones take more memory and less time. By default what
            suits the network: 1024, for a ViTCA 32, for networks without an automaton 256.
        overlap: what neighbouring tiles see in common, a multiple of 8, or of 16 if the network divides an image's
            sides by 8; at most half of ``tile``. By default about an eighth of it.

    Raises:
        LNCAError: ``tile`` or ``overlap`` are not so.
    """

    def __init__(self, network: nn.Module, tile: int | None = None, overlap: int | None = None) -> None:
        self.network = network.eval()
        if not isinstance(network, AutomatonNetwork):
            self.is_tied, self.stride, default = False, OTHER_STRIDE, OTHER
        else:
            self.is_tied, self.stride = network.automaton.fixed_grid, network.stride
            default = TIED_AUTOMATON if self.is_tied else AUTOMATON
        side = default.side if tile is None else tile
        least = max(8, 2 * self.stride)  # of which an overlap is a multiple
        if side <= 0 or side % 8:
            raise LNCAError(f'tile: must be a multiple of 8 and at least 8, got {side}')
        if overlap is None:
            overlap = min(default.overlap // least, side // 2 // least) * least
        if overlap % least or not 0 <= overlap <= side // 2:
            raise LNCAError(
                f'overlap: must be a multiple of {least} and at most half of the tile of {side} pixels, got {overlap}'
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
        """A restorer with a network from :func:`load_network`.

        Args:
            name_or_path: ``denoise`` or ``deblur``, which come along, or a checkpoint.
            option_file: a YAML with a block ``network_g``, if the checkpoint does not tell.
            device: where to restore; by default CUDA if there is one.
            tiles: ``tile`` and ``overlap``.

        Raises:
            LNCAError: there is no such model or device.
        """
        device = _usable(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        return cls(load_network(name_or_path, option_file).network.to(device), **tiles)

    def __call__(self, image: np.ndarray | Path | str, steps: int | None = None, progress: bool = False) -> np.ndarray:
        """Restore a photograph.

        Args:
            image: ``(H, W)`` or ``(H, W, C)`` with C one of 1 (grey), 3 (RGB) and 4 (RGBA, of which alpha stays as it
                is); uint8, uint16, or floating-point in [0, 1]. Or the path of a file, which is turned upright.
            steps: steps of the automaton; the network's own unless given.
            progress: show a bar.

        Returns:
            The restored photograph, of the same shape and type.

        Raises:
            LNCAError: it is not such an image or file.
        """
        return self.intermediate_outputs(image, None if steps is None else [steps], progress)[0]

    def intermediate_outputs(
        self, image: np.ndarray | Path | str, at: Sequence[int] | None = None, progress: bool = False
    ) -> list[np.ndarray]:
        """A photograph after some of the automaton's steps.

        Args:
            image: as above.
            at: numbers of steps, rising.
            progress: show a bar.

        Returns:
            A photograph for each of these.
        """
        if not isinstance(image, np.ndarray):
            if not isinstance(image, str | Path):
                raise LNCAError(f'an array or a path is needed, got a {type(image).__name__}; np.asarray makes one')
            image = read_photograph(image).upright()
        _check_image(image)
        at = self.checked_steps(at)
        pixels = image if image.ndim == 3 else image[..., None]
        outputs = [pixels.copy() for _ in at]
        restored = [output[..., :3] for output in outputs]
        side, overlap = self.tiles
        colours, height, width = pixels[..., :3], *pixels.shape[:2]
        is_too_small = self.is_tied and min(height, width) < side  # it knows no smaller grid
        if is_too_small:
            colours = np.pad(colours, ((0, max(0, side - height)), (0, max(0, side - width)), (0, 0)), mode='reflect')
            restored = [np.empty_like(colours) for _ in at]
        rows, columns = (
            windows(length, side, overlap, self.stride, exact=self.is_tied) for length in colours.shape[:2]
        )
        # A photograph of one tile, too, has an estimate: of an automaton its steps count.
        total, unit = len(rows) * len(columns), 'tile'
        if at[-1] is not None:
            total, unit = total * at[-1], 'step'
        with tqdm(total=total, unit=unit, leave=False, disable=not progress) as bar:
            restore = functools.partial(self._restore_tiles, at=at, on_done=bar.update if progress else None)
            restore_tiled(colours, restore, restored, rows, columns, max(1, PIXELS_AT_ONCE // side**2))
        if is_too_small:
            for output, result in zip(outputs, restored, strict=True):
                output[..., :3] = result[:height, :width]
        return [output.reshape(image.shape) for output in outputs]

    def checked_steps(self, at: Sequence[int] | None) -> list[int | None]:
        """The steps after which :meth:`intermediate_outputs` gives a photograph.

        Raises:
            LNCAError: they do not rise from 0 on, or the network takes none.
        """
        if not isinstance(self.network, AutomatonNetwork):
            if at is not None:
                raise LNCAError(f'{type(self.network).__name__} has no automaton, so it takes no steps')
            return [None]
        at = [self.network.steps] if at is None else list(at)
        if not at or not all(isinstance(steps, int | np.integer) for steps in at) or at[0] < 0 or at != sorted(at):
            raise LNCAError(f'steps: whole numbers from 0 on that rise are needed, got {at}')
        return at

    @torch.no_grad()
    def _restore_tiles(
        self, tiles: np.ndarray, at: list[int | None], on_done: Callable[[int], object] | None
    ) -> list[np.ndarray]:
        parameter = next(self.network.parameters())
        scale = 1 if np.issubdtype(tiles.dtype, np.floating) else np.iinfo(tiles.dtype).max
        given = torch.from_numpy(tiles.astype(np.float32) / np.float32(scale)).permute(0, 3, 1, 2).to(parameter.device)
        channels = given.shape[1]
        if channels < self.image_channels:  # grey for a network of colours
            given = given.expand(-1, self.image_channels, -1, -1)
        elif channels > self.image_channels:  # colours for a network of grey, each by itself
            given = given.flatten(0, 1)[:, None]
        given = given.contiguous()
        if isinstance(self.network, AutomatonNetwork):
            on_steps = None if on_done is None else lambda steps: on_done(steps * len(tiles))
            results = self.network.intermediate_outputs(given, at, on_steps=on_steps)
        else:
            results = [self.network(given)]
            if on_done is not None:
                on_done(len(tiles))
        if channels < self.image_channels:
            results = (result.mean(dim=1, keepdim=True) for result in results)
        elif channels > self.image_channels:
            results = (result.unflatten(0, (-1, channels))[:, :, 0] for result in results)
        return [result.permute(0, 2, 3, 1).cpu().numpy() for result in results]


def _usable(device: torch.device | str) -> torch.device | str:
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = one_line(error).partition('. ')[0]
        raise LNCAError(f'device {device}: cannot be used here ({reason})') from None
    return device


def _check_image(image: np.ndarray) -> None:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] not in (1, 3, 4)) or not image.size:
        raise LNCAError(f'an image (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) is needed, got {image.shape}')
    if image.dtype not in (np.uint8, np.uint16) and not np.issubdtype(image.dtype, np.floating):
        raise LNCAError(f'an image of uint8, uint16 or floating-point numbers is needed, got {image.dtype}')
    if not np.issubdtype(image.dtype, np.floating):
        return
    if not np.isfinite(image).all():
        raise LNCAError('the image has values that are not numbers')
    # Somewhat beyond is what a resized image has; 0 to 255 is a mistake.
    if not -1 <= image.min() <= image.max() <= 2:
        raise LNCAError(f'a floating-point image has values in [0, 1], got {image.min():g} to {image.max():g}')
