from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.codec import CODECS, NPY_HEADER_BYTES, decode_npy, encode_npy
from sharding.errors import BadShardError


def smooth_frame(height: int = 40, width: int = 56) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 3 * y, x + y], axis=-1).astype(np.uint8)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.sampled_from(["uint8", "int16", "float32"]),
)
def test_npy_is_what_numpy_reads(sizes: list[int], dtype: str) -> None:
    array = np.arange(int(np.prod(sizes))).reshape(sizes).astype(dtype)
    payload = encode_npy(array)
    reference = np.load(io.BytesIO(payload))
    assert reference.dtype == array.dtype
    np.testing.assert_array_equal(reference, array)
    np.testing.assert_array_equal(decode_npy(payload), array)


@pytest.mark.parametrize("shape", [(1,), (16, 2160, 3840, 3), (999, 99999, 99999, 3)])
def test_npy_data_always_begins_at_the_same_offset(shape: tuple[int, ...]) -> None:
    array = np.broadcast_to(np.uint8(0), shape)
    header_only = np.lib.format  # reference for the header's own idea of where it ends
    from sharding.codec import npy_header

    stream = io.BytesIO(npy_header(shape, array.dtype))
    assert header_only.read_magic(stream) == (1, 0)
    assert header_only.read_array_header_1_0(stream) == (shape, False, np.dtype("uint8"))
    assert stream.tell() == NPY_HEADER_BYTES


def test_npy_in_a_file_can_be_mapped(tmp_path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 512 + encode_npy(array))
    mapped = np.memmap(path, np.uint8, "r", 512 + NPY_HEADER_BYTES, array.shape)
    np.testing.assert_array_equal(mapped, array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p[:-1],
        lambda p: p + b"x",
        lambda p: p[:50],
        lambda p: b"",
        lambda p: b"nonsense" * 40,
        lambda p: p.replace(b"|u1", b"<f9"),
    ],
)
def test_a_damaged_npy_member_is_refused(damage) -> None:
    payload = damage(encode_npy(np.zeros((2, 3, 4), np.uint8)))
    with pytest.raises(BadShardError):
        decode_npy(payload)


@pytest.mark.parametrize("name", ["png", "webp"])
def test_lossless_image_codecs_are_exact_and_rgb(name: str) -> None:
    from PIL import Image

    frame = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    payload = CODECS[name].encode(frame)
    np.testing.assert_array_equal(CODECS[name].decode(payload), frame)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(payload)).convert("RGB")), frame)
    assert CODECS[name].lossless


def test_jpg_is_lossy_says_so_and_stays_close() -> None:
    codec = CODECS["jpg"]
    frame = smooth_frame()
    error = codec.decode(codec.encode(frame)).astype(float) - frame
    assert 0 < np.abs(error).max() < 40
    assert np.abs(error).mean() < 3
    assert not codec.lossless
    assert "LOSSY" in codec.note


@pytest.mark.parametrize("name", ["png", "webp", "jpg"])
def test_a_damaged_image_is_refused(name: str) -> None:
    with pytest.raises(BadShardError, match="not an image"):
        CODECS[name].decode(b"no image at all")


def test_image_codecs_take_one_frame_and_npy_a_clip() -> None:
    assert [name for name, codec in CODECS.items() if codec.per_frame] == ["png", "webp", "jpg"]
