"""Which encoders and containers a result can have, and how an encoder is set up for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av

from vsr_dist.core.errors import BadConfigError, nearest_hint
from vsr_dist.inference.video.colour import ColourTags, PixelLayout, layout_of, padding_px
from vsr_dist.inference.video.media_facts import MediaFacts

# Suffix -> FFmpeg's name of the container.
CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov", ".webm": "webm"}
_X26X_PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
)
# svtav1 tells its life on stderr; errors are enough.
os.environ.setdefault("SVT_LOG", "1")


@dataclass(frozen=True)
class Encoder:
    """One encoder of FFmpeg: what --quality and --preset mean for it. quality: (name, lowest, highest, default)."""

    quality: tuple[str, int, int, int] | None
    presets: tuple[str, tuple[str, ...], str] | None
    options: dict[str, str] = field(default_factory=dict)


ENCODERS: dict[str, Encoder] = {
    "libx264": Encoder(("crf", 0, 51, 16), ("preset", _X26X_PRESETS, "medium")),
    "libx265": Encoder(("crf", 0, 51, 18), ("preset", _X26X_PRESETS, "medium"), {"x265-params": "log-level=error"}),
    "libsvtav1": Encoder(("crf", 0, 63, 24), ("preset", tuple(str(n) for n in range(14)), "8")),
    "libvpx-vp9": Encoder(
        ("crf", 0, 63, 24), ("cpu-used", tuple(str(n) for n in range(9)), "4"), {"b": "0", "row-mt": "1"}
    ),
    "prores_ks": Encoder(("profile", 0, 5, 3), None, {"vendor": "apl0"}),
    "ffv1": Encoder(None, None, {"level": "3", "slicecrc": "1"}),
}


@dataclass(frozen=True)
class EncoderSettings:
    """Everything that shapes the encoded packets. width, height: with the padding that the pixel format asks for."""

    codec: str
    options: dict[str, str]
    pixel_format: str
    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    sample_aspect: Fraction
    tags: ColourTags


def available_encoders() -> list[str]:
    """Those of `ENCODERS` that this build of FFmpeg has."""
    return [name for name in ENCODERS if name in av.codecs_available and _can_encode(name)]


def _can_encode(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except ValueError:
        return False
    return True


def container_of(output: Path) -> str | None:
    """FFmpeg's container for a name, or None for a folder of PNG frames. Raises BadConfigError for other suffixes."""
    if output.is_dir() and output.suffix.lower() in CONTAINERS:
        raise BadConfigError(f"OUTPUT {output} is a folder with the name of a video; name another one")
    if output.is_dir() or output.suffix == "":
        return None
    if output.suffix.lower() not in CONTAINERS:
        raise BadConfigError(
            f"OUTPUT {output} ends in {output.suffix!r}; expected {', '.join(CONTAINERS)}, or a name without suffix "
            f"for a folder of PNG frames{nearest_hint(output.suffix, CONTAINERS)}"
        )
    return CONTAINERS[output.suffix.lower()]


def choose_encoder(
    facts: MediaFacts,
    scale: int,
    container: str,
    *,
    codec: str | None,
    quality: int | None,
    preset: str | None,
    pixel_format: str | None,
) -> tuple[EncoderSettings, list[str]]:
    """The settings for a result, and what a user should know of them. Raises BadConfigError for what cannot be."""
    name = codec or _default_codec(container, facts.deep)
    found = available_encoders()
    if name not in found:
        raise BadConfigError(
            f"--codec {name!r} is not one of this build: {', '.join(found)}{nearest_hint(name, found)}"
        )
    encoder = ENCODERS[name]
    chosen, notes = _pixel_format(name, facts.layout, pixel_format)
    options = dict(encoder.options) | _quality(name, encoder, quality) | _preset(name, encoder, preset)
    if name == "prores_ks" and quality is None and "444" in chosen:
        options["profile"] = "4"
    layout = layout_of(av.VideoFormat(chosen, 16, 16))
    width, height = facts.width * scale, facts.height * scale
    rows, columns = padding_px(layout, width, height)
    if rows or columns:
        notes.append(
            f"{chosen} needs even sizes: the last {'row and column are' if rows and columns else 'line is'} repeated, "
            f"{width + columns} x {height + rows} px instead of {width} x {height} (--pixel-format yuv444p keeps them)"
        )
    return EncoderSettings(
        name,
        options,
        chosen,
        width + columns,
        height + rows,
        facts.time_base,
        facts.rate,
        facts.sample_aspect,
        facts.tags,
    ), notes


