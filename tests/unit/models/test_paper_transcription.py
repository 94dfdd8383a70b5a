"""The paper's training step, transcribed in benchmarks/, gives the losses of ours; so does the naive recurrence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark_modules import import_benchmark
from small_gan import forget_accelerate_state

from vsr_dist.config import load_config
from vsr_dist.models import build_discriminator, build_generator
from vsr_dist.models.paper_srgan import PaperSrganConfig
from vsr_dist.models.srgan_discriminator import SrganDiscriminatorConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def step_time():
    yield import_benchmark("step_time")
    forget_accelerate_state()


def test_five_steps_of_the_paper_equal_five_of_ours(step_time):
    """The transcription knows nothing of our networks, losses or step; only weights and batches are shared."""
    config = step_time.paper_config(channels=4, crop_px=12)
    data = step_time.batches(config, num_clips=2, number=5)
    ours = step_time.our_step(config)
    for dead_code in (True, False):
        theirs = step_time.transcribed_step(config, dead_code)
        if dead_code:
            expected = [theirs(*batch) for batch in data]
        else:
            # What the dead passes leave behind, batch norm's running averages, training never reads.
            assert [theirs(*batch) for batch in data[:1]] == expected[:1]
    found = [ours(*batch) for batch in data]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-4, rtol=0)
    # The losses move by far more than the tolerance from step to step, so that an idle step would show.
    assert torch.tensor(expected).diff(dim=0).abs().max() > 1e-2


def test_in_double_precision_the_five_steps_are_the_same(step_time):
    """What is left in float32 is rounding: Adam's first steps move every weight by its rate, whatever its gradient."""
    config = step_time.paper_config(channels=4, crop_px=8)
    # Convolutions are slow in float64, so of VGG only the first two layers.
    config = replace(config, perceptual=replace(config.perceptual, layer=4))
    found = step_time.losses_in_double(config)
    assert found["losses_equal"] and found["largest_loss_difference"] < 1e-9
    assert torch.tensor(found["losses_g_d"]["ours"]).diff(dim=0).abs().max() > 1e-2


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_listing_2_and_the_discriminator_in_double_precision(step_time, scale):
    """Output, and the gradient of every weight and of the input, in training mode, where batch norm counts."""
    torch.manual_seed(0)
    ours = build_generator(PaperSrganConfig(channels=4, num_blocks=2, lstm_hidden=6, input_px=8), scale).double()
    theirs = step_time.paper.Generator(scale, 2, 4, 8, 6).double()
    scorer = build_discriminator(SrganDiscriminatorConfig(filters=4), scale).double()
    listed_scorer = step_time.paper.Discriminator(4).double()
    for net, listed in ((ours, theirs), (scorer, listed_scorer)):
        listed.load_state_dict(dict(zip(listed.state_dict(), net.state_dict().values(), strict=True)))
    low = torch.rand(2, 3, 3, 8, 8, dtype=torch.float64)
    mine, listings = low.clone().requires_grad_(), low.clone().requires_grad_()
    fake, listed_fake = ours(mine), theirs(listings)
    scores = torch.sigmoid(scorer(fake, fake.detach()))
    listed_scores = listed_scorer(listed_fake)
    assert (fake.flatten(0, 1) - listed_fake).abs().max() < 1e-12
    assert (scores.flatten() - listed_scores).abs().max() < 1e-12
    gradients = [
        torch.autograd.grad((1 - score).mean() + image.pow(2).mean(), [clip, *net.parameters(), *judge.parameters()])
        for score, image, clip, net, judge in (
            (scores, fake, mine, ours, scorer),
            (listed_scores, listed_fake, listings, theirs, listed_scorer),
        )
    ]
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).abs().max() < 1e-10


@torch.no_grad()
def test_naive_recurrence_equals_recurrent(step_time):
    config = load_config(ROOT / "configs/demo.yaml")
    generator = build_generator(config.generator, 4).eval()
    for parameter in generator.parameters():
        if not parameter.any():
            parameter.normal_(std=0.05)
    low = torch.rand(4, 3, 12, 10)
    torch.testing.assert_close(step_time.NaiveRecurrent(generator)(low), generator(low[None])[0], atol=1e-5, rtol=0)


def test_lstm_is_counted(step_time):
    """One frame of an LSTM of 6 inputs and 5 units: 4 * 5 * (6 + 5) products and as many sums."""
    lstm = torch.nn.LSTM(6, 5)
    with torch.no_grad():
        assert step_time.count_flops(lambda: lstm(torch.rand(1, 1, 6))) == 2 * 4 * 5 * (6 + 5)
