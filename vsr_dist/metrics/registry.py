"""The one table of metrics, how a clip is measured by it, and the protocols by which sets are measured.

Evaluation, validation, reports and studies read names, units, directions, reducers and functions from here. Numbers of
two protocols do not compare.

Axes: T time, Y X rows and columns, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vsr_dist.core.errors import BadConfigError, BadInputError, nearest_hint
from vsr_dist.metrics.drift import auc, high_frequency_gap, kolmogorov_smirnov, paired_accuracy
from vsr_dist.metrics.fidelity import frame_fidelity
from vsr_dist.metrics.perceptual import Dists, Lpips, ShiftTolerantLpips, VmafStream
from vsr_dist.metrics.temporal import Region, TruthMotion, flicker, tdiff, tof, warping_error
from vsr_dist.ops.color import ByteArray

# Where in a frame a metric is measured: inside the protocol's border, on TecoGAN's centre crop, or everywhere.
RegionName = Literal["inside", "centre", "whole"]
# `near 0`: signed, 0 is the target. `-`: no value is better than another, or which one is not known.
Better = Literal["higher", "lower", "near 0", "-"]
# How a number comes out of many. `mean`: of the frames or pairs of frames of a clip or video that have a value, of the
# windows of a validation, and `overall` of the videos. `pooled`: all frames of a clip, or all windows, give one value
# at once. `interval`: of the steps of a log interval; memory of all steps so far.
Reducer = Literal["mean", "pooled", "interval"]
# What a function is given; images are uint8 RGB inside the metric's region.
Needs = Literal[
    "fidelity",  # frames, which of PSNR and SSIM, and whether luma is rounded: these share their steps
    "frames",  # fake_YXC and real_YXC, or fake_TYXC and real_TYXC where frames are pooled
    "pairs",  # fake_TYXC and real_TYXC, two frames or more
    "flow",  # fake_TYXC, the truth's motion, and the region: whole frames
    "distance",  # nothing: opens the network that gives the distance of the result from the truth
    "step",  # nothing: opens the network, whose distances from a frame to the next are compared (tLP)
    "stream",  # nothing: opens what takes the frames of a video one by one
    "logits",  # the discriminator's mean logits of the real and of the generated windows
    "training",  # is not called
]
NETWORKS = ("distance", "step", "stream")


def _nothing(*_: object) -> None:
    """Of a metric that a training measures by itself."""


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    name: of `vsr-dist evaluate`, which validation logs as `val/NAME` and `val_bicubic/NAME`; other scalars have the
    name under which training logs them. title, unit, decimals and factor: how it is shown (`value * factor`).
    function: gets what it `needs`; None is no value; one that opens a network raises what says which weights or
    packages are missing. text: its protocol, without what the preset decides. in_validation: every validation
    measures it.
    """

    name: str
    title: str
    unit: str = ""
    decimals: int = 4
    better: Better = "-"
    reducer: Reducer = "mean"
    needs: Needs = "training"
    function: Callable[..., Any] = _nothing
    text: str = ""
    region: RegionName = "whole"
    factor: float = 1.0
    in_validation: bool = False

    @property
    def heading(self) -> str:
        """Title with unit and factor, for the head of a table."""
        factor = "" if self.factor == 1.0 else f"x1e{round(math.log10(self.factor))}"
        return " ".join(part for part in (self.title, self.unit, factor) if part)

    @property
    def direction(self) -> int:
        """+1 if higher is better, -1 if lower, else 0."""
        return {"higher": 1, "lower": -1}.get(self.better, 0)

    @property
    def scalar(self) -> str:
        """The name under which a training logs it."""
        return self.name if "/" in self.name else f"val/{self.name}"

    def show(self, value: float, sign: str = "") -> str:
        """A value as tables show it; `sign` "+" for a difference."""
        return f"{value * self.factor:{sign}.{self.decimals}f}"


def _st_lpips() -> ShiftTolerantLpips:
    return ShiftTolerantLpips("ST-LPIPS", "leave stlpips and tlp_st out of --metrics")


