"""The controllers: each rule in closed form, what GanStep makes of a plan, and that the state survives JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from small_gan import clips, snapshot

from vsr_dist.config import Config, check_config
from vsr_dist.core.errors import BadCheckpointError, BadConfigError
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.losses.objective import LossConfig
from vsr_dist.losses.pixel import PIXEL
from vsr_dist.models import build_discriminator, build_generator
from vsr_dist.models.recurrent import RecurrentConfig
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig
from vsr_dist.ops.color import from_uint8
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.training.adversary import AdversaryConfig
from vsr_dist.training.control_config import ControlConfig, GammaControl, RevivalControl, StepsControl, WeightControl
from vsr_dist.training.controllers import ADVERSARIAL_NORM, IMAGE_NORM, LOSS, Controllers, StepPlan
from vsr_dist.training.gan_step import GanStep, Players

CHANCE = math.log(2.0)
ON = ControlConfig(
    gamma=GammaControl(target=0.72),
    weight=WeightControl(ratio=0.1),
    steps=StepsControl(rest_below=0.2, double_above=0.9),
    revival=RevivalControl(after=3),
)


pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


def controllers(config=ON, r1_gamma=1.0, r2_gamma=1.0, loss=None):
    adversary = AdversaryConfig(r1_gamma=r1_gamma, r2_gamma=r2_gamma)
    return Controllers(config, loss or LossConfig(perceptual=0.0), adversary, CHANCE)


def played(normalised, adversarial=1.0, image=1.0):
    values = {LOSS: normalised * CHANCE, ADVERSARIAL_NORM: adversarial, IMAGE_NORM: image}
    return [{name: torch.tensor(value) for name, value in values.items()}]


def test_all_are_off_by_default():
    off = controllers(ControlConfig())
    before = off.plan()
    off.learn(played(0.01))
    assert off.plan() == before == StepPlan(0.001, 1.0, 1.0)
    assert off.scalars() == {} and not off.must_check(500, 0)


@pytest.mark.parametrize(("normalised", "sign"), [(0.95, -1), (0.3, 1)])
def test_gamma_falls_at_chance_and_rises_below_the_target(normalised, sign):
    steered = controllers(ControlConfig(gamma=GammaControl(target=0.72)), r1_gamma=2.0, r2_gamma=0.5)
    for _ in range(10):
        steered.learn(played(normalised))
    assert steered.plan().r1_gamma == pytest.approx(2.0 * math.exp(sign * 0.02 * 10))
    assert steered.plan().r2_gamma == pytest.approx(0.25 * steered.plan().r1_gamma), "their ratio stays"
    for _ in range(1000):
        steered.learn(played(normalised))
    assert steered.state.gamma == (30.0 if sign > 0 else 1e-3)
    assert steered.scalars()["control/r1_gamma"] == steered.plan().r1_gamma


def test_gamma_follows_the_moving_average():
    """EMA 0.95 from 0.95 falls below 0.72 after n steps at 0.2: 0.2 + 0.75 * 0.95^n < 0.72 for n = 8."""
    steered = controllers(ControlConfig(gamma=GammaControl(target=0.72)))
    steered.learn(played(0.95))
    gammas = []
    for _ in range(9):
        steered.learn(played(0.2))
        gammas.append(steered.state.gamma)
    assert gammas[6] < gammas[5] and gammas[7] > gammas[6] and gammas[8] > gammas[7]


def test_gamma_brings_a_loss_to_its_target():
    """A discriminator whose loss grows with gamma, as that of a linear one with margin 1 / (1 + gamma)."""
    steered = controllers(ControlConfig(gamma=GammaControl(target=0.72)), r1_gamma=20.0, r2_gamma=20.0)
    for _ in range(600):
        margin = 2.0 / (1.0 + steered.state.gamma)
        steered.learn(played(math.log1p(math.exp(-margin)) / CHANCE))
    assert math.log1p(math.exp(-2.0 / (1.0 + steered.state.gamma))) / CHANCE == pytest.approx(0.72, abs=0.05)


def test_adversarial_weight_gives_the_wished_ratio():
    rule = ControlConfig(weight=WeightControl(ratio=0.1, decay=0.5))
    steered = controllers(rule, loss=LossConfig(image=2.0, perceptual=0.0))
    steered.learn(played(0.5, adversarial=0.04, image=0.3))
    assert steered.plan().adversarial_weight == pytest.approx(0.1 * 2.0 * 0.3 / 0.04), "the first one is taken whole"
    steered.learn(played(0.5, adversarial=0.08, image=0.3))
    assert steered.plan().adversarial_weight == pytest.approx((1.5 + 0.75) / 2)
    steered.learn(played(0.5, adversarial=0.0, image=0.3))
    assert steered.plan().adversarial_weight == pytest.approx((1.5 + 0.75) / 2), "no gradient says nothing"


@pytest.mark.parametrize(("adversarial", "clipped"), [(1e-9, 5.0), (1e9, 0.5)])
def test_adversarial_weight_is_clamped(adversarial, clipped):
    steered = controllers(ControlConfig(weight=WeightControl(ratio=0.1, lowest=0.5, highest=5.0)))
    steered.learn(played(0.5, adversarial=adversarial))
    assert steered.plan().adversarial_weight == clipped


@pytest.mark.parametrize(("normalised", "steps"), [(0.1, 0), (0.5, 1), (0.95, 2)])
def test_discriminator_steps(normalised, steps):
    steered = controllers(ControlConfig(steps=StepsControl(rest_below=0.2, double_above=0.9)))
    steered.learn(played(normalised))
    assert steered.plan().discriminator_steps == steps
    for _ in range(200):
        steered.learn(played(0.5))
    assert steered.plan().discriminator_steps == 1, "it comes back once the loss does"


def test_a_second_step_waits_until_the_penalties_are_at_their_floor():
    steered = controllers(replace(ON, gamma=GammaControl(target=0.72, lowest=0.5)))
    steps = []
    for _ in range(40):
        steered.learn(played(0.95))
        steps.append((steered.state.gamma > 0.5, steered.plan().discriminator_steps))
    assert steps[0] == (True, 1) and steps[-1] == (False, 2)
    assert all(number == (1 if above else 2) for above, number in steps)


def test_revival_after_checks_in_succession_and_not_for_ever():
    steered = controllers(replace(ON, revival=RevivalControl(after=3, every_steps=100, at_most=2)))
    assert [steered.must_check(done, 150) for done in (100, 150, 200, 250)] == [False, False, True, False]
    steered.learn(played(0.95))
    assert [steered.check(200, dead) for dead in (0.6, 0.9, 0.4, 0.6, 0.9)] == [False] * 5
    assert steered.check(700, 1.0) and steered.state.revivals == 1 and steered.state.gamma_loss is None
    assert steered.plan() == controllers().plan(), "what was learnt of the dead one is forgotten"
    assert [steered.factor_at(step, 150, 10) for step in (700, 704, 709, 800)] == [0.1, 0.5, 1.0, 1.0], "ramp again"
    assert [steered.check(done, 1.0) for done in (800, 900, 1000)] == [False, False, True]
    assert not steered.must_check(1100, 150)


def test_state_survives_json_bit_for_bit():
    first = controllers()
    for number in range(7):
        first.learn(played(0.3 + 0.1 * number, adversarial=0.1 / (number + 3)))
    second = controllers()
    second.restore(json.loads(json.dumps(first.saved())))
    for steered in (first, second):
        steered.learn(played(1 / 3, adversarial=0.7))
    assert first.saved() == second.saved() and first.plan() == second.plan()
    second.restore(None)
    assert second.saved() == controllers().saved()
    with pytest.raises(BadCheckpointError, match="another version"):
        second.restore({"gamma": 1.0})


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: GammaControl(target=1.0), "target 1.0"),
        (lambda: GammaControl(after=-1), "after -1"),
        (lambda: GammaControl(lowest=2.0, highest=1.0), "highest 1.0"),
        (lambda: WeightControl(ratio=-1.0), "ratio -1.0"),
        (lambda: StepsControl(rest_below=0.5, double_above=0.4), "double_above 0.4"),
        (lambda: RevivalControl(every_steps=0), "every_steps 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, named):
    with pytest.raises(BadConfigError, match=named):
        make()


def make_step(accumulation=1, loss=None):
    torch.manual_seed(0)
    plugin = GradientAccumulationPlugin(num_steps=accumulation)
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
    generator = build_generator(RecurrentConfig(channels=8, num_blocks=2), 4)
    torch.nn.init.normal_(generator.tail[0].weight, std=0.02)
    network = build_discriminator(SpatiotemporalConfig(filters=8, levels=2), 4)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05) for net in (generator, network)]
    players = Players(*accelerator.prepare(generator, network, *optimizers))
    adversary = AdversaryConfig(r1_gamma=0.1, r2_gamma=0.1)
    loss = loss or LossConfig(perceptual=0.0, adversarial=0.02)
    options = {"scale": 4, "max_grad_norm": math.inf, "perceptual_frames": 0}
    return GanStep(accelerator, players, loss, ADVERSARIAL["rpgan"], adversary, **options), generator, network


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_measured_gradients_are_those_of_autograd(accumulation):
    step, generator, network = make_step(accumulation)
    low, real = (from_uint8(clip) for clip in clips())
    fake = generator(low).detach().requires_grad_()
    bicubic = bicubic_upsample(low, 4)
    with torch.no_grad():
        real_logits = network(real, bicubic)
    adversarial = step.objective.generator_loss(real_logits, network(fake, bicubic))
    expected = [torch.autograd.grad(term, fake)[0].norm() for term in (adversarial, PIXEL["mse"](fake, real))]
    step.begin(replace(step.plan, adversarial_weight=0.3, measure_gradients=True))
    scalars = step.micro_step(*clips(), adversarial_factor=0.5)
    torch.testing.assert_close([scalars[ADVERSARIAL_NORM], scalars[IMAGE_NORM]], expected, rtol=1e-4, atol=0)


def test_the_plans_weight_and_penalties_are_the_ones_in_force():
    step, _, _ = make_step()
    plain = step.micro_step(*clips(), adversarial_factor=1.0)
    AcceleratorState._reset_state()
    step, _, _ = make_step()
    step.begin(replace(step.plan, adversarial_weight=0.05, r1_gamma=0.2, r2_gamma=0.2))
    planned = step.micro_step(*clips(), adversarial_factor=1.0)
    torch.testing.assert_close(planned["loss_d/penalty"], 2.0 * plain["loss_d/penalty"], rtol=0.05, atol=0)
    expected = plain["loss_g/total"] + 0.03 * plain["loss_g/adversarial"]
    torch.testing.assert_close(planned["loss_g/total"], expected)


def test_a_resting_discriminator_scores_truly_and_stays():
    step, _, network = make_step()
    before = snapshot(network)
    step.begin(replace(step.plan, discriminator_steps=0))
    first, second = (step.micro_step(*clips(), adversarial_factor=1.0) for _ in range(2))
    assert equal(before, snapshot(network)) and all(parameter.grad is None for parameter in network.parameters())
    assert float(first["loss_d/adversarial"]) > 0 and {"loss_d/total", "loss_d/penalty"}.isdisjoint(second)
    step.begin(replace(step.plan, discriminator_steps=1))
    step.micro_step(*clips(), adversarial_factor=1.0)
    assert not equal(before, snapshot(network))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_steps_are_two_steps_on_the_same_batches(accumulation):
    """The generator stands still (no term moves it), so that its clips stay and two single steps compare."""
    step, _, network = make_step(accumulation)
    step.begin(replace(step.plan, discriminator_steps=2, adversarial_weight=0.0))
    step.players.generator_optimizer.param_groups[0]["lr"] = 0.0
    for number in range(accumulation):
        step.micro_step(*clips(number), adversarial_factor=1.0)
    twice = snapshot(network)
    AcceleratorState._reset_state()
    step, _, network = make_step(accumulation)
    step.players.generator_optimizer.param_groups[0]["lr"] = 0.0
    step.begin(replace(step.plan, adversarial_weight=0.0))
    for _ in range(2):
        for number in range(accumulation):
            step.micro_step(*clips(number), adversarial_factor=1.0)
    assert equal(twice, snapshot(network))


@pytest.mark.parametrize(
    ("control", "change", "named"),
    [
        (ControlConfig(gamma=GammaControl(target=0.7)), {}, "control.gamma steers adversary.r1_gamma"),
        (
            ControlConfig(weight=WeightControl(ratio=0.1)),
            {"loss": LossConfig(image=0.0)},
            "control.weight measures the adversarial gradient",
        ),
        (
            ControlConfig(revival=RevivalControl(after=3)),
            {"loss": LossConfig(adversarial=0.0)},
            "loss.adversarial is 0",
        ),
    ],
)
def test_a_controller_without_what_it_steers_is_refused(control, change, named):
    with pytest.raises(BadConfigError, match=named):
        check_config(Config(control=control, **change))
