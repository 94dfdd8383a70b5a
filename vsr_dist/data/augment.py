"""One crop, flip, transposition and time reversal per window, for all its frames and its flow, drawn from the
sample's number.

Axis letters: T time, H W low-resolution rows and columns, Y X high-resolution rows and columns, C channels; flow has
K = 2 directions (forward, backward) and components 2 (dx to the right, dy down).
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from vsr_dist.core.rng import mix, purpose

Frames = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.int16]
_DRAW = purpose("draw")


class Augmentation(NamedTuple):
    """Crop position in low-resolution pixels and the symmetries applied to the crop, in the order of the fields."""

    top_px: int
    left_px: int
    flip_rows: bool = False
    flip_columns: bool = False
    transpose: bool = False
    reverse_time: bool = False


def draw(
    seed: int, height_px: int, width_px: int, crop_px: int, *, symmetries: bool, time_reversal: bool = True
) -> Augmentation:
    """Draw an augmentation for a low-resolution frame of the given size; a pure function of its arguments.

    Without `symmetries` only the crop position is drawn; without `time_reversal` time runs forward, and all else is
    drawn as with it. The 63 bits of one mixed number are split by division, whose bias is below 1e-9 for frames
    of up to 65,536 pixels a side; a generator object would cost more than the copy of the crop.
    """
    number, top = divmod(mix(_DRAW, seed), height_px - crop_px + 1)
    number, left = divmod(number, width_px - crop_px + 1)
    if not symmetries:
        return Augmentation(top, left)
    flip_rows, flip_columns, transpose, reverse_time = (bool(number >> bit & 1) for bit in range(4))
    return Augmentation(top, left, flip_rows, flip_columns, transpose, reverse_time and time_reversal)


def center(height_px: int, width_px: int, crop_px: int) -> Augmentation:
    """The centred crop without symmetries, for fixed validation windows."""
    return Augmentation((height_px - crop_px) // 2, (width_px - crop_px) // 2)


def copy_frames(source_TYXC: Frames, choice: Augmentation, target_TYXC: Frames) -> None:
    """Copy square crops into a contiguous array, flipped and transposed as `choice` says; time is left alone.

    NumPy copies along a reversed or transposed axis pixel by pixel, 10 to 20 times slower than along rows, so
    those two are done by OpenCV, frame by frame.
    """
    if not (choice.flip_columns or choice.transpose):
        np.copyto(target_TYXC, source_TYXC[:, ::-1] if choice.flip_rows else source_TYXC)
        return
    for source_YXC, target_YXC in zip(source_TYXC, target_TYXC, strict=True):
        if not choice.transpose:
            cv2.flip(source_YXC, -1 if choice.flip_rows else 1, target_YXC)
            continue
        cv2.transpose(source_YXC, target_YXC)
        # A flip of the rows before the transposition is one of the columns after it.
        if choice.flip_rows or choice.flip_columns:
            both = choice.flip_rows and choice.flip_columns
            cv2.flip(target_YXC, -1 if both else 1 if choice.flip_rows else 0, target_YXC)


def copy_flow(source_TKHW2: Flow, choice: Augmentation, target_TKHW2: Flow) -> None:
    """Copy crops of the flow between the frames of a window, in space and time, so that it still fits its frames.

    Axis 0 counts the pairs of neighbouring frames. A flip changes the sign of one component, a transposition
    exchanges the two, and a time reversal exchanges forward and backward.
    """
    # Both components of a pixel travel together as one 32-bit number.
    pairs_TKHW = source_TKHW2.view(np.int32)[..., 0]
    if choice.reverse_time:
        pairs_TKHW = pairs_TKHW[::-1, ::-1]
    if choice.flip_rows:
        pairs_TKHW = pairs_TKHW[:, :, ::-1]
    if choice.flip_columns:
        pairs_TKHW = pairs_TKHW[:, :, :, ::-1]
    if choice.transpose:
        pairs_TKHW = pairs_TKHW.transpose(0, 1, 3, 2)
    np.copyto(target_TKHW2.view(np.int32)[..., 0], pairs_TKHW)
    for component, flipped in enumerate((choice.flip_columns, choice.flip_rows)):
        if flipped:
            values = target_TKHW2[..., component]
            # -32768 has no opposite in int16; no displacement of a real picture is that long (1024 px).
            np.negative(np.maximum(values, -32767), out=values)
    if choice.transpose:
        target_TKHW2[:] = target_TKHW2[..., ::-1].copy()
