"""One crop, flip, transposition and time reversal per window, for all its frames, drawn from the sample's number.

Axis letters: T time, H W low-resolution rows and columns, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Augmentation:
    """Crop position in low-resolution pixels and the symmetries applied to the crop, in the order of the fields."""

    top_px: int
    left_px: int
    flip_rows: bool = False
    flip_columns: bool = False
    transpose: bool = False
    reverse_time: bool = False


def draw(seed: int, height_px: int, width_px: int, crop_px: int, *, symmetries: bool) -> Augmentation:
    """Draw an augmentation for a low-resolution frame of the given size; a pure function of its arguments.

    Without `symmetries` only the crop position is drawn.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    top = int(generator.integers(height_px - crop_px + 1))
    left = int(generator.integers(width_px - crop_px + 1))
    if not symmetries:
        return Augmentation(top, left)
    flags = generator.integers(2, size=4).astype(bool).tolist()
    return Augmentation(top, left, *flags)


def center(height_px: int, width_px: int, crop_px: int) -> Augmentation:
    """The centred crop without symmetries, for fixed validation windows."""
    return Augmentation((height_px - crop_px) // 2, (width_px - crop_px) // 2)


def crop(frames_THWC: Frames, choice: Augmentation, crop_px: int, scale: int = 1) -> Frames:
    """A view of the crop; `scale` 1 for the low-resolution frames, the factor for the high-resolution ones."""
    top, left, size = choice.top_px * scale, choice.left_px * scale, crop_px * scale
    return frames_THWC[:, top : top + size, left : left + size]


def apply_symmetries(crop_THWC: Frames, choice: Augmentation) -> Frames:
    """A view of a square crop with the flips, transposition and time reversal of `choice`."""
    view = crop_THWC
    if choice.flip_rows:
        view = view[:, ::-1]
    if choice.flip_columns:
        view = view[:, :, ::-1]
    if choice.transpose:
        view = view.transpose(0, 2, 1, 3)
    if choice.reverse_time:
        view = view[::-1]
    return view
