"""The controllers: each rule in closed form, what GanStep makes of a plan, and that the state survives JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch
from accelerate.state import AcceleratorState
from small_gan import batch_of, clips, make_step, plan_of, play, scalars_of

from vsr_dist.config import Config, check_config
from vsr_dist.core.errors import BadCheckpointError, BadConfigError
from vsr_dist.losses.objective import LossConfig
from vsr_dist.losses.pixel import PIXEL, TV
from vsr_dist.losses.temporal import temporal_difference
from vsr_dist.ops.color import from_uint8
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.training.config import AdversarialConfig, GammaControl, WeightControl
from vsr_dist.training.control import Controllers, MicroStep, StepPlan

CHANCE = math.log(2.0)
CPU = torch.device("cpu")
ON = {"gamma_control": GammaControl(target=0.72), "weight_control": WeightControl(ratio=0.1)}

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


def controllers(gammas=(1.0, 1.0), loss=None, **adversarial):
    config = AdversarialConfig(r1_gamma=gammas[0], r2_gamma=gammas[1], **adversarial)
    return Controllers(config, loss or LossConfig(perceptual=0.0), CPU)


def played(normalised, **norms):
    """The results of one step: the discriminator's loss over chance, and gradient norms of terms."""
    norms = {"adversarial": 1.0, "image": 1.0} | norms
    scalars = {"loss_d/adversarial": torch.tensor(normalised * CHANCE, dtype=torch.float64)}
    return [MicroStep(scalars, {name: torch.tensor(norm, dtype=torch.float64) for name, norm in norms.items()})]


def gammas(steered):
    plan = steered.plan(1.0)
    return float(plan.r1_gamma), float(plan.r2_gamma)


def adversarial_weight(steered):
    return float(steered.plan(1.0).weights["adversarial"])


def test_all_are_off_by_default():
    off = controllers()
    before = off.plan(0.5)
    off.learn(played(0.01))
    weights = {**LossConfig(perceptual=0.0).weights(), "adversarial": 0.0005}
    assert off.plan(0.5) == before == StepPlan(False, weights, 1.0, 1.0)
    assert off.scalars() == {}


@pytest.mark.parametrize(("normalised", "sign"), [(0.95, -1), (0.3, 1)])
def test_gamma_falls_at_chance_and_rises_below_the_target(normalised, sign):
    steered = controllers((2.0, 0.5), gamma_control=GammaControl(target=0.72))
    for _ in range(10):
        steered.learn(played(normalised))
    assert gammas(steered)[0] == pytest.approx(2.0 * math.exp(sign * 0.02 * 10))
    assert gammas(steered)[1] == pytest.approx(0.25 * gammas(steered)[0]), "their ratio stays"
    for _ in range(1000):
        steered.learn(played(normalised))
    assert steered.saved()["gamma"] == (30.0 if sign > 0 else 1e-3)
    assert steered.scalars()["control/r1_gamma"] == pytest.approx(gammas(steered)[0])


def test_gamma_follows_the_moving_average():
    """EMA 0.95 from 0.95 falls below 0.72 after n steps at 0.2: 0.2 + 0.75 * 0.95^n < 0.72 for n = 8."""
    steered = controllers(gamma_control=GammaControl(target=0.72))
    steered.learn(played(0.95))
    found = []
    for _ in range(9):
        steered.learn(played(0.2))
        found.append(gammas(steered)[0])
    assert found[6] < found[5] and found[7] > found[6] and found[8] > found[7]


def test_gamma_brings_a_loss_to_its_target():
    """A discriminator whose loss grows with gamma, as that of a linear one with margin 1 / (1 + gamma)."""
    steered = controllers((20.0, 20.0), gamma_control=GammaControl(target=0.72))

    def loss():
        return math.log1p(math.exp(-2.0 / (1.0 + steered.saved()["gamma"]))) / CHANCE

    for _ in range(600):
        steered.learn(played(loss()))
    assert loss() == pytest.approx(0.72, abs=0.05)


@pytest.mark.parametrize(
    ("normalised", "share"), [(1.0, -1.0), (1.3, -1.0), (0.96, -0.5), (0.92, 0.0), (0.9, 0.25), (0.84, 1.0), (0.1, 1.0)]
)
def test_a_proportional_step_is_the_error_over_the_distance_of_the_target_from_chance(normalised, share):
    rule = GammaControl(target=0.92, rule="proportional", rate=0.1, decay=0.0)
    steered = controllers(gamma_control=rule)
    steered.learn(played(normalised))
    assert gammas(steered)[0] == pytest.approx(math.exp(0.1 * share), abs=1e-6)


def test_gamma_waits_for_a_fresh_discriminator():
    steered = controllers(gamma_control=GammaControl(target=0.72, after=5))
    found = []
    for _ in range(7):
        steered.learn(played(0.99))
        found.append(gammas(steered)[0])
    assert found == pytest.approx([1.0] * 5 + [math.exp(-0.02), math.exp(-0.04)])


