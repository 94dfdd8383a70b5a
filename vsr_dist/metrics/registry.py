"""The one table of metrics, and the protocols by which sets are measured.

Evaluation, validation (`val/NAME`), reports and studies read names, units and directions from here. All metrics are
reduced alike: a number of a video is the mean over its frames, and `overall` is the mean over the videos. Numbers of
two protocols do not compare.

Axes: Y X rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vsr_dist.core.errors import BadConfigError, BadInputError, nearest_hint

# The regions of a frame on which metrics are measured.
RegionName = Literal["fidelity", "flow", "other"]


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    title, unit, decimals and factor: how it is shown (`value * factor`). direction: +1 if higher is better, -1 if
    lower, 0 if that is not known. text: its protocol, without what the preset decides. network: the weights that it
    needs, None for none.
    """

    name: str
    title: str
    unit: str
    decimals: int
    direction: int
    text: str
    factor: float = 1.0
    network: str | None = None

    @property
    def heading(self) -> str:
        """Title with unit and factor, for the head of a table."""
        factor = "" if self.factor == 1.0 else f"x1e{round(math.log10(self.factor))}"
        return " ".join(part for part in (self.title, self.unit, factor) if part)

    @property
    def better(self) -> str:
        """The direction in a word."""
        return {1: "higher", -1: "lower"}.get(self.direction, "-")

    def show(self, value: float, sign: str = "") -> str:
        """A value as tables show it; `sign` "+" for a difference."""
        return f"{value * self.factor:{sign}.{self.decimals}f}"


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
    Metric("psnr_y", "PSNR-Y", "dB", 2, +1, f"{_PSNR}; {_Y}"),
    Metric("ssim_y", "SSIM-Y", "", 4, +1, f"{_SSIM}; {_Y}"),
    Metric("psnr_rgb", "PSNR-RGB", "dB", 2, +1, f"{_PSNR}; over all values of RGB"),
    Metric("ssim_rgb", "SSIM-RGB", "", 4, +1, f"{_SSIM}; mean over R, G and B"),
    Metric(
        "tof",
        "tOF",
        "px",
        3,
        -1,
        "mean length in pixels of the difference between the flows of result and truth from a frame to the next, by "
        "Farneback's method on 8-bit grey (0.5, 3, 15, 3, 5, 1.2, 0); the flow of the whole frame, of which the "
        "centre counts, sides a multiple of 32 and at least 8 px from the edge (TecoGAN's metrics.py)",
    ),
    Metric(
        "tdiff",
        "tdiff",
        "",
        2,
        -1,
        "mean squared error of the change from a frame to the next, on [0, 1] RGB: the temporal loss of the paper's "
        "listing 3; an error that stands still costs nothing",
        factor=1e4,
    ),
    Metric(
        "warp",
        "E-warp",
        "",
        2,
        -1,
        "sum(noc (W(V[t]) - V[t-1])^2) / sum(noc) on [0, 1] RGB, W along the truth's flow, noc where that flow is "
        "visible by forward-backward consistency and off motion boundaries (Lai et al. 2018, "
        "fast_blind_video_consistency), with Farneback's flow in place of FlowNet2: compare it with itself only; blur "
        "lowers it",
        factor=1e4,
    ),
    Metric(
        "flicker",
        "flicker",
        "levels",
        3,
        -1,
        "mean absolute change of luma from a frame to the next, in 8-bit levels, over the pixels where the truth's "
        "luma changes by less than one level; no value for a frame with less than 1 % of such pixels; blur lowers it",
    ),
    Metric(
        "stlpips",
        "ST-LPIPS",
        "",
        4,
        -1,
        "shift-tolerant LPIPS on AlexNet (Ghildyal and Liu 2022), RGB at full size, weights of stlpips-pytorch 0.0.2",
        network="stlpips",
    ),
    Metric(
        "tlp_st",
        "tLP-ST",
        "",
        3,
        -1,
        _TLP.format(name="ST-LPIPS, not of LPIPS: not comparable with published tLP"),
        network="stlpips",
    ),
    Metric(
        "lpips",
        "LPIPS",
        "",
        4,
        -1,
        "LPIPS 0.1 on AlexNet (Zhang et al. 2018) by torchmetrics, RGB at full size, torchvision's AlexNet",
        network="lpips",
    ),
    Metric("tlp", "tLP", "", 3, -1, _TLP.format(name="LPIPS 0.1 on AlexNet"), network="lpips"),
    Metric(
        "dists",
        "DISTS",
        "",
        4,
        -1,
        "DISTS (Ding et al. 2020) by torchmetrics, RGB at full size, torchvision's VGG16",
        network="dists",
    ),
    Metric(
        "vmaf",
        "VMAF",
        "",
        2,
        +1,
        "VMAF 0.6.1 as torchmetrics and vmaf-torch compute it (full-range luma of BT.601, not clipped), per frame; "
        "near libvmaf's number, not equal to it",
        network="vmaf",
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in TABLE}
DEFAULT_METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "tof", "tdiff")


def find_metric(name: str) -> Metric:
    """The metric with a plain name such as `psnr_y`; any other scalar is shown by its name and has no direction."""
    return METRICS.get(name) or Metric(name, name, "", 4, 0, "")


