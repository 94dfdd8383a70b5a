"""Behaviour over time: change of frames, motion, and what is left after motion.

Clips are uint8 RGB, at least two frames. Axes: T time, Y X rows and columns, C channels, 2 flow (dx, dy) in pixels.
"""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from vsr_dist.ops.color import ByteArray, rgb_to_y_bt601_array
from vsr_dist.ops.motion import FlowArray, estimate_motion
from vsr_dist.ops.warp import backward_warp

BoolArray = npt.NDArray[np.bool_]
# Rows and columns that count.
Region = tuple[slice, slice]
# A pixel is static where the truth's luma changes by less than this, in 8-bit levels; a frame with a smaller share of
# static pixels has no flicker.
STATIC_BELOW_LEVELS = 1.0
MIN_STATIC_SHARE = 0.01


def tdiff(fake_TYXC: ByteArray, real_TYXC: ByteArray) -> float:
    """MSE between the frame-to-frame changes of two clips, on [0, 1] images: listing 3's temporal loss.

    Lower is better. Not motion compensated: an error that stands still costs nothing.
    """
    # Frame by frame: a clip in float64 takes eight times its bytes.
    total = 0.0
    for t in range(1, len(real_TYXC)):
        fake_change = np.subtract(fake_TYXC[t], fake_TYXC[t - 1], dtype=np.float64)
        real_change = np.subtract(real_TYXC[t], real_TYXC[t - 1], dtype=np.float64)
        total += float(np.mean(((fake_change - real_change) / 255.0) ** 2))
    return total / (len(real_TYXC) - 1)


class TruthMotion:
    """Optical flow of a clip of truths, estimated when it is first asked for: every method and metric shares it."""

    def __init__(self, real_TYXC: ByteArray) -> None:
        self._real_TYXC = real_TYXC

    @cached_property
    def forward(self) -> FlowArray:
        """(T-1, Y, X, 2): from each frame to the next."""
        return estimate_motion(self._real_TYXC, "forward")

    @cached_property
    def visible(self) -> BoolArray:
        """(T-1, Y, X): `visible` of each pair of frames."""
        backward_TYX2 = estimate_motion(self._real_TYXC, "backward")
        return np.stack([visible(*pair) for pair in zip(self.forward, backward_TYX2, strict=True)])


def tof(fake_TYXC: ByteArray, motion: TruthMotion, region: Region) -> float:
    """Mean length of the difference between the optical flows of two clips, in pixels. Lower is better.

    As TecoGAN's metrics.py (github.com/thunil/TecoGAN): Farneback flow of whole 8-bit grey frames, of which a region
    counts; there it is the centred crop to the largest multiple of 32 that leaves a margin of 16, and the protocol of
    that name leaves out two frames at both ends.
    """
    flows = zip(estimate_motion(fake_TYXC), motion.forward, strict=True)
    return float(np.mean([flow_distance(fake, real, region) for fake, real in flows]))


def flow_distance(fake_YX2: FlowArray, real_YX2: FlowArray, region: Region) -> float:
    """Mean Euclidean length of the difference of two flows inside a region, in pixels."""
    difference = (fake_YX2[region] - real_YX2[region]).astype(np.float64)
    return float(np.sqrt(np.square(difference).sum(axis=-1)).mean())


def warping_error(fake_TYXC: ByteArray, motion: TruthMotion, region: Region) -> float:
    """Mean squared change of the fake clip along the real clip's motion, on [0, 1] images. Lower is steadier.

    The mean over the pairs of `warp_pair`.
    """
    pairs = zip(itertools.pairwise(fake_TYXC), motion.forward, motion.visible, strict=True)
    return float(np.mean([warp_pair(*frames, flow, seen, region) for frames, flow, seen in pairs]))


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


def flicker(fake_TYXC: ByteArray, real_TYXC: ByteArray) -> float | None:
    """Mean absolute luma change from a frame to the next where the truth stands still, in 8-bit levels.

    Luma is BT.601, 16 to 235, not rounded. Static pixels are those where the truth's luma changes by less than
    `STATIC_BELOW_LEVELS`; a pair in which they are less than `MIN_STATIC_SHARE` of the frame, as under a moving
    camera, does not count, and without any pair the value is None. Lower is steadier; the truth itself is above 0
    (noise), and blur lowers it: read it beside the PSNR.
    """
    levels = []
    for (fake_before, fake), (real_before, real) in zip(
        itertools.pairwise(fake_TYXC), itertools.pairwise(real_TYXC), strict=True
    ):
        static_YX = np.abs(rgb_to_y_bt601_array(real) - rgb_to_y_bt601_array(real_before)) < STATIC_BELOW_LEVELS
        if static_YX.mean() >= MIN_STATIC_SHARE:
            change_N = rgb_to_y_bt601_array(fake[static_YX]) - rgb_to_y_bt601_array(fake_before[static_YX])
            levels.append(np.abs(change_N).mean())
    return float(np.mean(levels)) if levels else None