def swing_behind_a_slow_discriminator(rule):
    """Ratio of the largest to the smallest gamma once settled, where the loss follows 1 - 0.2 / gamma after a lag."""
    steered = controllers(gamma_control=GammaControl(target=0.92, rule=rule))
    followed, found = 0.0, []
    for _ in range(3000):
        followed += (math.log(steered.saved()["gamma"]) - followed) / 20.0
        steered.learn(played(max(1.0 - 0.2 * math.exp(-followed), 0.0)))
        found.append(steered.saved()["gamma"])
    return max(found[-1000:]) / min(found[-1000:]), found[-1]


def test_a_whole_step_swings_and_a_proportional_one_settles():
    swing, _ = swing_behind_a_slow_discriminator("sign")
    assert swing > 1.5
    swing, gamma = swing_behind_a_slow_discriminator("proportional")
    assert swing < 1.01 and gamma == pytest.approx(0.2 / 0.08, rel=0.01)


def test_adversarial_weight_gives_the_target_ratio():
    loss = LossConfig(image=2.0, perceptual=0.0)
    steered = controllers(loss=loss, weight_control=WeightControl(ratio=0.1, decay=0.5))
    assert adversarial_weight(steered) == pytest.approx(0.001)
    steered.learn(played(0.5, adversarial=0.04, image=0.3))
    assert adversarial_weight(steered) == pytest.approx(0.1 * 2.0 * 0.3 / 0.04), "the first one is taken whole"
    steered.learn(played(0.5, adversarial=0.08, image=0.3))
    assert adversarial_weight(steered) == pytest.approx((1.5 + 0.75) / 2)
    steered.learn(played(0.5, adversarial=0.0, image=0.3))
    assert adversarial_weight(steered) == pytest.approx((1.5 + 0.75) / 2), "no gradient says nothing"


@pytest.mark.parametrize(("adversarial", "clipped"), [(1e-9, 5.0), (1e9, 0.5)])
def test_adversarial_weight_is_clamped(adversarial, clipped):
    steered = controllers(weight_control=WeightControl(ratio=0.1, lowest=0.5, highest=5.0))
    steered.learn(played(0.5, adversarial=adversarial))
    assert adversarial_weight(steered) == clipped


def shared(**changes):
    loss = LossConfig(
        **{"balance": "shares", "balance_steps": 2, "image": 2.0, "perceptual": 0.3, "tv": 0.0, "temporal": 0.5}
    )
    return controllers(loss=loss, weight=0.25, **changes)


def test_a_share_becomes_the_weight_that_gives_it_and_then_stays():
    """share * image weight * mean image norm / mean norm of the term, over its first two steps."""
    balanced = shared()
    assert balanced.plan(0.0).measure and balanced.plan(1.0).measure
    for image in (0.4, 0.6):
        balanced.learn(
            [MicroStep({}, {name: torch.tensor(v) for name, v in {"image": image, "temporal": 5.0}.items()})]
        )
    plan = balanced.plan(0.0)
    assert not plan.measure, "in the warm-up the temporal term alone acts"
    assert float(plan.weights["temporal"]) == pytest.approx(0.5 * 2.0 * 0.5 / 5.0)
    assert balanced.plan(1.0).measure, "the perceptual and the adversarial term have not acted yet"
    for _ in range(3):
        balanced.learn(played(0.5, image=1.0, temporal=1.0, perceptual=0.03, adversarial=8.0))
    plan = balanced.plan(0.5)
    assert not plan.measure
    assert float(plan.weights["temporal"]) == pytest.approx(0.1), "fixed"
    assert float(plan.weights["perceptual"]) == pytest.approx(0.3 * 2.0 / 0.03)
    assert float(plan.weights["adversarial"]) == pytest.approx(0.5 * 0.25 * 2.0 / 8.0), "with the ramp"
    assert plan.weights["image"] == 2.0
    assert balanced.scalars()["control/perceptual_weight"] == pytest.approx(20.0)


def test_a_controlled_adversarial_weight_is_no_share():
    balanced = shared(weight_control=WeightControl(ratio=0.1))
    balanced.learn(played(0.5, image=1.0, temporal=1.0, perceptual=1.0, adversarial=8.0))
    assert adversarial_weight(balanced) == pytest.approx(0.1 * 2.0 / 8.0)
    assert "adversarial" not in balanced.saved()["shares"]


def test_shares_are_reached_in_a_training_step():
    """What the step measures after the weights are fixed is what was asked for, on the same clips."""
    loss = LossConfig(balance="shares", balance_steps=1, perceptual=0.0, tv=0.05, tv_kind="isotropic", temporal=0.2)
    step = make_step(loss, AdversarialConfig(weight=0.1), learning_rate=0.0)
    balancing = Controllers(step.adversarial, step.loss, CPU)
    balancing.learn(play(step, plan=balancing.plan(1.0)))
    (result,) = play(step, plan=balancing.plan(1.0, measure=True), number=1)
    found = {name: float(value) for name, value in result.scalars.items() if name.startswith("share_g/")}
    expected = {"share_g/adversarial": 0.1, "share_g/tv": 0.05, "share_g/temporal": 0.2}
    assert found == pytest.approx(expected, rel=1e-3)


