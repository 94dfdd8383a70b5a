"""Encoding of frames in shards: the table `CODECS`.

Frames are uint8 RGB, shape (H, W, 3). `npy` stores all frames of a clip in one member with a header of fixed
length, so that the array can be memory-mapped. The image codecs store one member per frame.
"""

from __future__ import annotations

import ast
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sharding.errors import BadShardError

Frame = NDArray[np.uint8]

# Magic (6), version (2), header length (2) and header text; a multiple of 64, as the npy format requires.
NPY_HEADER_BYTES = 128
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
JPG_QUALITY = 95


@dataclass(frozen=True)
class Codec:
    """How a codec stores frames.

    `decode` takes the payload of one member. It returns (H, W, 3) for an image codec, and for npy the stored
    array of any shape and dtype. `encode` is its inverse (approximately, unless `lossless`). `size_ratio` is a
    rough estimate of encoded over raw size; it is used only to decide how many sequences go into one shard.
    """

    name: str
    per_frame: bool
    lossless: bool
    note: str
    size_ratio: float
    encode: Callable[[NDArray[Any]], bytes]
    decode: Callable[[bytes | memoryview], NDArray[Any]]


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The `.npy` version 1.0 header of a C-ordered little-endian array, always `NPY_HEADER_BYTES` long."""
    text = f"{{'descr': '{dtype.newbyteorder('<').str}', 'fortran_order': False, 'shape': {shape!r}, }}"
    num_text_bytes = NPY_HEADER_BYTES - len(_NPY_MAGIC) - 2
    if len(text) >= num_text_bytes:
        raise ValueError(f"the shape {shape} does not fit the npy header of {NPY_HEADER_BYTES} bytes")
    return _NPY_MAGIC + struct.pack("<H", num_text_bytes) + text.ljust(num_text_bytes - 1).encode() + b"\n"


def parse_npy_header(payload: bytes | memoryview) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, dtype) from the header of an npy payload. Raises BadShardError if `npy_header` did not write it."""
    head = bytes(payload[:NPY_HEADER_BYTES])
    try:
        fields = ast.literal_eval(head[10:].decode("latin1").strip())
        shape = tuple(int(size) for size in fields["shape"])
        dtype = np.dtype(fields["descr"])
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise BadShardError(f"a member is not an npy array: {error}") from error
    if head != npy_header(shape, dtype):
        raise BadShardError("a member has an npy header that pack does not write; pack the data set again")
    return shape, dtype


def encode_npy(array: NDArray[Any]) -> bytes:
    """Header and raw C-ordered bytes of an array of any shape and dtype."""
    return npy_header(array.shape, array.dtype) + np.ascontiguousarray(array).tobytes()


def decode_npy(payload: bytes | memoryview) -> NDArray[Any]:
    """A read-only view of the array in `payload`. Raises BadShardError if the payload is damaged or truncated."""
    shape, dtype = parse_npy_header(payload)
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(payload) != NPY_HEADER_BYTES + num_bytes:
        raise BadShardError(
            f"an npy member of shape {shape} has {len(payload)} bytes, expected {NPY_HEADER_BYTES + num_bytes}"
        )
    return np.frombuffer(payload, dtype=dtype, offset=NPY_HEADER_BYTES).reshape(shape)


def _image_encoder(suffix: str, parameters: list[int]) -> Callable[[NDArray[Any]], bytes]:
    def encode(frame: NDArray[Any]) -> bytes:
        done, data = cv2.imencode(suffix, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), parameters)
        if not done:
            raise ValueError(f"OpenCV could not encode a frame of shape {frame.shape} as {suffix}")
        return bytes(data)

    return encode


def _decode_image(payload: bytes | memoryview) -> NDArray[Any]:
    image = cv2.imdecode(np.frombuffer(payload, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise BadShardError(f"a member of {len(payload)} bytes is not an image that OpenCV can decode")
    return np.asarray(image)


# In OpenCV, a WebP quality above 100 selects lossless coding.
CODECS: Mapping[str, Codec] = {
    "npy": Codec("npy", False, True, "raw arrays, read as memory-mapped crops", 1.0, encode_npy, decode_npy),
    "png": Codec(
        "png",
        True,
        True,
        "lossless, fast to write",
        0.45,
        _image_encoder(".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]),
        _decode_image,
    ),
    "webp": Codec(
        "webp",
        True,
        True,
        "lossless, small, slow to write",
        0.25,
        _image_encoder(".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
        _decode_image,
    ),
    "jpg": Codec(
        "jpg",
        True,
        False,
        f"LOSSY (quality {JPG_QUALITY}): stored frames differ from the source",
        0.12,
        _image_encoder(".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPG_QUALITY]),
        _decode_image,
    ),
}
