"""Show the contents of a data set: a summary in text, and a contact sheet as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sharding.codec import CODECS, Frame
from sharding.errors import BadConfigError
from sharding.schema import Clip, Index

THUMBNAIL_HEIGHT_PX = 96
CAPTION_HEIGHT_PX = 18
MAX_SEQUENCES = 24
FRAMES_PER_SEQUENCE = 4


def summarise(root: Path, index: Index) -> str:
    """A few lines: recipe, then sequences, clips, frames and bytes of each split, then each source."""
    num_bytes = sum(shard.num_bytes for shard in index.shards)
    recipe = _recipe(index.degradation)
    lines = [
        f"{root}: format {index.version}, {len(index.shards)} shards, {_megabytes(num_bytes)}",
        f"scale {index.scale}, degradation {recipe}, flow {index.flow}, clips of up to {index.clip_frames} frames",
        f"codec {index.codec}: {CODECS[index.codec].note}",
        f"digest {index.digest}",
    ]
    for split in index.splits:
        clips = [clip for clip in index.clips if clip.split == split]
        split_bytes = sum(shard.num_bytes for shard in index.shards if shard.split == split)
        lines.append(
            f"{split}: {len(index.sequences(split))} sequences, {len(clips)} clips, "
            f"{sum(clip.num_frames for clip in clips)} frames, {_megabytes(split_bytes)}"
        )
    for source in index.sources:
        height, width = source["size"]
        rate = f"{_rate(source['fps'])} fps" if source["fps"] else "no frame rate"
        lines.append(
            f"source {source['name']}: {source['num_frames']} frames of {width} x {height} px, {rate}, "
            f"{len(source['shots'])} shots"
        )
    return "\n".join(lines)


def _recipe(degradation: Mapping[str, Any]) -> str:
    """The name and, in brackets, the parameters, including those of a nested recipe."""
    flat: dict[str, Any] = {}
    for name, value in degradation.items():
        flat |= {name: value["name"], **value} if isinstance(value, dict) else {name: value}
    parameters = ", ".join(f"{name}={value}" for name, value in flat.items() if name != "name")
    return f"{degradation['name']} ({parameters})" if parameters else str(degradation["name"])


def write_sheet(root: Path, index: Index, path: Path) -> int:
    """Write a contact sheet: one row per sequence, with evenly spaced HR frames and the first LR frame.

    At most `MAX_SEQUENCES` rows, evenly spaced over all sequences. Returns the number of rows.
    """
    if path.suffix.lower() != ".png":
        raise BadConfigError(f"--sheet is {path}, expected a file name that ends in .png")
    sequences = [clips for split in index.splits for clips in index.sequences(split).values()]
    chosen = [sequences[number] for number in _spread(len(sequences), MAX_SEQUENCES)]
    rows = [_row(root, index, clips) for clips in chosen]
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"OpenCV could not encode a sheet of shape {sheet.shape}")
    path.write_bytes(data.tobytes())
    return len(rows)


def read_frame(root: Path, index: Index, clip: Clip, field: str, number: int) -> Frame:
    """Frame `number` (from 0) of a clip's field "hr" or "lr": uint8 RGB, (H, W, 3)."""
    codec = CODECS[index.codec]
    member = clip.members[field][number if codec.per_frame else 0]
    with (root / clip.shard).open("rb") as file:
        file.seek(member.offset)
        array = codec.decode(file.read(member.num_bytes))
    return array if codec.per_frame else array[number]


def _row(root: Path, index: Index, clips: list[Clip]) -> Frame:
    num_frames = sum(clip.num_frames for clip in clips)
    high = [_frame_of(root, index, clips, "hr", n) for n in _spread(num_frames, FRAMES_PER_SEQUENCE)]
    images = [_thumbnail(frame, cv2.INTER_AREA) for frame in high]
    images.append(_thumbnail(_frame_of(root, index, clips, "lr", 0), cv2.INTER_NEAREST))
    strip = np.concatenate(images, axis=1)
    caption = np.zeros((CAPTION_HEIGHT_PX, strip.shape[1], 3), dtype=np.uint8)
    height, width, _ = clips[0].frame_shape("hr")
    text = f"{clips[0].split} {clips[0].sequence}: {num_frames} frames, {width} x {height} px; right: LR"
    cv2.putText(caption, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([caption, strip])


def _frame_of(root: Path, index: Index, clips: list[Clip], field: str, number: int) -> Frame:
    """Frame `number` of a sequence of clips."""
    for clip in clips:
        if number < clip.num_frames:
            return read_frame(root, index, clip, field, number)
        number -= clip.num_frames
    raise ValueError("the sequence has fewer frames")


def _thumbnail(frame: Frame, interpolation: int) -> Frame:
    height, width = frame.shape[:2]
    size = (max(1, round(width * THUMBNAIL_HEIGHT_PX / height)), THUMBNAIL_HEIGHT_PX)
    return np.asarray(cv2.resize(frame, size, interpolation=interpolation), dtype=np.uint8)


def _spread(count: int, limit: int) -> list[int]:
    """At most `limit` evenly spaced numbers from 0 to `count - 1`, ascending, with the first and the last."""
    return sorted({round(n) for n in np.linspace(0, count - 1, min(limit, count))})


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


def _rate(fps: str) -> str:
    numerator, denominator = fps.split("/")
    return f"{int(numerator) / int(denominator):.6g}"
