"""The drift monitor on toy players whose every measure is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vsr_dist.core.collectives import World
from vsr_dist.data.loader import ClipBatch
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.losses.objective import LossConfig
from vsr_dist.metrics.drift import VERDICTS
from vsr_dist.metrics.registry import METRICS
from vsr_dist.ops.color import from_uint8, to_uint8
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.training.drift import DriftMonitor, slope_scores, verdict_of, write_drift_plot
from vsr_dist.training.validation import Validator

SCALE, FRAMES, SIDE = 2, 2, 16
GAP = 8 / 255


class Enlarge(nn.Module):
    """Bicubic; its mode is watched."""

    def forward(self, low_BTCHW, flow_BTKCHW=None):
        assert not self.training
        return bicubic_upsample(low_BTCHW, SCALE)


class Brightness(nn.Module):
    """Logit: gain times the mean difference to bicubic, plus an offset."""

    def __init__(self, gain, offset=0.0):
        super().__init__()
        self.gain, self.offset = gain, offset

    def forward(self, clip_BTCYX, bicubic_BTCYX, full_precision=False):
        return (self.gain * (clip_BTCYX - bicubic_BTCYX).mean(dim=(1, 2, 3, 4)) + self.offset)[:, None]


class Memory(nn.Module):
    """Knows the real clips that it has seen: logit 4 for one of them, else 0."""

    def __init__(self, known_BTCYX):
        super().__init__()
        self.known_BTCYX = known_BTCYX.float() / 255

    def forward(self, clip_BTCYX, bicubic_BTCYX, full_precision=False):
        far = (clip_BTCYX[:, None] - self.known_BTCYX[None]).abs().amax(dim=(2, 3, 4, 5))
        return 4.0 * (far.amin(dim=1) < 1e-6).float()[:, None] + 0.0 * clip_BTCYX.mean()


def windows(seed, sharp=0.0, num=8):
    """Flat frames of random grey; the truth is brighter by GAP, with noise of amplitude `sharp`."""
    generator = torch.Generator().manual_seed(seed)
    grey = torch.randint(40, 180, (num, 1, 1, 1, 1), generator=generator, dtype=torch.uint8)
    low = grey.expand(num, FRAMES, 3, SIDE, SIDE).contiguous()
    size = (num, FRAMES, 1, SIDE * SCALE, SIDE * SCALE)
    noise = (torch.randint(-1, 2, size, generator=generator) * sharp).to(torch.int16)
    real = (grey.to(torch.int16) + 8 + noise).expand(num, FRAMES, 3, SIDE * SCALE, SIDE * SCALE)
    names = tuple(f"w{number}" for number in range(num))
    return ClipBatch(low, real.to(torch.uint8).contiguous(), names, torch.ones(num, dtype=torch.bool))


def monitor(objective="bce", sharp=0.0, loss=None, world=None):
    held, reference = (Validator(windows(seed, sharp), world or World(), SCALE, torch.device("cpu")) for seed in (1, 2))
    loss = loss or LossConfig(pixel="mse")
    return DriftMonitor(held, reference, ADVERSARIAL[objective], loss)


def measured(judge, discriminator, done=100, weight=0.1):
    return judge.measure(Enlarge().train(), discriminator, done=done, adversarial_weight=weight)


def test_a_blind_discriminator_is_at_chance():
    found = measured(monitor(sharp=6.0), Brightness(0.0))
    assert found["drift/normalized_loss"] == pytest.approx(1.0)
    assert found["drift/paired_accuracy"] == found["drift/auc"] == 0.5
    assert found["drift/dead_fraction"] == found["drift/overfit"] == 0.0
    assert found["drift/probe_auc"] == 1.0 and found["drift/probe_gap"] == 0.5, "the spectra give the fakes away"
    assert verdict_of(found) == "weak"


def test_equal_spectra_and_a_blind_discriminator_are_an_equilibrium():
    """Each truth is the enlarged input of the next window: the same images, so no probe can tell the sets apart."""
    judge = monitor()
    for seed, validator in enumerate((judge.held_out, judge.reference)):
        generator = torch.Generator().manual_seed(seed)
        low = torch.randint(0, 256, validator.batch.low_BTCHW.shape, generator=generator, dtype=torch.uint8)
        real = to_uint8(bicubic_upsample(from_uint8(low), SCALE)).roll(1, dims=0)
        validator.batch = replace(validator.batch, low_BTCHW=low, real_BTCYX=real)
    found = measured(judge, Brightness(0.0))
    assert found["drift/probe_auc"] == 0.5 and found["drift/probe_gap"] == 0.0
    assert found["drift/paper_loss"] == pytest.approx(1.0) and found["drift/ks"] == 0.0
    assert verdict_of(found) == "equilibrium"


def test_a_working_discriminator():
    """bce at margin m per kind: (softplus(-m) + softplus(-m)) / (2 ln 2), the offset centring both."""
    found = measured(monitor(), Brightness(2.0 / GAP, offset=-1.0))
    assert found["drift/normalized_loss"] == pytest.approx(math.log1p(math.exp(-1.0)) / math.log(2.0), rel=1e-4)
    assert found["drift/paired_accuracy"] == found["drift/auc"] == found["drift/ks"] == 1.0
    # Logits 1 and -1: 1 - sigmoid(1) + sigmoid(-1).
    assert found["drift/paper_loss"] == pytest.approx(2.0 / (1.0 + math.e), rel=1e-4)
    assert verdict_of(found) == "healthy"


def test_one_that_is_certain_is_too_strong():
    assert verdict_of(measured(monitor(), Brightness(20.0 / GAP, offset=-10.0))) == "too strong"


def test_saturated_scores_of_the_papers_objective_are_dead():
    found = measured(monitor("paper"), Brightness(0.5 / GAP, offset=16.0))
    assert found["drift/dead_fraction"] == 1.0 and found["drift/normalized_loss"] == pytest.approx(1.0, abs=1e-6)
    assert found["drift/paired_accuracy"] == 1.0, "it ranks rightly and is of no use all the same"
    assert found["drift/gradient_ratio"] < 1e-3 and verdict_of(found) == "dead"


def test_one_that_knows_its_training_clips_overfits():
    judge = monitor()
    found = measured(judge, Memory(judge.reference.batch.real_BTCYX))
    assert found["drift/paired_accuracy"] == 0.5 and found["drift/overfit"] == 0.5
    assert verdict_of(found) == "overfit"


@pytest.mark.parametrize("image", [1.0, 0.25])
def test_gradient_ratio_in_closed_form(image):
    """D is linear: per clip of N values the adversarial gradient is sigma(-f) gain / N, the image's 2 GAP / N."""
    loss = LossConfig(pixel="mse", image=image)
    found = measured(monitor(loss=loss), Brightness(3.0, offset=0.3), weight=0.1)
    expected = 0.1 * (3.0 / (1.0 + math.exp(0.3))) / (image * 2.0 * GAP)
    assert found["drift/gradient_ratio"] == pytest.approx(expected, rel=1e-4)


