"""Frames as decoders give them (integers, rows by columns by colours) to what networks take, and back.

Axis letters: B batch, C channels, H W low-resolution, Y X high-resolution rows and columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from sharding.images import is_folder, list_images
from vsr_dist.core.errors import BadInputError

# RGB, (H, W, 3). uint16 uses the full range 0 to 65535, for sources of more than 8 bits.
Frame = NDArray[np.uint8] | NDArray[np.uint16]
# Integer that stands for 1.0.
FULL_SCALE: dict[Any, float] = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}


class FrameStream(Protocol):
    """Frames of one video in, enlarged frames out, in order: one out for each in, possibly with a delay."""

    def push(self, frame_HWC: Frame) -> list[Frame]:
        """Take the next frame; returns the results (Y, X, 3) that are finished now, of its dtype: none or several."""
        ...

    def finish(self) -> list[Frame]:
        """The rest of the results, at the end of the video. Afterwards another video may begin."""
        ...


def check_frame(frame_HWC: Frame, like_HWC: tuple[tuple[int, ...], Any] | None = None) -> None:
    """Raise BadInputError unless this is a frame, and of the (shape, dtype) that the video has, where it is given."""
    is_array = isinstance(frame_HWC, np.ndarray)
    found = f"{frame_HWC.dtype} {frame_HWC.shape}" if is_array else type(frame_HWC).__name__
    if not is_array or frame_HWC.dtype not in FULL_SCALE or frame_HWC.ndim != 3 or frame_HWC.shape[2] != 3:
        raise BadInputError(f"expected RGB frames, uint8 or uint16 (rows, columns, 3), found {found}")
    if 0 in frame_HWC.shape:
        raise BadInputError(f"expected frames of at least one pixel, found {found}")
    if like_HWC is not None and (frame_HWC.shape, frame_HWC.dtype) != like_HWC:
        raise BadInputError(
            f"a frame of {found} in a video of {like_HWC[1]} {like_HWC[0]}; all frames of a video must have one size "
            "and depth: start a new stream, or convert the frames"
        )


def to_8_bits(frame_HWC: Frame) -> NDArray[np.uint8]:
    """A frame rounded to 8 bits; one of 8 bits is returned as it is."""
    if frame_HWC.dtype == np.uint8:
        return frame_HWC.view(np.uint8)
    return ((frame_HWC.astype(np.uint32) + 128) // 257).astype(np.uint8)


def to_network(frame_HWC: Frame, device: torch.device) -> Tensor:
    """One frame to float32 RGB in [0, 1], (1, 3, H, W) on the device."""
    # Frames from a decoder may be read-only or upside down in memory, which tensors cannot be.
    array = np.ascontiguousarray(frame_HWC)
    if not array.flags.writeable:
        array = array.copy()
    # Only bytes travel to the device. Planes and not channels last: a step of 32 channels on a CPU takes 130 ms against
    # 160 ms, since the recurrence makes planes of its features anyway.
    integers_CHW = torch.from_numpy(array).to(device).permute(2, 0, 1)
    full_CHW = integers_CHW.to(torch.float32, memory_format=torch.contiguous_format)
    return full_CHW.div_(FULL_SCALE[frame_HWC.dtype])[None]


def from_network(fake_CYX: Tensor, dtype: np.dtype[Any]) -> Frame:
    """Float RGB (3, Y, X), nominally in [0, 1], clamped and rounded (halves to even) to a frame (Y, X, 3)."""
    full = FULL_SCALE[dtype]
    # In float32: bfloat16 cannot tell 254 from 255.
    levels_YXC = fake_CYX.float().clamp(0.0, 1.0).mul_(full).round_().permute(1, 2, 0)
    kind = torch.uint8 if full == 255.0 else torch.uint16
    frame_YXC: Frame = levels_YXC.to(kind).contiguous().cpu().numpy()
    return frame_YXC


_EDGE_BYTES = 1 << 20
_INNER_BLOCKS = 64
_BLOCK_BYTES = 1 << 16


def fingerprint(source: Path) -> dict[str, Any]:
    """What tells one input from another without reading all of it.

    Of a video: name, size, and a hash of both ends and of 64 blocks of 64 KiB evenly between, so that a film that was
    cut or encoded anew at equal size is another one. Of a folder: the names and sizes of its images.
    """
    digest = xxhash.xxh3_128()
    if is_folder(source):
        total = 0
        for path in list_images(source):
            size = path.stat().st_size if path.exists() else 0
            digest.update(f"{path.name}\0{size}\n".encode())
            total += size
        return {"name": source.name, "bytes": total, "digest": digest.hexdigest()}
    size = source.stat().st_size
    with source.open("rb") as file:
        digest.update(file.read(_EDGE_BYTES))
        for block in range(1, _INNER_BLOCKS + 1):
            file.seek(size * block // (_INNER_BLOCKS + 1))
            digest.update(file.read(_BLOCK_BYTES))
        file.seek(max(0, size - _EDGE_BYTES))
        digest.update(file.read(_EDGE_BYTES))
    return {"name": source.name, "bytes": size, "digest": digest.hexdigest()}