_PSNR = "10 log10(255^2 / mean squared error) in dB, at most 100, per frame; equal to scikit-image within 1e-6"
_SSIM = (
    "Wang et al. 2004 with a Gaussian window of sigma 1.5 (11 x 11), population covariance and positions where the "
    "window lies inside, per frame; equal to scikit-image within 1e-6"
)
_Y = "on the luma of BT.601 in studio range (16 to 235)"
_TLP = (
    "100 |D(g[t-1], g[t]) - D(b[t-1], b[t])| of result g and truth b (TecoGAN's tLP), a distance being that of {name}"
)
_TOF = (
    "mean length in pixels of the difference between the flows of result and truth from a frame to the next, by "
    "Farneback's method on 8-bit grey (0.5, 3, 15, 3, 5, 1.2, 0); the flow of the whole frame, of which the centre "
    "counts, sides a multiple of 32 and at least 8 px from the edge (TecoGAN's metrics.py)"
)
_TDIFF = (
    "mean squared error of the change from a frame to the next, on [0, 1] RGB: the temporal loss of the paper's "
    "listing 3; an error that stands still costs nothing"
)
_WARP = (
    "sum(noc (W(V[t]) - V[t-1])^2) / sum(noc) on [0, 1] RGB, W along the truth's flow, noc where that flow is "
    "visible by forward-backward consistency and off motion boundaries (Lai et al. 2018, "
    "fast_blind_video_consistency), with Farneback's flow in place of FlowNet2: compare it with itself only; blur "
    "lowers it"
)
_FLICKER = (
    "mean absolute change of luma from a frame to the next, in 8-bit levels, over the pixels where the truth's "
    "luma changes by less than one level; no value for a frame with less than 1 % of such pixels; blur lowers it"
)
_ST = "shift-tolerant LPIPS on AlexNet (Ghildyal and Liu 2022), RGB at full size, weights of stlpips-pytorch 0.0.2"
_LPIPS = "LPIPS 0.1 on AlexNet (Zhang et al. 2018) by torchmetrics, RGB at full size, torchvision's AlexNet"
_DISTS = "DISTS (Ding et al. 2020) by torchmetrics, RGB at full size, torchvision's VGG16"
_VMAF = (
    "VMAF 0.6.1 as torchmetrics and vmaf-torch compute it (full-range luma of BT.601, not clipped), per frame; near "
    "libvmaf's number, not equal to it"
)
_TLP_ST = _TLP.format(name="ST-LPIPS, not of LPIPS: not comparable with published tLP")
_TLP_LPIPS = _TLP.format(name="LPIPS 0.1 on AlexNet")

# fmt: off
TABLE: tuple[Metric, ...] = (
    Metric("psnr_y", "PSNR-Y", "dB", 2, "higher", "mean", "fidelity", frame_fidelity, f"{_PSNR}; {_Y}",
           "inside", in_validation=True),
    Metric("ssim_y", "SSIM-Y", "", 4, "higher", "mean", "fidelity", frame_fidelity, f"{_SSIM}; {_Y}",
           "inside", in_validation=True),
    Metric("psnr_rgb", "PSNR-RGB", "dB", 2, "higher", "mean", "fidelity", frame_fidelity,
           f"{_PSNR}; over all values of RGB", "inside", in_validation=True),
    Metric("ssim_rgb", "SSIM-RGB", "", 4, "higher", "mean", "fidelity", frame_fidelity,
           f"{_SSIM}; mean over R, G and B", "inside", in_validation=True),
    Metric("tof", "tOF", "px", 3, "lower", "mean", "flow", tof, _TOF, "centre", in_validation=True),
    Metric("tdiff", "tdiff", "", 2, "lower", "mean", "pairs", tdiff, _TDIFF, factor=1e4, in_validation=True),
    Metric("warp", "E-warp", "", 2, "lower", "mean", "flow", warping_error, _WARP, factor=1e4),
    Metric("flicker", "flicker", "levels", 3, "lower", "mean", "pairs", flicker, _FLICKER),
    Metric("high_frequency_gap", "high-frequency gap", "nats", 3, "near 0", "pooled", "frames", high_frequency_gap,
           in_validation=True),
    Metric("stlpips", "ST-LPIPS", "", 4, "lower", "mean", "distance", _st_lpips, _ST),
    Metric("tlp_st", "tLP-ST", "", 3, "lower", "mean", "step", _st_lpips, _TLP_ST),
    Metric("lpips", "LPIPS", "", 4, "lower", "mean", "distance", Lpips, _LPIPS),
    Metric("tlp", "tLP", "", 3, "lower", "mean", "step", Lpips, _TLP_LPIPS),
    Metric("dists", "DISTS", "", 4, "lower", "mean", "distance", Dists, _DISTS),
    Metric("vmaf", "VMAF", "", 2, "higher", "mean", "stream", VmafStream, _VMAF),
    Metric("drift/normalized_loss", "held-out discriminator loss / chance", "", 3, "lower", "pooled"),
    Metric("drift/paper_loss", "held-out discriminator loss in the paper's formula", "", 3, "-", "pooled"),
    Metric("drift/paired_accuracy", "right on pairs", "", 3, "higher", "pooled", "logits", paired_accuracy),
    Metric("drift/auc", "AUC", "", 3, "higher", "pooled", "logits", auc),
    Metric("drift/ks", "KS distance", "", 3, "higher", "pooled", "logits", kolmogorov_smirnov),
    Metric("drift/dead_fraction", "dead logits", "", 3, "lower", "pooled"),
    Metric("drift/overfit", "overfit", "", 3, "lower", "pooled"),
    Metric("drift/gradient_ratio", "gradient, adversarial / image", "", 3, "-", "pooled"),
    Metric("drift/probe_auc", "AUC of the spectra", "", 3, "-", "pooled"),
    Metric("drift/probe_gap", "AUC of the spectra - AUC", "", 3, "lower", "pooled"),
    Metric("drift/slope", "slope", "per 1000 steps", 3, "-", "pooled"),
    Metric("drift/slope_ci_low", "slope, lower end", "per 1000 steps", 3, "-", "pooled"),
    Metric("drift/slope_ci_high", "slope, upper end", "per 1000 steps", 3, "-", "pooled"),
    Metric("drift/verdict_code", "verdict", "", 0, "-", "pooled"),
    Metric("d/real", "mean logit, real", "", 3, "-", "interval"),
    Metric("d/fake", "mean logit, generated", "", 3, "-", "interval"),
    Metric("perf/clips_per_s", "training speed", "clips/s", 1, "higher", "interval"),
    Metric("perf/step_ms", "time of a step", "ms", 0, "lower", "interval"),
    Metric("perf/data_wait_ms", "time waiting for data", "ms", 1, "lower", "interval"),
    Metric("perf/peak_memory_mb", "peak memory", "MB", 0, "lower", "interval"),
)
# fmt: on
METRICS: dict[str, Metric] = {metric.name: metric for metric in TABLE}
# What `vsr-dist evaluate` can measure.
EVALUATED = tuple(m.name for m in TABLE if m.needs not in ("logits", "training") and m.reducer == "mean")
DEFAULT_METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "tof", "tdiff")