def test_measuring_changes_nothing():
    generator, discriminator = Enlarge().train(), nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Dropout(0.5)).train()

    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = discriminator

        def forward(self, clip_BTCYX, bicubic_BTCYX, full_precision=False):
            return self.net(clip_BTCYX)

    network = Conditional()
    network(torch.zeros(1, FRAMES, 3, SIDE * SCALE, SIDE * SCALE), None)
    before = torch.get_rng_state()
    first, second = (monitor().measure(generator, network, done=100, adversarial_weight=0.1) for _ in range(2))
    assert first == second and torch.equal(before, torch.get_rng_state())
    assert generator.training and network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_slope_comes_from_the_monitors_own_history():
    """A climb of 0.02 per 1000 steps up to the 1.0 of now; what was measured at this step before does not count."""
    judge = monitor()
    points = [(step, 1.0 - 0.02 * (10_000 - step) / 1000) for step in range(5000, 10_000, 500)]
    judge.history = [*points, (10_000, 77.0)]
    found = measured(judge, Brightness(0.0), done=10_000)
    assert found["drift/slope"] == pytest.approx(0.02, rel=1e-4)
    assert found["drift/slope_ci_low"] <= found["drift/slope"] <= found["drift/slope_ci_high"]
    assert found.keys() == {name for name in METRICS if name.startswith("drift/")}
    assert judge.history[:-1] == points and judge.history[-1] == (10_000, pytest.approx(1.0))
    assert "drift/slope" not in measured(monitor(), Brightness(0.0))


def test_the_interval_of_a_steady_loss_holds_zero():
    noise = torch.randn(30, generator=torch.Generator().manual_seed(0)).tolist()
    found = slope_scores([(500 * (number + 1), 0.5 + 0.02 * value) for number, value in enumerate(noise)])
    assert found["drift/slope_ci_low"] < 0.0 < found["drift/slope_ci_high"]


def test_the_slope_of_a_week_is_that_of_every_so_many_evaluations():
    """All pairs of ten thousand points are a gigabyte, and half a minute after each evaluation."""
    noise = 0.02 * np.random.default_rng(0).standard_normal(9001)
    history = [(500 * (number + 1), 0.5 + value) for number, value in enumerate(noise)]
    assert slope_scores(history) == slope_scores(history[::10])
    # Up to a thousand nothing is left out.
    assert slope_scores(history[:1000]) != slope_scores([*history[:600], *history[601:1000]])


def test_the_plot_is_drawn_from_the_lines(tmp_path):
    lines = [
        {"step": 500 * number, "drift/normalized_loss": 0.5, "drift/auc": 1.0, "drift/gradient_ratio": 0.1}
        | {"drift/verdict_code": float(VERDICTS.index("healthy")), "control/r1_gamma": 1.0}
        for number in range(1, 12)
    ]
    assert write_drift_plot([{"step": 0, "val/psnr_y": 30.0}, *lines], tmp_path / "drift.png")
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    assert not write_drift_plot([{"step": 0, "val/psnr_y": 30.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
