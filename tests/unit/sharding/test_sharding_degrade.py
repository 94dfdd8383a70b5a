from __future__ import annotations

import hashlib
from itertools import islice

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

import sharding.degrade
from sharding.degrade import (
    H264,
    RECIPES,
    SCALES,
    bicubic_downscale,
    blur_decimate,
    crop_to_multiple,
    describe,
    get_recipe,
)
from sharding.errors import BadConfigError
from sharding.sources import find_samples
from sharding.video import iter_frames

SIZES = [(48, 60), (120, 36), (12, 12)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow_float(frame: np.ndarray, scale: int) -> np.ndarray:
    """Pillow's antialiased bicubic on float planes: no rounding between its passes."""
    size = (frame.shape[1] // scale, frame.shape[0] // scale)
    planes = [Image.fromarray(frame[..., c].astype(np.float32)) for c in range(3)]
    small = np.stack([np.asarray(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes], axis=-1)
    return np.clip(np.rint(small), 0, 255)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES)
def test_bicubic_equals_pillow_on_noise(scale: int, size: tuple[int, int]) -> None:
    frame = noise(*size)
    difference = np.abs(bicubic_downscale(frame, scale).astype(int) - pillow_float(frame, scale))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001  # only ties of rounding


@pytest.mark.parametrize("scale", SCALES)
def test_bicubic_equals_torch_on_noise(scale: int) -> None:
    torch.set_num_threads(1)
    frame = noise(60, 48)
    tensor = torch.from_numpy(frame).permute(2, 0, 1)[None].double()
    size = (60 // scale, 48 // scale)
    small = torch.nn.functional.interpolate(tensor, size=size, mode="bicubic", antialias=True)
    reference = small[0].permute(1, 2, 0).clamp(0, 255).round().numpy()
    difference = np.abs(bicubic_downscale(frame, scale) - reference)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


def test_bicubic_equals_pillow_on_a_real_frame() -> None:
    with av.open(str(next(path for path in find_samples() if path.stem == "bikes"))) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(bicubic_downscale(frame, 4).astype(int) - pillow_float(frame, 4)).max() <= 1


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("scale", SCALES)
def test_recipes_keep_a_constant_and_give_the_size(name: str, scale: int) -> None:
    frame = np.full((24, 36, 3), 201, np.uint8)
    small = RECIPES[name].apply(frame, scale)
    assert small.shape == (24 // scale, 36 // scale, 3)
    assert small.dtype == np.uint8
    assert (small == 201).all()


def test_bicubic_is_centred() -> None:
    """Turning a frame upside down and downscaling commute only at half-pixel centres."""
    frame = noise(48, 48)
    np.testing.assert_array_equal(bicubic_downscale(frame[::-1, ::-1], 4)[::-1, ::-1], bicubic_downscale(frame, 4))


def test_blur_decimate_equals_scipy() -> None:
    frame = noise(40, 48)
    blurred = gaussian_filter(frame.astype(float), (1.5, 1.5, 0), mode="mirror", radius=(6, 6, 0))
    # OpenCV blurs uint8 in bit-exact fixed-point arithmetic: the same everywhere, a little over 1/255 off.
    difference = np.abs(blur_decimate(frame, 4) - blurred[::4, ::4])
    assert difference.max() < 1.5
    assert difference.mean() < 0.4


def test_crop_keeps_the_top_left_corner() -> None:
    frame = noise(13, 18)
    cropped = crop_to_multiple(frame, 4)
    np.testing.assert_array_equal(cropped, frame[:12, :16])


def test_a_size_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        bicubic_downscale(noise(13, 16), 4)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(BadConfigError, match="did you mean 'bicubic'"):
        get_recipe("bicubik")
    assert describe("bicubic")["a"] == -0.5
    assert describe("paired") == {"name": "paired"}


CLIP = next(path for path in find_samples() if path.stem == "bikes")


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return [np.ascontiguousarray(frame[:136, :320]) for frame in islice(iter_frames(CLIP), 24)]


def digest(frames: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(frame.tobytes() for frame in frames)).hexdigest()


def psnr(frames: list[np.ndarray], reference: list[np.ndarray]) -> float:
    return float(10 * np.log10(255**2 / np.mean((np.array(frames, float) - np.array(reference, float)) ** 2)))


@pytest.mark.parametrize("count", [1, 2, 24])
def test_as_many_frames_come_back_in_order(frames: list[np.ndarray], count: int) -> None:
    back = list(H264(crf=15).round_trip(iter(frames[:count])))
    assert [frame.shape for frame in back] == [frame.shape for frame in frames[:count]]
    for number, frame in enumerate(back):
        errors = [np.abs(frame.astype(int) - other).mean() for other in frames[:count]]
        assert int(np.argmin(errors)) == number
    assert list(H264().round_trip(iter([]))) == []


def test_a_larger_rate_factor_loses_more(frames: list[np.ndarray]) -> None:
    quality = [psnr(list(H264(crf=crf).round_trip(iter(frames))), frames) for crf in (5, 25, 45)]
    assert quality[0] > quality[1] + 5 > quality[2] + 10
    assert quality[0] > 38


def test_odd_sides_are_kept(frames: list[np.ndarray]) -> None:
    odd = [np.ascontiguousarray(frame[:75, :101]) for frame in frames[:4]]
    back = list(H264(crf=10).round_trip(iter(odd)))
    assert {frame.shape for frame in back} == {(75, 101, 3)}
    assert psnr(back, odd) > 30


def test_bytes_are_those_of_plain_c(frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor of another make x264 runs its C code; what it decides there is the same."""
    first = digest(list(H264().round_trip(iter(frames[:12]))))
    assert digest(list(H264().round_trip(iter(frames[:12])))) == first
    monkeypatch.setattr(sharding.degrade.platform, "machine", lambda: "another")
    assert digest(list(H264().round_trip(iter(frames[:12])))) == first


def test_frames_are_taken_as_they_are_needed(frames: list[np.ndarray]) -> None:
    taken = 0

    def counted():
        nonlocal taken
        for number in range(200):
            taken += 1
            yield frames[number % len(frames)]

    back = H264(preset="ultrafast").round_trip(counted())
    next(back)
    first = taken
    assert first <= 40
    list(islice(back, 100))
    assert taken <= first + 110


def test_the_recipe_codes_first_and_shrinks_then(frames: list[np.ndarray]) -> None:
    recipe = get_recipe("video_compression", 40)
    assert recipe.parameters["crf"] == 40
    assert RECIPES["video_compression"].parameters["crf"] == 25
    small = list(recipe.stream(iter(frames), 4))
    coded = list(H264(crf=40).round_trip(iter(frames)))
    for low, high in zip(small, coded, strict=True):
        np.testing.assert_array_equal(low, bicubic_downscale(high, 4))
    assert describe("video_compression", 40) == {
        "name": "video_compression",
        "encoder": "libx264",
        "crf": 40,
        "preset": "medium",
        "pixels": "yuv420p",
        "rate": 25,
        "lookahead_frames": 10,
        "then": "bicubic",
        "a": -0.5,
        "antialias": True,
        "centres": "half-pixel",
    }


@pytest.mark.parametrize(("name", "crf"), [("bicubic", 20), ("video_compression", 52), ("video_compression", -1)])
def test_a_rate_factor_out_of_place_is_refused(name: str, crf: int) -> None:
    with pytest.raises(BadConfigError, match=f"--crf is {crf} with --degradation {name}; expected 0 to 51"):
        get_recipe(name, crf)
