from __future__ import annotations

import cv2
import numpy as np
import pytest

from sharding.flow import METHODS, MIN_SIDE_PX, clip_flow, dequantise, quantise


def texture(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (112, 144, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3).astype(float)
    return np.clip((smooth - smooth.mean()) * 6 + 128, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", list(METHODS))
def test_flow_finds_a_known_shift_forward_and_backward(method: str) -> None:
    big = texture()
    first, second = big[8:88, 8:120], big[9:89, 5:117]  # content moves by dx = +3, dy = -1
    flow = clip_flow([first, second], method)
    assert flow.shape == (1, 2, 80, 112, 2)
    assert flow.dtype == np.int16
    inner = dequantise(flow)[0, :, 16:-16, 16:-16]
    np.testing.assert_allclose(np.median(inner[0], axis=(0, 1)), [3, -1], atol=0.1)
    np.testing.assert_allclose(np.median(inner[1], axis=(0, 1)), [-3, 1], atol=0.1)


@pytest.mark.parametrize("method", list(METHODS))
def test_flow_does_not_depend_on_opencvs_threads(method: str) -> None:
    frames = [texture(0)[:90], texture(0)[5:95], texture(1)[:90]]
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = clip_flow(frames, method)
        cv2.setNumThreads(4)
        four = clip_flow(frames, method)
        assert cv2.getNumThreads() == 4
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(one, four)


@pytest.mark.parametrize("method", list(METHODS))
def test_flow_works_at_the_least_size(method: str) -> None:
    frames = [texture()[:MIN_SIDE_PX, :MIN_SIDE_PX], texture()[1 : MIN_SIDE_PX + 1, :MIN_SIDE_PX]]
    assert clip_flow(frames, method).shape == (1, 2, MIN_SIDE_PX, MIN_SIDE_PX, 2)


def test_smaller_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 24 px"):
        clip_flow([texture()[: MIN_SIDE_PX - 1]] * 2, "dis")


def test_one_frame_has_no_flow() -> None:
    assert clip_flow([texture()], "dis").shape == (0, 2, 112, 144, 2)


def test_quantising_rounds_to_a_thirty_second_and_saturates() -> None:
    values = np.array([0.0, 1 / 32, -0.51 / 32, 12.34, 5000.0, -5000.0], np.float32)
    coded = quantise(values)
    np.testing.assert_array_equal(coded, [0, 1, -1, 395, 32767, -32768])
    assert np.abs(dequantise(coded)[:4] - values[:4]).max() <= 0.5 / 32
