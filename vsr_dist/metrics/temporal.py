"""Behaviour over time: change of frames, motion, and what is left after motion.

All take clips of uint8 RGB frames. Axes: T time, Y X rows and columns, C channels, 2 flow (dx, dy) in pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from vsr_dist.core.errors import BadInputError
from vsr_dist.metrics.registry import CROP_MARGIN_PX, CROP_MULTIPLE_PX, Region, centre_crop
from vsr_dist.ops.color import ByteArray, rgb_to_y_bt601_array
from vsr_dist.ops.motion import FlowArray, estimate_motion
from vsr_dist.ops.warp import backward_warp

BoolArray = npt.NDArray[np.bool_]
# A pixel is static where the truth's luma changes by less than this, in 8-bit levels; a frame with a smaller share of
# static pixels has no flicker.
STATIC_BELOW_LEVELS = 1.0
MIN_STATIC_SHARE = 0.01


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

    As TecoGAN's metrics.py (github.com/thunil/TecoGAN): Farneback flow of whole 8-bit grey frames, `trim_frames`
    cut at both ends of the clip, and of the flow the centred crop to the largest multiple of 32 that leaves a margin
    of 16. Set `trim_frames=0` for clips shorter than 6 frames and `crop_to_multiple=False` for images below 48
    pixels, and say so beside the number. BadInputError if too little is left.
    """
    num_frames = len(real_TYXC) - 2 * trim_frames
    if num_frames < 2:
        raise BadInputError(
            f"tOF: expected at least {2 * trim_frames + 2} frames with {trim_frames} cut at both ends, found "
            f"{len(real_TYXC)}; use longer clips or trim_frames=0"
        )
    _check(fake_TYXC, real_TYXC, min_frames=2)
    region: Region = (slice(None), slice(None))
    if crop_to_multiple:
        if min(real_TYXC.shape[1:3]) < CROP_MULTIPLE_PX + CROP_MARGIN_PX:
            raise BadInputError(
                f"tOF: expected images of at least {CROP_MULTIPLE_PX + CROP_MARGIN_PX} pixels, found "
                f"{min(real_TYXC.shape[1:3])}"
            )
        region = centre_crop(*real_TYXC.shape[1:3])
    kept = slice(trim_frames, trim_frames + num_frames)
    flows = zip(estimate_motion(fake_TYXC[kept]), estimate_motion(real_TYXC[kept]), strict=True)
    return float(np.mean([flow_distance(fake, real, region) for fake, real in flows]))


def flow_distance(fake_YX2: FlowArray, real_YX2: FlowArray, region: Region) -> float:
    """Mean Euclidean length of the difference of two flows inside a region, in pixels."""
    difference = (fake_YX2[region] - real_YX2[region]).astype(np.float64)
    return float(np.sqrt(np.square(difference).sum(axis=-1)).mean())


def warping_error(fake_TYXC: ByteArray, real_TYXC: ByteArray) -> float:
    """Mean squared change of the fake clip along the real clip's motion, on [0, 1] images. Lower is steadier.

    The mean over the pairs of `warp_pair`, with the whole frame as its region.
    """
    _check(fake_TYXC, real_TYXC, min_frames=2)
    forward = estimate_motion(real_TYXC, "forward")
    backward = estimate_motion(real_TYXC, "backward")
    everywhere: Region = (slice(None), slice(None))
    errors = [
        warp_pair(fake_TYXC[t], fake_TYXC[t + 1], forward[t], visible(forward[t], backward[t]), everywhere)
        for t in range(len(forward))
    ]
    return float(np.mean(errors))


