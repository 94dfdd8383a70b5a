"""BasicVSR against its papers' formulas written out."""

from __future__ import annotations

import pytest
import torch
from basicvsr_reference import Reference, random_weights, warp

from vsr_dist.models import build_generator
from vsr_dist.models.basicvsr import BasicvsrConfig
from vsr_dist.ops.warp import backward_warp

CHANNELS, NUM_BLOCKS = 6, 2


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def pair():
    """The network, and the transcription with the same weights; both name their tensors in the same order."""
    weights = random_weights(CHANNELS, NUM_BLOCKS)
    generator = build_generator(BasicvsrConfig(channels=CHANNELS, num_blocks=NUM_BLOCKS), 4)
    names = list(generator.state_dict())
    generator.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return generator.eval().requires_grad_(False), Reference(weights)


# Whole multiples of 32 px need no resizing in SPyNet; the other sizes do, and one is below its coarsest level.
@pytest.mark.parametrize(("num_frames", "height", "width"), [(4, 32, 64), (3, 37, 45), (2, 9, 70), (1, 20, 33)])
def test_basicvsr_is_its_papers_formula(pair, num_frames, height, width):
    generator, reference = pair
    low = torch.rand(2, num_frames, 3, height, width)
    expected = reference.enlarge(low)
    torch.testing.assert_close(generator(low), expected, atol=1e-5, rtol=0)


def test_the_flow_of_the_reference_moves_features_and_leads_out_of_the_image(pair):
    """Otherwise the comparison above would not see the warps."""
    _, reference = pair
    low = torch.rand(1, 2, 3, 37, 45)
    flow = reference.flow(low[:, 0], low[:, 1])
    assert flow.abs().mean() > 0.5
    columns = torch.arange(45) + flow[:, 0]
    assert ((columns < 0) | (columns > 44)).any()


@pytest.mark.parametrize(("outside", "name"), [("border", "edge"), ("zeros", "zero")])
def test_warping_takes_the_edge_or_nothing_outside_of_the_image(outside, name):
    image, flow = torch.rand(2, 3, 9, 12), 4.0 * torch.randn(2, 2, 9, 12)
    expected = warp(image, flow, name)
    torch.testing.assert_close(backward_warp(image, flow, outside), expected, atol=1e-5, rtol=0)


def test_every_image_depends_on_every_frame(pair):
    generator, _ = pair
    low = torch.rand(1, 4, 3, 16, 16)
    for changed in range(4):
        other = low.clone()
        other[:, changed] = 1.0 - other[:, changed]
        assert ((generator(low) - generator(other)).abs().amax(dim=(0, 2, 3, 4)) > 1e-4).all()