def _default_codec(container: str, deep: bool) -> str:
    if container == "webm":
        return "libsvtav1" if deep else "libvpx-vp9"
    return "libx264"


def _quality(name: str, encoder: Encoder, quality: int | None) -> dict[str, str]:
    if encoder.quality is None:
        if quality is not None:
            raise BadConfigError(f"--quality has no meaning for {name}, which is lossless; leave it out")
        return {}
    option, lowest, highest, default = encoder.quality
    value = default if quality is None else quality
    if not lowest <= value <= highest:
        raise BadConfigError(f"--quality {value}: {name} takes {lowest} to {highest} (its {option}, default {default})")
    return {option: str(value)}


def _preset(name: str, encoder: Encoder, preset: str | None) -> dict[str, str]:
    if encoder.presets is None:
        if preset is not None:
            raise BadConfigError(f"--preset has no meaning for {name}; leave it out")
        return {}
    option, values, default = encoder.presets
    value = default if preset is None else preset
    if value not in values:
        raise BadConfigError(f"--preset {value!r}: {name} knows {', '.join(values)}{nearest_hint(value, values)}")
    return {option: value}


def _pixel_format(name: str, source: PixelLayout, wanted: str | None) -> tuple[str, list[str]]:
    """The pixel format: as many bits and as much chroma as the source has, as far as the encoder can."""
    offered = [one.name for one in av.codec.Codec(name, "w").video_formats or ()]
    if wanted is not None:
        if wanted not in offered:
            raise BadConfigError(f"--pixel-format {wanted!r}: {name} takes {', '.join(offered)}")
        if layout_of(av.VideoFormat(wanted, 16, 16)).has_alpha:
            raise BadConfigError(f"--pixel-format {wanted!r} has alpha, which no result has; choose one without")
        return wanted, []
    # RGB and images become 4:2:0, which every player shows.
    chroma = 420 if source.is_rgb else source.subsampling
    for sampling in sorted((420, 422, 444), key=lambda one: (one < chroma, abs(one - chroma))):
        for bits in _depths(source.bits):
            chosen = f"yuv{sampling}p" + (f"{bits}le" if bits > 8 else "")
            if chosen in offered:
                cut = source.bits > 8 and bits < source.bits
                return chosen, [f"{source.bits} bits become {bits}, the most of {name}"] if cut else []
    raise BadConfigError(
        f"the source has {source.bits} bits and {name} takes {', '.join(offered)}; choose another --codec, such as "
        f"libx265, or lose bits by --pixel-format {offered[0]}"
    )


def _depths(bits: int) -> Sequence[int]:
    """Depths to try: never fewer than 10 bits for a source of more than 8."""
    if bits <= 8:
        return (8, 10)
    return [depth for depth in (12, 10) if depth <= bits] or [10]


def set_up(context: av.VideoCodecContext, settings: EncoderSettings) -> None:
    """Give an encoder that is not open yet the settings."""
    context.width, context.height = settings.width, settings.height
    context.pix_fmt = settings.pixel_format
    context.time_base, context.framerate = settings.time_base, settings.rate
    context.sample_aspect_ratio = settings.sample_aspect
    tags = settings.tags
    if not layout_of(av.VideoFormat(settings.pixel_format, 16, 16)).is_rgb:
        context.colorspace, context.color_range = tags.matrix, tags.range
    context.color_primaries, context.color_trc = tags.primaries, tags.transfer
    context.options = dict(settings.options)
    context.thread_type, context.thread_count = "AUTO", 0
