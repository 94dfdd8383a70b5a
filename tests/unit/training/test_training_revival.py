"""A dead discriminator starts anew: at the right checks, with the same fresh weights wherever and whenever."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from vsr_dist.build import build_networks, fresh_discriminator
from vsr_dist.config import Config
from vsr_dist.losses.objective import LossConfig
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig
from vsr_dist.training.adversary import AdversaryConfig
from vsr_dist.training.checkpoint import Restorable
from vsr_dist.training.control_config import ControlConfig, RevivalControl
from vsr_dist.training.controllers import Controllers
from vsr_dist.training.revival import Revival

CONFIG = Config(seed=5, discriminator=SpatiotemporalConfig(filters=4, levels=1))


class Doctor:
    """Stands in for the monitor: says what it is told."""

    def __init__(self, *dead_fractions):
        self.dead_fractions = list(dead_fractions)

    def dead_fraction(self, generator, discriminator):
        return self.dead_fractions.pop(0)


def make(*dead_fractions, after=2):
    discriminator = fresh_discriminator(CONFIG, 0)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, fused=True)
    for parameter in discriminator.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    config = ControlConfig(revival=RevivalControl(after=after, every_steps=10, at_most=2))
    controllers = Controllers(config, LossConfig(), AdversaryConfig(), 1.0)
    live = Restorable({"generator": nn.Identity(), "discriminator": discriminator}, {"discriminator": optimizer})
    return Revival(controllers, Doctor(*dead_fractions), live, partial(fresh_discriminator, CONFIG))


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_it_is_replaced_with_its_optimiser_after_dead_checks_in_succession():
    revival = make(0.9, 0.1, 0.9, 0.9)
    network, optimizer = revival.live.modules["discriminator"], revival.live.optimizers["discriminator"]
    before = weights(network)
    assert [revival.after_step(done, 0) for done in (10, 15, 20, 30)] == [False] * 4
    assert torch.equal(weights(network), before) and len(optimizer.state) > 0
    assert revival.after_step(40, 0)
    assert torch.equal(weights(network), weights(fresh_discriminator(CONFIG, 1))) and not optimizer.state
    optimizer.step()
    assert not torch.equal(weights(network), weights(fresh_discriminator(CONFIG, 1))), "the new one learns"


def test_every_revival_has_weights_of_its_own_and_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second, again = (weights(fresh_discriminator(CONFIG, number)) for number in (1, 2, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert not torch.equal(first, weights(build_networks(CONFIG)[1]))


def test_it_is_not_done_more_often_than_allowed():
    revival = make(*[1.0] * 8, after=1)
    assert [revival.after_step(done, 0) for done in (10, 20, 30, 40)] == [True, True, False, False]
    assert len(revival.monitor.dead_fractions) == 6, "nobody looks any more"
