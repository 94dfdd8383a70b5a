"""Behaviour over time: change of frames, motion, and what is left after motion.

All take clips of uint8 RGB frames. Axes: T time, Y X rows and columns, C channels, 2 flow (dx, dy) in pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from vsr_dist.core.errors import BadInputError
from vsr_dist.ops.color import ByteArray
from vsr_dist.ops.motion import FlowArray, align_frames, estimate_motion

CROP_MULTIPLE_PX = 32
CROP_MARGIN_PX = 16


def tdiff(fake_TYXC: ByteArray, real_TYXC: ByteArray) -> float:
    """MSE between the frame-to-frame changes of two clips, on [0, 1] images: listing 3's temporal loss.

    Lower is better. Not motion compensated: an error that stands still costs nothing.
    """
    _check(fake_TYXC, real_TYXC, min_frames=2)
    # Frame by frame: a clip in float64 takes eight times its bytes.
    total = 0.0
    for t in range(1, len(real_TYXC)):
        fake_change = np.subtract(fake_TYXC[t], fake_TYXC[t - 1], dtype=np.float64)
        real_change = np.subtract(real_TYXC[t], real_TYXC[t - 1], dtype=np.float64)
        total += float(np.mean(((fake_change - real_change) / 255.0) ** 2))
    return total / (len(real_TYXC) - 1)


def tof(fake_TYXC: ByteArray, real_TYXC: ByteArray, trim_frames: int = 2, crop_to_multiple: bool = True) -> float:
    """Mean length of the difference between the optical flows of two clips, in pixels. Lower is better.

    As TecoGAN's metrics.py (github.com/thunil/TecoGAN): Farneback flow on 8-bit grey frames, `trim_frames`
    cut at both ends of the clip, a centred crop to the largest multiple of 32 that leaves a margin of 16. Set
    `trim_frames=0` for clips shorter than 6 frames and `crop_to_multiple=False` for images below 48 pixels,
    and say so beside the number. BadInputError if too little is left.
    """
    num_frames = len(real_TYXC) - 2 * trim_frames
    if num_frames < 2:
        raise BadInputError(
            f"tOF: expected at least {2 * trim_frames + 2} frames with {trim_frames} cut at both ends, found "
            f"{len(real_TYXC)}; use longer clips or trim_frames=0"
        )
    _check(fake_TYXC, real_TYXC, min_frames=2)
    kept = slice(trim_frames, trim_frames + num_frames)
    rows = _centre(real_TYXC.shape[1], crop_to_multiple)
    columns = _centre(real_TYXC.shape[2], crop_to_multiple)
    fake_flow = estimate_motion(np.ascontiguousarray(fake_TYXC[kept, rows, columns]))
    real_flow = estimate_motion(np.ascontiguousarray(real_TYXC[kept, rows, columns]))
    return float(np.linalg.norm((fake_flow - real_flow).astype(np.float64), axis=-1).mean())


def warping_error(fake_TYXC: ByteArray, real_TYXC: ByteArray) -> float:
    """Mean squared change of the fake clip along the real clip's motion, on [0, 1] images. Lower is steadier.

    Frame t-1 is warped onto frame t by the real clip's backward flow; pixels where forward and backward flow
    disagree (occlusions) are left out. Follows Lai et al. 2018 (arXiv:1808.00449), with Farneback flow in
    place of a trained one, so numbers compare only with each other. Blur lowers it: read it beside the PSNR.
    """
    _check(fake_TYXC, real_TYXC, min_frames=2)
    backward = estimate_motion(real_TYXC, "backward")
    visible = _visible(estimate_motion(real_TYXC, "forward"), backward)
    history = align_frames(fake_TYXC, backward, "corrected")
    errors = []
    for t in range(1, len(fake_TYXC)):
        change = np.subtract(fake_TYXC[t], history[t], dtype=np.float64) / 255.0
        seen = visible[t - 1]
        if seen.any():
            errors.append(float(np.mean(change[seen] ** 2)))
    if not errors:
        raise BadInputError("warping error: no pixel of this clip has a motion that forward and backward agree on")
    return float(np.mean(errors))


def _visible(forward_TYX2: FlowArray, backward_TYX2: FlowArray) -> npt.NDArray[np.bool_]:
    """Where the backward flow is undone by the forward flow it leads to: Sundaram et al. 2010."""
    masks = []
    for forward, backward in zip(forward_TYX2, backward_TYX2, strict=True):
        row, column = np.mgrid[0 : backward.shape[0], 0 : backward.shape[1]].astype(np.float32)
        there = cv2.remap(forward, column + backward[..., 0], row + backward[..., 1], cv2.INTER_LINEAR)
        mismatch = np.sum((backward + there) ** 2, axis=-1)
        length = np.sum(backward**2, axis=-1) + np.sum(there**2, axis=-1)
        masks.append(mismatch <= 0.01 * length + 0.5)
    return np.stack(masks)


def _centre(size_px: int, crop_to_multiple: bool) -> slice:
    if not crop_to_multiple:
        return slice(0, size_px)
    kept_px = (size_px - CROP_MARGIN_PX) // CROP_MULTIPLE_PX * CROP_MULTIPLE_PX
    if kept_px <= 0:
        raise BadInputError(
            f"tOF: expected images of at least {CROP_MULTIPLE_PX + CROP_MARGIN_PX} pixels, found {size_px}; "
            "use crop_to_multiple=False"
        )
    start = (size_px - kept_px) // 2
    return slice(start, start + kept_px)


def _check(fake_TYXC: ByteArray, real_TYXC: ByteArray, min_frames: int) -> None:
    if fake_TYXC.shape != real_TYXC.shape:
        raise BadInputError(f"temporal metrics: expected equal shapes, found {fake_TYXC.shape} and {real_TYXC.shape}")
    if len(real_TYXC) < min_frames:
        raise BadInputError(f"temporal metrics: expected at least {min_frames} frames, found {len(real_TYXC)}")