def test_state_survives_json_bit_for_bit():
    loss = LossConfig(balance="shares", balance_steps=9, perceptual=0.3, tv=0.0)
    first = controllers(loss=loss, **ON)
    fresh = first.saved()
    for number in range(7):
        first.learn(played(0.3 + 0.1 * number, adversarial=0.1 / (number + 3), perceptual=0.7, temporal=1 / 3))
    second = controllers(loss=loss, **ON)
    second.restore(json.loads(json.dumps(first.saved(), allow_nan=False)))
    for steered in (first, second):
        steered.learn(played(1 / 3, adversarial=0.7, perceptual=0.1, temporal=0.9))
    assert first.saved() == second.saved() != fresh
    second.restore(None)
    assert second.saved() == fresh
    with pytest.raises(BadCheckpointError, match="another version"):
        second.restore({"gamma": 1.0})
    with pytest.raises(BadCheckpointError, match="another version"):
        controllers(**ON).restore(first.saved())


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: GammaControl(target=1.0), "target 1.0"),
        (lambda: GammaControl(after=-1), "after -1"),
        (lambda: GammaControl(lowest=2.0, highest=1.0), "highest 1.0"),
        (lambda: WeightControl(ratio=-1.0), "ratio -1.0"),
        (lambda: AdversarialConfig(weight=-1.0), "weight -1.0"),
        (lambda: AdversarialConfig(r1_gamma=math.inf), "r1_gamma inf"),
        (lambda: AdversarialConfig(sigma=0.0), "sigma 0.0"),
        (lambda: LossConfig(balance_steps=0), "balance_steps is 0"),
        (lambda: LossConfig(balance="shares", image=0.0), "set loss.image above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, named):
    with pytest.raises(BadConfigError, match=named):
        make()


@pytest.mark.parametrize("parts", [1, 2])
def test_measured_gradients_are_those_of_autograd(parts):
    adversarial = AdversarialConfig(weight=0.3, r1_gamma=0.1, r2_gamma=0.1)
    step = make_step(adversarial=adversarial, learning_rate=0.05, max_grad_norm=math.inf, parts=parts)
    low, real = (from_uint8(clip) for clip in clips())
    fake = step.generator.network(low).detach().requires_grad_()
    bicubic = bicubic_upsample(low, 4)
    network = step.discriminator.network
    with torch.no_grad():
        real_logits = network(real, bicubic)
    terms = {
        "image": PIXEL["mse"](fake, real),
        "adversarial": step.objective.generator_loss(real_logits, network(fake, bicubic)),
        "tv": TV["squared_mean"](fake),
        "temporal": temporal_difference(fake, real),
    }
    expected = {name: torch.autograd.grad(term, fake)[0].norm() for name, term in terms.items()}
    batches = [batch_of(*clips()) for _ in range(parts)]
    found = play(step, *batches, plan=plan_of(step, 0.5, measure=True))[0]
    torch.testing.assert_close(found.gradient_norms, expected, rtol=1e-4, atol=0)
    weights = {**step.loss.weights(), "adversarial": 0.15}
    for name in ("adversarial", "tv", "temporal"):
        share = weights[name] * expected[name] / expected["image"]
        torch.testing.assert_close(found.scalars[f"share_g/{name}"], share, rtol=1e-4, atol=0)


def test_the_plans_weight_and_penalties_are_the_ones_in_force():
    adversarial = AdversarialConfig(weight=0.02, r1_gamma=0.1, r2_gamma=0.1)
    step = make_step(adversarial=adversarial, learning_rate=0.05)
    plain = scalars_of(step)
    AcceleratorState._reset_state()
    step = make_step(adversarial=adversarial, learning_rate=0.05)
    weights = {**step.loss.weights(), "adversarial": torch.tensor(0.05)}
    plan = StepPlan(False, weights, torch.tensor(0.2), torch.tensor(0.2))
    planned = play(step, plan=plan)[0].scalars
    torch.testing.assert_close(planned["loss_d/penalty"], 2.0 * plain["loss_d/penalty"], rtol=0.05, atol=0)
    expected = plain["loss_g/total"] + 0.03 * plain["loss_g/adversarial"]
    torch.testing.assert_close(planned["loss_g/total"], expected)
    assert planned["loss_g/total"].dtype == torch.float32


@pytest.mark.parametrize(
    ("adversarial", "loss", "named"),
    [
        (
            AdversarialConfig(gamma_control=GammaControl(target=0.7)),
            {},
            "gamma_control controls adversarial.r1_gamma",
        ),
        (
            AdversarialConfig(weight_control=WeightControl(ratio=0.1)),
            {"image": 0.0},
            "adversarial.weight_control measures gradients",
        ),
        (AdversarialConfig(weight=0.0, r1_gamma=1.0, gamma_control=GammaControl(target=0.7)), {}, "weight is 0, but"),
        (AdversarialConfig(weight=0.0), dict.fromkeys(("image", "perceptual", "tv", "temporal"), 0.0), "all weights"),
    ],
)
def test_a_controller_without_what_it_controls_is_refused(adversarial, loss, named):
    with pytest.raises(BadConfigError, match=named):
        check_config(Config(adversarial=adversarial, loss=LossConfig(**loss)))
