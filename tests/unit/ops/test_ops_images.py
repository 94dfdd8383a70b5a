"""Colour, resampling and warping against independent references."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from vsr_dist.ops.color import from_uint8, rgb_to_y_bt601, rgb_to_y_bt601_array, to_uint8
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.ops.warp import backward_warp


def _rgb(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_luma_of_black_white_and_primaries():
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    expected = [16.0, 235.0, 81.481, 144.553, 40.966]
    np.testing.assert_allclose(rgb_to_y_bt601_array(colours), expected, atol=1e-9)


def test_luma_equals_scikit_image():
    from skimage.color import rgb2ycbcr

    rgb = _rgb(9, 11, 3)
    np.testing.assert_allclose(rgb_to_y_bt601_array(rgb), rgb2ycbcr(rgb)[..., 0], atol=1e-9)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1).double() / 255
    np.testing.assert_allclose(rgb_to_y_bt601(tensor)[0] * 255, rgb2ycbcr(rgb)[..., 0], atol=1e-9)


def test_bytes_survive_the_round_trip_and_floats_are_clamped():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert to_uint8(torch.tensor([-0.5, 1.5, 0.499 / 255, 0.501 / 255])).tolist() == [0, 255, 0, 1]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_equals_pillow(scale):
    from PIL import Image

    image = np.random.default_rng(0).random((17, 23)).astype(np.float32)
    expected = np.asarray(Image.fromarray(image).resize((23 * scale, 17 * scale), Image.Resampling.BICUBIC))
    low = torch.from_numpy(image).expand(1, 1, 17, 23)
    np.testing.assert_allclose(bicubic_upsample(low, scale)[0, 0], expected, atol=1e-5)


def test_bicubic_keeps_half_precision():
    low = torch.rand(1, 3, 6, 6).bfloat16()
    high = bicubic_upsample(low, 4)
    assert high.dtype == torch.bfloat16
    assert torch.equal(high, bicubic_upsample(low.float(), 4).bfloat16())


def test_bicubic_on_clips_equals_frames():
    low = torch.rand(2, 3, 3, 5, 6)
    clip = bicubic_upsample(low, 4)
    assert clip.shape == (2, 3, 3, 20, 24)
    assert torch.equal(clip[1, 2], bicubic_upsample(low[1, 2:3], 4)[0])
    assert bicubic_upsample(low, 1) is low


def test_backward_warp_equals_cv2_remap():
    height, width = 17, 23
    rng = np.random.default_rng(0)
    image = rng.random((height, width)).astype(np.float32)
    # remap rounds positions to 1/32 pixel, so the flow is drawn from that grid.
    flow = (rng.integers(-160, 160, (height, width, 2)) / 32).astype(np.float32)
    row, column = np.mgrid[0:height, 0:width].astype(np.float32)
    expected = cv2.remap(
        image, column + flow[..., 0], row + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    warped = backward_warp(torch.from_numpy(image)[None, None], torch.from_numpy(flow).permute(2, 0, 1)[None])
    np.testing.assert_allclose(warped[0, 0], expected, atol=1e-5)


def test_backward_warp_reads_where_the_flow_points_and_is_differentiable():
    image = torch.arange(12.0).view(1, 1, 3, 4).requires_grad_()
    flow = torch.zeros(1, 2, 3, 4, requires_grad=True)
    right = torch.zeros(1, 2, 3, 4)
    right[:, 0] = 1.0
    warped = backward_warp(image, flow + right)
    torch.testing.assert_close(warped[0, 0, :, :3], image[0, 0, :, 1:], atol=1e-5, rtol=0)
    warped[0, 0, 1, 1].backward()
    assert flow.grad is not None and flow.grad[0, 0, 1, 1].item() == pytest.approx(1.0, abs=1e-4)
