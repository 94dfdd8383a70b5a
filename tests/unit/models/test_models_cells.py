"""Recurrent cells against torch.nn's, and the flow network at its start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vsr_dist.models.alignment import FlowNet
from vsr_dist.models.recurrent import ConvGru, ConvLstm
from vsr_dist.ops.warp import backward_warp


def centre(conv):
    """The matrix that a 3 x 3 convolution applies to an image of one pixel."""
    return conv.weight[:, :, 1, 1]


@pytest.mark.parametrize(("cell_type", "reference_type"), [(ConvGru, nn.GRU), (ConvLstm, nn.LSTM)])
def test_on_one_pixel_the_cell_is_torchs(cell_type, reference_type):
    torch.manual_seed(0)
    channels, num_frames, num_clips = 5, 4, 3
    cell = cell_type(channels).double()
    nn.init.normal_(cell.project.weight)
    reference = reference_type(channels, channels, batch_first=True).double()
    with torch.no_grad():
        reference.weight_ih_l0.copy_(centre(cell.from_input))
        reference.weight_hh_l0.copy_(centre(cell.from_state))
        reference.bias_ih_l0.copy_(cell.from_input.bias)
        reference.bias_hh_l0.copy_(cell.from_state.bias)
        features = torch.randn(num_clips, num_frames, channels, dtype=torch.float64)
        expected, last = reference(features)
        pixels = features.flatten(0, 1)[:, :, None, None]
        correction, state = cell(pixels, num_frames, None, [None] * num_frames)
        projected = expected.flatten(0, 1) @ centre(cell.project).T
    torch.testing.assert_close(correction[:, :, 0, 0], projected, atol=1e-12, rtol=0)
    for found, known in zip(state, last if isinstance(last, tuple) else (last,), strict=True):
        torch.testing.assert_close(found[:, :, 0, 0], known[0], atol=1e-12, rtol=0)


def test_a_fresh_lstm_remembers():
    cell = ConvLstm(4)
    assert (cell.from_input.bias[4:8] == 1.0).all()
    assert (cell.from_state.bias[4:8] == 0.0).all()
    assert cell.from_input.bias[:4].ne(1.0).all()


@pytest.mark.parametrize("cell_type", [ConvGru, ConvLstm])
def test_every_part_of_the_state_is_warped_before_the_update(cell_type):
    torch.manual_seed(0)
    cell = cell_type(3)
    nn.init.normal_(cell.project.weight)
    features, flow = torch.randn(2, 3, 6, 7), torch.full((2, 2, 6, 7), 1.5)
    state = tuple(torch.randn(2, 3, 6, 7) for _ in range(len(cell.state_names)))
    warped = tuple(backward_warp(part, flow) for part in state)
    found, after = cell(features, 1, state, [flow])
    expected, after_expected = cell(features, 1, warped, [None])
    torch.testing.assert_close(found, expected)
    for part, part_expected in zip(after, after_expected, strict=True):
        torch.testing.assert_close(part, part_expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 9), (32, 48)])
def test_the_untrained_flow_network_gives_zero_flow_of_any_size(height, width):
    torch.manual_seed(0)
    flow = FlowNet()(torch.rand(2, 3, height, width), torch.rand(2, 3, height, width))
    assert flow.shape == (2, 2, height, width) and flow.dtype == torch.float32
    assert not flow.any()


def test_the_flow_network_can_learn_a_shift():
    """A few steps on one pair of images, 3 px to the right: their difference falls and the flow points there."""
    torch.manual_seed(0)
    noise = torch.nn.functional.avg_pool2d(torch.randn(4, 3, 46, 50), 7, stride=1)
    before, after = noise[..., 3:43] * 3 + 0.5, noise[..., :40] * 3 + 0.5
    network = FlowNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 37_806
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        flow = network(after, before)
        loss = (backward_warp(before, flow) - after)[..., 6:-6, 6:-6].abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.5 * errors[0]
    assert float(flow[:, 0].detach().median()) == pytest.approx(-3.0, abs=1.0)
