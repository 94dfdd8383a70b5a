"""Learning rates and the adversarial weight against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vsr_dist.core.errors import BadConfigError
from vsr_dist.training.config import (
    OPTIMIZERS,
    SCHEDULES,
    OptimizerConfig,
    adversarial_factor_at,
    learning_rate_at,
    make_optimizer,
)


def test_the_learning_rate_falls_along_half_a_cosine():
    config = OptimizerConfig(learning_rate=1e-3, final_ratio=0.2)
    # From 1e-3 to 2e-4: half-way it is 6e-4; a third of the way, cos(60 degrees) = 1/2 gives 8e-4.
    values = [learning_rate_at(config, step, 7) for step in range(7)]
    assert values[0] == pytest.approx(1e-3)
    assert values[2] == pytest.approx(8e-4)
    assert values[3] == pytest.approx(6e-4)
    assert values[4] == pytest.approx(4e-4)
    assert values[6] == pytest.approx(2e-4)
    assert values == sorted(values, reverse=True)


def test_it_equals_torch():
    config = OptimizerConfig(learning_rate=3e-4, final_ratio=0.05)
    num_steps = 20
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps - 1, eta_min=3e-4 * 0.05)
    for step in range(num_steps):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(learning_rate_at(config, step, num_steps), rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_ratio_one_is_constant_and_a_run_of_one_step_starts_at_the_top():
    constant = OptimizerConfig(learning_rate=5e-4)
    assert {learning_rate_at(constant, step, 50) for step in range(50)} == {5e-4}
    assert learning_rate_at(OptimizerConfig(learning_rate=5e-4, final_ratio=0.1), 0, 1) == 5e-4
    assert learning_rate_at(OptimizerConfig(learning_rate=5e-4, final_ratio=0.0), 9, 10) == 0.0


def test_a_schedule_that_starts_with_the_adversary_is_the_same_as_one_of_the_adversarial_part_alone():
    alone = OptimizerConfig(learning_rate=2e-4, final_ratio=0.1)
    after = OptimizerConfig(learning_rate=2e-4, final_ratio=0.1, schedule_start="adversarial")
    assert {learning_rate_at(after, step, 50, warmup_steps=30) for step in range(31)} == {2e-4}
    for step in range(20):
        assert learning_rate_at(after, 30 + step, 50, warmup_steps=30) == learning_rate_at(alone, step, 20)
    # From the run's start the rate has already fallen where the adversarial part begins.
    assert learning_rate_at(alone, 30, 50, warmup_steps=30) < 1e-4


@pytest.mark.parametrize(
    ("warmup_steps", "ramp_steps", "expected"),
    [
        (3, 4, [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]),
        (0, 4, [0.25, 0.5, 0.75, 1, 1]),
        (2, 1, [0, 0, 1, 1]),
        (2, 0, [0, 0, 1, 1]),
        (0, 0, [1, 1]),
    ],
)
def test_the_adversarial_weight_rests_then_rises_in_a_line(warmup_steps, ramp_steps, expected):
    assert [adversarial_factor_at(step, warmup_steps, ramp_steps) for step in range(len(expected))] == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"learning_rate": math.inf}, "both finite"),
        ({"learning_rate": math.nan}, "both finite"),
        ({"final_ratio": -0.1}, "final_ratio of at least 0"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)"),
        ({"betas": (-0.1, 0.9)}, r"betas are \(-0.1, 0.9\)"),
    ],
)
def test_what_adam_cannot_run_with_is_refused(fields, expected):
    with pytest.raises(BadConfigError, match=expected):
        OptimizerConfig(**fields)


@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.0, 0.99), (0.9, 0.999)])
def test_what_is_accepted_adam_runs_with(betas):
    config = OptimizerConfig(learning_rate=1e-12, betas=betas)
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate, betas=config.betas)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimiser_of_the_table_moves_downhill_fused_and_decays_weights(kind):
    found = {}
    for decay in (0.0, 0.5):
        torch.manual_seed(0)
        network = torch.nn.Linear(4, 1)
        optimizer = make_optimizer(network, OptimizerConfig(kind=kind, learning_rate=0.05, weight_decay=decay))
        assert optimizer.defaults["fused"] and optimizer.defaults["betas"] == (0.9, 0.99)
        losses = []
        for _ in range(20):
            loss = network(torch.eye(4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        assert losses[-1] < losses[0] / 2
        found[decay] = losses[-1]
    assert found[0.5] != found[0.0]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_of_the_table_falls_from_the_full_rate_to_the_final_one(kind):
    config = OptimizerConfig(learning_rate=1.0, final_ratio=0.2, schedule=kind)
    rates = [learning_rate_at(config, step, 11) for step in range(11)]
    assert rates[0] == 1.0 and rates[5] == pytest.approx(0.6) and rates[-1] == pytest.approx(0.2)
    assert rates == sorted(rates, reverse=True)
