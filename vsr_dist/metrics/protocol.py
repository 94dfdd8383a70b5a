"""How a set is measured: what is cut away, in time and in space, and what is averaged over what.

Numbers of two protocols do not compare. Axes: Y X rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.metrics.registry import DEFAULT_METRICS, RegionName

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
