"""Every metric of `vsr-dist evaluate`: its heading, which way is better, and how it is measured, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vsr_dist.core.errors import BadConfigError, nearest_hint

# What a metric looks at: one frame; a frame and the one before it; a whole sequence in order.
Scope = Literal["frame", "pair", "sequence"]
# Which part of the protocol's regions it is measured on.
RegionName = Literal["fidelity", "flow", "other"]


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    heading, decimals and factor: how it is shown (`value * factor`). direction: +1 if higher is better, -1 if lower.
    text: its protocol, without what the preset decides. network: the weights that it needs, None for none.
    """

    name: str
    heading: str
    decimals: int
    direction: int
    scope: Scope
    region: RegionName
    text: str
    factor: float = 1.0
    network: str | None = None


_PSNR = "10 log10(255^2 / mean squared error) in dB, at most 100, per frame; equal to scikit-image within 1e-6"
_SSIM = (
    "Wang et al. 2004 with a Gaussian window of sigma 1.5 (11 x 11), population covariance and positions where the "
    "window lies inside, per frame; equal to scikit-image within 1e-6"
)
_Y = "on the luma of BT.601 in studio range (16 to 235)"
_TLP = (
    "100 |D(g[t-1], g[t]) - D(b[t-1], b[t])| of result g and truth b (TecoGAN's tLP), a distance being that of {name}"
)

TABLE: tuple[Metric, ...] = (
    Metric("psnr_y", "PSNR-Y dB", 2, +1, "frame", "fidelity", f"{_PSNR}; {_Y}"),
    Metric("ssim_y", "SSIM-Y", 4, +1, "frame", "fidelity", f"{_SSIM}; {_Y}"),
    Metric("psnr_rgb", "PSNR-RGB dB", 2, +1, "frame", "fidelity", f"{_PSNR}; over all values of RGB"),
    Metric("ssim_rgb", "SSIM-RGB", 4, +1, "frame", "fidelity", f"{_SSIM}; mean over R, G and B"),
    Metric(
        "tof",
        "tOF px",
        3,
        -1,
        "pair",
        "flow",
        "mean length in pixels of the difference between the flows of result and truth from a frame to the next, by "
        "Farneback's method on 8-bit grey (0.5, 3, 15, 3, 5, 1.2, 0); the flow of the whole frame, of which the "
        "centre counts, sides a multiple of 32 and at least 8 px from the edge (TecoGAN's metrics.py)",
    ),
    Metric(
        "tdiff",
        "tdiff x1e4",
        2,
        -1,
        "pair",
        "other",
        "mean squared error of the change from a frame to the next, on [0, 1] RGB: the temporal loss of the paper's "
        "listing 3; an error that stands still costs nothing",
        factor=1e4,
    ),
    Metric(
        "warp",
        "E-warp x1e4",
        2,
        -1,
        "pair",
        "other",
        "sum(noc (W(V[t]) - V[t-1])^2) / sum(noc) on [0, 1] RGB, W along the truth's flow, noc where that flow is "
        "visible by forward-backward consistency and off motion boundaries (Lai et al. 2018, "
        "fast_blind_video_consistency), with Farneback's flow in place of FlowNet2: compare it with itself only; blur "
        "lowers it",
        factor=1e4,
    ),
    Metric(
        "flicker",
        "flicker levels",
        3,
        -1,
        "pair",
        "other",
        "mean absolute change of luma from a frame to the next, in 8-bit levels, over the pixels where the truth's "
        "luma changes by less than one level; no value for a frame with less than 1 % of such pixels; blur lowers it",
    ),
    Metric(
        "stlpips",
        "ST-LPIPS",
        4,
        -1,
        "frame",
        "other",
        "shift-tolerant LPIPS on AlexNet (Ghildyal and Liu 2022), RGB at full size, weights of stlpips-pytorch 0.0.2",
        network="stlpips",
    ),
    Metric(
        "tlp_st",
        "tLP-ST",
        3,
        -1,
        "pair",
        "other",
        _TLP.format(name="ST-LPIPS, not of LPIPS: not comparable with published tLP"),
        network="stlpips",
    ),
    Metric(
        "lpips",
        "LPIPS",
        4,
        -1,
        "frame",
        "other",
        "LPIPS 0.1 on AlexNet (Zhang et al. 2018), RGB at full size, heads of lpips 0.1.4 and torchvision's AlexNet",
        network="lpips",
    ),
    Metric("tlp", "tLP", 3, -1, "pair", "other", _TLP.format(name="LPIPS 0.1 on AlexNet"), network="lpips"),
    Metric(
        "dists",
        "DISTS",
        4,
        -1,
        "frame",
        "other",
        "DISTS (Ding et al. 2020), RGB at full size, weights of DISTS-pytorch 0.1 and torchvision's VGG16",
        network="dists",
    ),
    Metric(
        "vmaf",
        "VMAF",
        2,
        +1,
        "sequence",
        "other",
        "VMAF 0.6.1 as torchmetrics and vmaf-torch compute it (full-range luma of BT.601, not clipped), per frame; "
        "near libvmaf's number, not equal to it",
        network="vmaf",
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in TABLE}
DEFAULT_METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "tof", "tdiff")


def parse_metrics(text: str) -> tuple[str, ...]:
    """Names out of `a,b,c`, in the table's order. BadConfigError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            hint = nearest_hint(name, list(METRICS))
            raise BadConfigError(f"--metrics: unknown metric '{name}'{hint}; known: {', '.join(METRICS)}, or all")
    if not names:
        raise BadConfigError(f"--metrics: no metric in '{text}'; known: {', '.join(METRICS)}, or all")
    return in_order(names)


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Each name once, in the order of the table."""
    return tuple(name for name in METRICS if name in names)
