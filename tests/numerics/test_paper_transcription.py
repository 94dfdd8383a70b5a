"""The paper's training step, transcribed in benchmarks/, gives the losses of ours; so does the naive recurrence."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from small_gan import forget_accelerate_state

from vsr_dist.config import load_config
from vsr_dist.models import build_generator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def step_time():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("step_time")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
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