def warp_pair(
    before_YXC: ByteArray, now_YXC: ByteArray, forward_YX2: FlowArray, visible_YX: BoolArray, region: Region
) -> float:
    """`sum(noc (W(V[t+1]) - V[t])^2) / sum(noc)` of one pair on [0, 1] RGB: evaluate_WarpError.py of Lai 2018.

    The later frame is warped onto the earlier one's grid by the truth's forward flow, bilinearly, edge pixels
    repeated; the sums run over pixels and channels inside the region. 0 where nothing is visible, as there. In
    place of FlowNet2's flow it is given Farneback's, so that numbers compare only with each other. Blur lowers it:
    read it beside the PSNR.
    """
    now_BCYX = torch.from_numpy(now_YXC).permute(2, 0, 1)[None].to(torch.float32) / 255.0
    flow_B2YX = torch.from_numpy(forward_YX2).permute(2, 0, 1)[None]
    warped_YXC = backward_warp(now_BCYX, flow_B2YX)[0].permute(1, 2, 0).numpy()[region]
    change = warped_YXC - before_YXC[region].astype(np.float32) / np.float32(255.0)
    seen = visible_YX[region]
    if not seen.any():
        return 0.0
    return float(np.square(change[seen].astype(np.float64)).mean())


def visible(forward_YX2: FlowArray, backward_YX2: FlowArray) -> BoolArray:
    """Where the earlier frame's pixels are seen in the later one, away from the edges of moving things.

    `detect_occlusion` of fast_blind_video_consistency (Sundaram et al. 2010): a pixel is left out where the flow and
    the flow back from where it leads do not cancel, `|w + w'|^2 > 0.01 (|w|^2 + |w'|^2) + 0.5`, and on motion
    boundaries, `|grad w|^2 > 0.01 |w|^2 + 0.002`.
    """
    forward_B2YX, backward_B2YX = (torch.from_numpy(f).permute(2, 0, 1)[None] for f in (forward_YX2, backward_YX2))
    back_YX2 = backward_warp(backward_B2YX, forward_B2YX)[0].permute(1, 2, 0).numpy()
    length = np.square(forward_YX2).sum(axis=-1)
    mismatch = np.square(forward_YX2 + back_YX2).sum(axis=-1)
    occluded = mismatch > 0.01 * (length + np.square(back_YX2).sum(axis=-1)) + 0.5
    slope = np.zeros_like(length)
    slope[:, :-1] += np.square(forward_YX2[:, 1:, 0] - forward_YX2[:, :-1, 0])
    slope[:-1] += np.square(forward_YX2[1:, :, 0] - forward_YX2[:-1, :, 0])
    slope[:, :-1] += np.square(forward_YX2[:, 1:, 1] - forward_YX2[:, :-1, 1])
    slope[:-1] += np.square(forward_YX2[1:, :, 1] - forward_YX2[:-1, :, 1])
    mask: BoolArray = ~(occluded | (slope > 0.01 * length + 0.002))
    return mask


def flicker(
    fake_before_YXC: ByteArray, fake_YXC: ByteArray, real_before_YXC: ByteArray, real_YXC: ByteArray
) -> float | None:
    """Mean absolute luma change from a frame to the next where the truth stands still, in 8-bit levels.

    Luma is BT.601, 16 to 235, not rounded. Static pixels are those where the truth's luma changes by less than
    `STATIC_BELOW_LEVELS`; None where they are less than `MIN_STATIC_SHARE` of the frame, as under a moving camera.
    Lower is steadier; the truth itself is above 0 (noise), and blur lowers it: read it beside the PSNR.
    """
    real_change_YX = np.abs(rgb_to_y_bt601_array(real_YXC) - rgb_to_y_bt601_array(real_before_YXC))
    static_YX = real_change_YX < STATIC_BELOW_LEVELS
    if static_YX.mean() < MIN_STATIC_SHARE:
        return None
    fake_change_N = rgb_to_y_bt601_array(fake_YXC[static_YX]) - rgb_to_y_bt601_array(fake_before_YXC[static_YX])
    return float(np.abs(fake_change_N).mean())


def _check(fake_TYXC: ByteArray, real_TYXC: ByteArray, min_frames: int) -> None:
    if fake_TYXC.shape != real_TYXC.shape:
        raise BadInputError(f"temporal metrics: expected equal shapes, found {fake_TYXC.shape} and {real_TYXC.shape}")
    if len(real_TYXC) < min_frames:
        raise BadInputError(f"temporal metrics: expected at least {min_frames} frames, found {len(real_TYXC)}")
