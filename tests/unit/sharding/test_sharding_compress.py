from __future__ import annotations

import hashlib
from itertools import islice

import numpy as np
import pytest

import sharding.compress
from sharding.compress import H264
from sharding.degrade import RECIPES, bicubic_downscale, describe, get_recipe
from sharding.errors import BadConfigError
from sharding.samples import find_samples
from sharding.video import iter_frames

CLIP = next(path for path in find_samples() if path.stem == "bikes")


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return list(islice(iter_frames(CLIP), 24))


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
    monkeypatch.setattr(sharding.compress.platform, "machine", lambda: "another")
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
