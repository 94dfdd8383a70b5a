"""The rules by which gamma is steered: the proportional step, the wait for a fresh discriminator, swings and rest."""

from __future__ import annotations

import math

import pytest
import torch

from vsr_dist.losses.objective import LossConfig
from vsr_dist.training.adversary import AdversaryConfig
from vsr_dist.training.control_config import ControlConfig, GammaControl, RevivalControl
from vsr_dist.training.controllers import LOSS, Controllers

CHANCE = math.log(2.0)


def controllers(config):
    adversary = AdversaryConfig(r1_gamma=1.0, r2_gamma=1.0)
    return Controllers(config, LossConfig(perceptual=0.0), adversary, CHANCE)


def played(normalised):
    return [{LOSS: torch.tensor(normalised * CHANCE)}]


@pytest.mark.parametrize(
    ("normalised", "share"), [(1.0, -1.0), (1.3, -1.0), (0.96, -0.5), (0.92, 0.0), (0.9, 0.25), (0.84, 1.0), (0.1, 1.0)]
)
def test_a_proportional_step_is_the_error_over_the_wished_distance_from_chance(normalised, share):
    rule = GammaControl(target=0.92, rule="proportional", rate=0.1, decay=0.0)
    steered = controllers(ControlConfig(gamma=rule))
    steered.learn(played(normalised))
    assert steered.plan().r1_gamma == pytest.approx(math.exp(0.1 * share), abs=1e-6)


def test_gamma_waits_for_a_fresh_discriminator_and_for_a_revived_one():
    rule = ControlConfig(gamma=GammaControl(target=0.72, after=5), revival=RevivalControl(after=1))
    steered = controllers(rule)
    for _ in range(2):
        gammas = []
        for _ in range(7):
            steered.learn(played(0.99))
            gammas.append(steered.plan().r1_gamma)
        assert gammas == pytest.approx([1.0] * 5 + [math.exp(-0.02), math.exp(-0.04)])
        assert steered.check(500, 1.0), "a fresh one again"


def swing_behind_a_slow_discriminator(rule):
    """Ratio of the largest to the smallest gamma once settled, where the loss follows 1 - 0.2 / gamma after a lag."""
    steered = controllers(ControlConfig(gamma=GammaControl(target=0.92, rule=rule)))
    followed, gammas = 0.0, []
    for _ in range(3000):
        followed += (math.log(steered.state.gamma) - followed) / 20.0
        steered.learn(played(max(1.0 - 0.2 * math.exp(-followed), 0.0)))
        gammas.append(steered.state.gamma)
    return max(gammas[-1000:]) / min(gammas[-1000:]), gammas[-1]


def test_a_whole_step_swings_and_a_proportional_one_settles():
    swing, _ = swing_behind_a_slow_discriminator("sign")
    assert swing > 1.5
    swing, gamma = swing_behind_a_slow_discriminator("proportional")
    assert swing < 1.01 and gamma == pytest.approx(0.2 / 0.08, rel=0.01)
