"""Classical flow is the packed one; smoothing along trajectories; warping in half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d, map_coordinates

from sharding import flow as packed_flow
from vsr_dist.core.errors import BadInputError
from vsr_dist.losses.temporal import unpack_flow
from vsr_dist.ops import flow as flow_ops
from vsr_dist.ops.color import from_uint8
from vsr_dist.ops.flow import EMA_ALPHA, METHODS, empty_history, estimate_flow, gaussian_weights, smooth_step
from vsr_dist.ops.motion import smooth_motion
from vsr_dist.ops.warp import backward_warp

HEIGHT, WIDTH = 40, 52


def frames(num_frames=4):
    """uint8 RGB (T, H, W, 3): smooth texture that moves."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(size=(1, 3, 70, 70))).float()
    texture = torch.nn.functional.avg_pool2d(noise, 7, stride=1)[0].permute(1, 2, 0) * 2.5 + 0.5
    views = [texture[t : t + HEIGHT, 2 * t : 2 * t + WIDTH] for t in range(num_frames)]
    return torch.stack(views).clamp(0, 1).mul(255).byte().numpy()


@pytest.mark.parametrize("method", METHODS)
def test_estimated_flow_is_the_packed_one_bit_for_bit(method):
    frames_THWC = frames()
    packed_TKHW2 = torch.from_numpy(packed_flow.clip_flow(list(frames_THWC), method))
    expected = unpack_flow(packed_TKHW2).permute(0, 1, 4, 2, 3)
    low = from_uint8(torch.from_numpy(frames_THWC)).permute(0, 3, 1, 2)
    assert torch.equal(estimate_flow(low[:-1], low[1:], method), expected[:, 0])
    assert torch.equal(estimate_flow(low[1:], low[:-1], method), expected[:, 1])
    assert expected.abs().max() > 1.0


def test_names_and_limits_are_those_of_packing():
    assert set(METHODS) == set(packed_flow.METHODS)
    assert flow_ops.MIN_SIDE_PX == packed_flow.MIN_SIDE_PX
    assert flow_ops.UNITS_PER_PX == packed_flow.UNITS_PER_PX


def test_estimated_flow_is_a_constant_on_the_images_device():
    low = torch.rand(2, 3, 24, 32, requires_grad=True)
    flow = estimate_flow(low, low.flip(0), "dis")
    assert flow.shape == (2, 2, 24, 32) and flow.dtype == torch.float32 and not flow.requires_grad
    with pytest.raises(BadInputError, match="at least 24 px a side, found 32 x 23"):
        estimate_flow(low.transpose(2, 3)[..., :23], low.transpose(2, 3)[..., :23], "dis")


def smooth(flows_TB2HW, smoothing):
    history, smoothed = empty_history(flows_TB2HW[0], smoothing), []
    for flow in flows_TB2HW:
        result, history = smooth_step(flow, history, smoothing)
        smoothed.append(result)
    return torch.stack(smoothed)


def warp64(image_HW, flow_2HW):
    """Bilinear sampling with edge repetition by scipy, in float64."""
    rows, columns = np.mgrid[0 : image_HW.shape[0], 0 : image_HW.shape[1]].astype(np.float64)
    points = np.stack([rows + flow_2HW[1], columns + flow_2HW[0]])
    return map_coordinates(image_HW, points, order=1, mode="nearest")


@pytest.mark.parametrize("smoothing", ["ema", "gaussian"])
def test_smoothing_equals_the_formula_in_float64(smoothing):
    rng = np.random.default_rng(1)
    flows = rng.normal(scale=2.0, size=(6, 2, 9, 11))
    brought, expected = [], []
    for flow in flows:  # `brought`: past flows on the grid of the current frame, newest first
        brought = [np.stack([warp64(part, flow) for part in past]) for past in brought]
        if smoothing == "ema":
            average = 0.9 * flow + 0.1 * brought[0] if brought else flow
            brought = [average]
        else:
            brought = [flow, *brought][:4]
            weights = np.exp(-(np.arange(len(brought)) ** 2) / 2.0)
            average = np.tensordot(weights / weights.sum(), np.stack(brought), axes=1)
        expected.append(average)
    found = smooth(torch.from_numpy(flows).float()[:, None], smoothing)[:, 0]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-4)


@pytest.mark.parametrize("smoothing", ["none", "ema", "gaussian"])
def test_steady_motion_stays_as_it_is(smoothing):
    flows = torch.tensor([2.0, -1.0]).view(1, 1, 2, 1, 1).expand(5, 2, 2, 8, 9)
    torch.testing.assert_close(smooth(flows, smoothing), flows)


@pytest.mark.parametrize("smoothing", ["ema", "gaussian"])
def test_noise_becomes_smaller(smoothing):
    flows = 0.1 * torch.randn(12, 1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    assert smooth(flows, smoothing)[6:].std() < 0.95 * flows[6:].std()


def test_the_average_follows_the_object():
    """A block moves 4 px per frame over a still ground; listing 1's average at fixed pixels mixes the two."""
    flows = torch.zeros(3, 1, 2, 8, 40)
    for t in range(3):
        flows[t, 0, 0, :, 4 * t + 8 : 4 * t + 16] = -4.0  # leads back to where the block was
    along = smooth(flows, "ema")[2, 0, 0]
    fixed = torch.from_numpy(smooth_motion(flows[:, 0].permute(0, 2, 3, 1).numpy()))[2, ..., 0]
    block = (slice(None), slice(17, 23))
    torch.testing.assert_close(along[block], torch.full((8, 6), -4.0))
    assert fixed[:, 20:24].max() > -4.0 + 0.3


def test_gaussian_of_the_text_is_a_centred_filter():
    flow = np.random.default_rng(2).normal(size=(9, 2, 3, 2)).astype(np.float32)
    found = smooth_motion(flow, "gaussian")
    # scipy's filter with a radius of 3, renormalised where frames are missing at the ends.
    padded = gaussian_filter1d(flow.astype(np.float64), 1.0, axis=0, mode="constant", radius=3)
    share = gaussian_filter1d(np.ones(9), 1.0, mode="constant", radius=3)
    np.testing.assert_allclose(found, padded / share[:, None, None, None], atol=1e-6)
    assert gaussian_weights()[1] == pytest.approx(0.60653066) and EMA_ALPHA == 0.9


def test_half_precision_is_warped_with_exact_coordinates():
    """In bfloat16 neighbouring columns beyond 256 would be the same number."""
    columns = torch.arange(512.0).remainder(2.0).expand(1, 1, 2, 512)
    flow = torch.zeros(1, 2, 2, 512)
    flow[:, 0] = 1.0
    expected = backward_warp(columns, flow)
    found = backward_warp(columns.bfloat16(), flow.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=4e-3, rtol=0)