def direction_of(scalar: str) -> int:
    """+1 if a higher value of a scalar of training (`val/psnr_y`) is better, -1 if a lower one is, 0 if unknown."""
    group, _, name = scalar.rpartition("/")
    return find_metric(name).direction if group == "val" else 0


def best_places(values: Sequence[float | None], direction: int) -> set[int]:
    """Places of the best value, of all that share it; none without a direction, or with fewer than two values."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not direction or len(known) < 2 or len(set(known)) == 1:
        return set()
    best = max(known) if direction > 0 else min(known)
    return {place for place, value in enumerate(values) if value == best}


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


ProtocolName = Literal["default", "realvsr", "paper", "tecogan"]
Region = tuple[slice, slice]
CROP_MULTIPLE_PX = 32
CROP_MARGIN_PX = 16


@dataclass(frozen=True)
class Protocol:
    """One preset.

    border_px: cut from every side before PSNR and SSIM, None for as much as the scale. trim_frames: left out at
    both ends of every sequence. centre_only: everything is measured on TecoGAN's centre crop. round_luma: luma is
    rounded to 8 bits. metrics: what is measured unless the user says otherwise. text: where it comes from, and what
    is assumed.
    """

    name: ProtocolName
    border_px: int | None
    trim_frames: int
    centre_only: bool
    round_luma: bool
    metrics: tuple[str, ...]
    text: str

    def border(self, scale: int) -> int:
        """Pixels cut from every side for PSNR and SSIM."""
        return scale if self.border_px is None else self.border_px

    def region(self, name: RegionName, height_px: int, width_px: int, scale: int) -> Region:
        """Rows and columns on which a metric is measured. BadInputError if nothing is left."""
        if self.centre_only or name == "flow":
            return centre_crop(height_px, width_px)
        border_px = self.border(scale) if name == "fidelity" else 0
        if min(height_px, width_px) <= 2 * border_px:
            raise BadInputError(
                f"frames of {width_px} x {height_px} px have nothing left inside a border of {border_px} px; measure "
                "larger frames"
            )
        return slice(border_px, height_px - border_px), slice(border_px, width_px - border_px)

    def describe(self, scale: int) -> str:
        """What was done, in full sentences."""
        ends = f", but {self.trim_frames} at both ends of a sequence" if self.trim_frames else ""
        if self.centre_only:
            space = "everything is measured on the centre, sides a multiple of 32 and at least 8 px from the edge"
        else:
            space = f"{self.border(scale)} pixels are cut from each side for PSNR and SSIM"
        luma = "luma is rounded to 8 bits" if self.round_luma else "luma is not rounded"
        return (
            f"`{self.name}`: {self.text} Frames are rounded to 8 bits, {luma}; {space}; every frame is measured"
            f"{ends}. A number of a video is the mean over its frames, `overall` the mean of the videos. Measures "
            "that compare a frame with the one before have none for the first. Bicubic is cubic convolution with "
            "a = -0.5."
        )


PROTOCOLS: dict[str, Protocol] = {
    "default": Protocol(
        "default",
        None,
        0,
        False,
        False,
        DEFAULT_METRICS,
        "the usual one of super-resolution papers, a border of the scale.",
    ),
    "realvsr": Protocol(
        "realvsr",
        0,
        0,
        False,
        True,
        DEFAULT_METRICS,
        "as RealVSR's test script (codes/test_RealVSR_wi_GT.py) for PSNR and SSIM on Y; its networks give Y itself, "
        "here it comes from RGB of 8 bits.",
    ),
    "paper": Protocol(
        "paper",
        0,
        0,
        False,
        False,
        ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"),
        "the paper states no protocol, so this is an ASSUMPTION and its table is not comparable: RGB without a border, "
        "as its base code (leftthomas/SRGAN) measures, but per frame and with a peak of 255, where that code pools "
        "the error of all images and takes the last image's maximum; Y is shown beside it.",
    ),
    "tecogan": Protocol(
        "tecogan",
        None,
        2,
        True,
        False,
        ("psnr_y", "ssim_y", "tof", "tlp_st"),
        "as TecoGAN's metrics.py for PSNR on Y, LPIPS, tOF and tLP; SSIM is not part of it. Its folder average.",
    ),
}


def find_protocol(name: str) -> Protocol:
    """The preset of that name. BadConfigError if there is none."""
    if name not in PROTOCOLS:
        raise BadConfigError(f"--protocol: unknown '{name}'; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def centre_crop(height_px: int, width_px: int) -> Region:
    """TecoGAN's centred crop to multiples of 32 that leaves at least 16 px in both directions."""
    slices = []
    for size_px in (height_px, width_px):
        kept_px = (size_px - CROP_MARGIN_PX) // CROP_MULTIPLE_PX * CROP_MULTIPLE_PX
        if kept_px <= 0:
            raise BadInputError(
                f"TecoGAN's centre crop needs frames of at least {CROP_MULTIPLE_PX + CROP_MARGIN_PX} pixels, found "
                f"{size_px}; measure larger frames, or leave out what needs it (tof) with --metrics"
            )
        start = (size_px - kept_px) // 2
        slices.append(slice(start, start + kept_px))
    return slices[0], slices[1]