def find_metric(name: str) -> Metric:
    """The metric `psnr_y`, `val/psnr_y` or `drift/auc`; any other scalar is shown by its name, without a direction."""
    plain = name.removeprefix("val/").removeprefix("val_bicubic/")
    return METRICS.get(plain) or Metric(name, name)


def direction_of(scalar: str) -> int:
    """+1 if a higher value of a scalar of training (`val/psnr_y`) is better, -1 if a lower one is, else 0."""
    return find_metric(scalar).direction if "/" in scalar else 0


def validation_metrics(num_frames: int) -> list[Metric]:
    """What every validation measures on windows of so many frames."""
    found = [metric for metric in TABLE if metric.in_validation]
    return [metric for metric in found if num_frames > 1 or metric.needs not in ("pairs", "flow")]


def measure_clip(
    metrics: Sequence[Metric],
    protocol: Protocol,
    scale: int,
    fake_TYXC: ByteArray,
    real_TYXC: ByteArray,
    motion: TruthMotion | None = None,
) -> dict[str, float]:
    """Metrics that need fidelity, frames, pairs or flow, of one clip on the CPU; one that has no value is absent.

    motion: that of `real_TYXC`, for several results of one truth. BadInputError for unequal shapes and for frames that
    are too small.
    """
    if fake_TYXC.shape != real_TYXC.shape:
        raise BadInputError(f"metrics: expected equal shapes, found {fake_TYXC.shape} and {real_TYXC.shape}")
    motion = motion or TruthMotion(real_TYXC)
    height_px, width_px = real_TYXC.shape[1:3]
    regions = {m.region: protocol.region(m.region, height_px, width_px, scale) for m in metrics}
    clips = {name: (fake_TYXC[:, *region], real_TYXC[:, *region]) for name, region in regions.items()}
    values: dict[str, list[float | None]] = {}
    fidelity = [metric.name for metric in metrics if metric.needs == "fidelity"]
    if fidelity:
        frames = [frame_fidelity(*pair, fidelity, protocol.round_luma) for pair in zip(*clips["inside"], strict=True)]
        values |= {name: [frame[name] for frame in frames] for name in fidelity}
    for metric in metrics:
        function, pair = metric.function, clips[metric.region]
        if metric.needs == "flow":
            values[metric.name] = [function(fake_TYXC, motion, regions[metric.region])]
        elif metric.needs != "fidelity":
            is_whole = metric.needs == "pairs" or metric.reducer == "pooled"
            values[metric.name] = [function(*pair)] if is_whole else list(map(function, *pair))
    known = {name: [value for value in found if value is not None] for name, found in values.items()}
    return {name: float(np.mean(found)) for name, found in known.items() if found}


def best_places(values: Sequence[float | None], better: Better) -> set[int]:
    """Places of the best value, of all that share it; none without a direction, or with fewer than two values."""
    merits = [None if value is None else -abs(value) if better == "near 0" else value for value in values]
    known = [merit for merit in merits if merit is not None and math.isfinite(merit)]
    if better == "-" or len(known) < 2 or len(set(known)) == 1:
        return set()
    best = min(known) if better == "lower" else max(known)
    return {place for place, merit in enumerate(merits) if merit == best}


def parse_metrics(text: str) -> tuple[str, ...]:
    """Names out of `a,b,c`, in the table's order. BadConfigError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in EVALUATED:
            hint = nearest_hint(name, list(EVALUATED))
            raise BadConfigError(f"--metrics: unknown metric '{name}'{hint}; known: {', '.join(EVALUATED)}, or all")
    if not names:
        raise BadConfigError(f"--metrics: no metric in '{text}'; known: {', '.join(EVALUATED)}, or all")
    return in_order(names)


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Each name once, in the order of the table."""
    return tuple(name for name in METRICS if name in names)


ProtocolName = Literal["default", "realvsr", "paper", "tecogan"]
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
        if self.centre_only or name == "centre":
            return centre_crop(height_px, width_px)
        border_px = self.border(scale) if name == "inside" else 0
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
