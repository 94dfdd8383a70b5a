"""Temporal consistency losses: the paper's, motion compensated, and there and back again.

Axes: B batch, T time, C channels, Y X image rows and columns, K the two directions of flow,
2 the flow components (dx, dy).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vsr_dist.ops import flow as flow_ops
from vsr_dist.ops.warp import backward_warp

TemporalName = Literal["difference", "warped", "ping_pong"]
# Lai et al. 2018, for images in [0, 1].
OCCLUSION_SHARPNESS = 50.0


def temporal_difference(fake_BTCYX: Tensor, real_BTCYX: Tensor) -> Tensor:
    """MSE between the frame-to-frame changes of two clips: the temporal loss of listing 3. Scalar.

    The mean runs over all T-1 neighbouring pairs. It is not motion compensated: an error that stands still
    costs nothing. Raises ValueError for clips of fewer than 2 frames, which have no change.
    """
    _check_frames(fake_BTCYX)
    return torch.mean((fake_BTCYX.diff(dim=1) - real_BTCYX.diff(dim=1)) ** 2)


def temporal_warped(fake_BTCYX: Tensor, real_BTCYX: Tensor, back_BT2YX: Tensor) -> Tensor:
    """Mean of `M_t |fake_t - W(fake_(t-1))|`, W warping along the motion of the real frames. Scalar.

    Lai et al. 2018 (arXiv:1808.00449), short-term temporal loss, with the mean in place of the sum: M_t is
    `exp(-50 |real_t - W(real_(t-1))|^2)` per pixel, the norm over the channels, so that what the flow cannot explain
    (occlusion, cuts) counts little. It is 0 for a clip that moves exactly along the flow and does not compare with
    the truth: it wants an image loss beside it.

    Images: float RGB in [0, 1]. back_BT2YX: (B, T-1, 2, Y, X), float, pixels, from frame t back to t - 1
    (`flow_back`). The gradient reaches both frames of `fake`, never the mask or the flow. Raises ValueError
    for clips of fewer than 2 frames.
    """
    _check_frames(fake_BTCYX)
    back_N2YX = back_BT2YX.flatten(0, 1).detach()
    with torch.no_grad():
        moved = backward_warp(real_BTCYX[:, :-1].flatten(0, 1), back_N2YX)
        unexplained = (real_BTCYX[:, 1:].flatten(0, 1) - moved).pow(2).sum(dim=1, keepdim=True)
        mask_N1YX = torch.exp(-OCCLUSION_SHARPNESS * unexplained)
    warped_NCYX = backward_warp(fake_BTCYX[:, :-1].flatten(0, 1), back_N2YX)
    return torch.mean(mask_N1YX * (fake_BTCYX[:, 1:].flatten(0, 1) - warped_NCYX).abs())


def there_and_back(clip_BTCHW: Tensor) -> Tensor:
    """A clip followed by itself in reverse, the last frame once: frames 0 .. T-1 .. 0, 2 T - 1 in all.

    One pass of a recurrent generator over it yields both sequences that `temporal_ping_pong` compares, so that DDP
    sees one forward before its backward.
    """
    return torch.cat((clip_BTCHW, clip_BTCHW[:, :-1].flip(1)), dim=1)


def flow_there_and_back(flow_BTKCHW: Tensor) -> Tensor:
    """The flow of `there_and_back(clip)`, from that of the clip: (B, T-1, K, ...) to (B, 2 T - 2, K, ...).

    On the way back the pairs come in reverse, and each one's two directions (axis K) change places.
    """
    return torch.cat((flow_BTKCHW, flow_BTKCHW.flip(1, 2)), dim=1)


def split_there_and_back(whole_BTCYX: Tensor) -> tuple[Tensor, Tensor]:
    """Output for `there_and_back` to (frames 0 .. T-1, frames 0 .. T-2 of the way back in the same order)."""
    num_frames = (whole_BTCYX.shape[1] + 1) // 2
    return whole_BTCYX[:, :num_frames], whole_BTCYX[:, num_frames:].flip(1)


def temporal_ping_pong(there_BTCYX: Tensor, back_BTCYX: Tensor) -> Tensor:
    """Mean of `|g_t - g'_t|` over frames 0 .. T-2: the same frames on the way there and on the way back. Scalar.

    Chu et al. 2020 (TecoGAN, arXiv:1811.09393), with the absolute difference of its code: a
    recurrent generator that lets details drift reaches the same frame with other details. there: T frames, back: T-1
    (`split_there_and_back`). Raises ValueError for other numbers or T below 2.
    """
    _check_frames(there_BTCYX)
    if back_BTCYX.shape[1] != there_BTCYX.shape[1] - 1:
        found = f"{there_BTCYX.shape[1]} and {back_BTCYX.shape[1]}"
        raise ValueError(f"ping-pong loss: expected T forward and T - 1 backward frames, found {found}")
    return torch.mean((there_BTCYX[:, :-1] - back_BTCYX).abs())


def _check_frames(clip_BTCYX: Tensor) -> None:
    if clip_BTCYX.shape[1] < 2:
        raise ValueError("temporal loss: expected clips of at least 2 frames, found 1; set its weight to 0")


FlowSource = Literal["dis", "packed"]


def unpack_flow(packed: Tensor) -> Tensor:
    """Packed flow (int16 in 1/32 px, any shape) as float32 pixels."""
    return packed.to(torch.float32).div(flow_ops.UNITS_PER_PX)


def flow_back(source: FlowSource, real_BTCYX: Tensor, low_flow_BTKCHW: Tensor | None, scale: int) -> Tensor:
    """`enlarge_flow` of the packed flow or `estimate_flow` of the real frames.

    Raises ValueError if the packed flow is asked for and not there.
    """
    if source == "dis":
        return estimate_flow(real_BTCYX)
    if low_flow_BTKCHW is None:
        raise ValueError("loss.temporal_flow=packed: expected a batch with flow, found none; set data.flow=true")
    return enlarge_flow(low_flow_BTKCHW, scale)


def enlarge_flow(low_flow_BTKCHW: Tensor, scale: int) -> Tensor:
    """Low-resolution flow in both directions to high-resolution flow that leads *back*: (B, T-1, 2, Y, X).

    Float, pixels. low_flow_BTKCHW: (B, T-1, 2, 2, H, W), float, low-resolution pixels; direction 1 leads from frame
    t + 1 to frame t. Enlarged bilinearly (pixel centres at half-integers) and multiplied by `scale`, because the same
    motion covers `scale` times as many pixels.
    """
    back_BTCHW = low_flow_BTKCHW[:, :, 1] * float(scale)
    back_NCYX = F.interpolate(back_BTCHW.flatten(0, 1), scale_factor=float(scale), mode="bilinear", align_corners=False)
    return torch.unflatten(back_NCYX, 0, back_BTCHW.shape[:2])


def estimate_flow(real_BTCYX: Tensor) -> Tensor:
    """DIS flow of real frames from t + 1 back to t: (B, T-1, 2, Y, X), float32, pixels, on the images' device.

    Images: float RGB in [0, 1], at least 24 px a side. It runs on the CPU and waits for the device: about 1 ms per
    pair of 96 x 96 pixels. See `vsr_dist.ops.flow`.
    """
    after, before = real_BTCYX[:, 1:], real_BTCYX[:, :-1]
    flow_N2YX = flow_ops.estimate_flow(after.flatten(0, 1), before.flatten(0, 1), "dis")
    return torch.unflatten(flow_N2YX, 0, after.shape[:2])
