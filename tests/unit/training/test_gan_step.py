"""The GAN step: where gradients go, what stops it, and that its numbers stay what they were."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small_gan import clips, snapshot

from vsr_dist.core.errors import NonFiniteError
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.losses.objective import LossConfig
from vsr_dist.models import build_discriminator, build_generator
from vsr_dist.models.recurrent import RecurrentConfig
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig
from vsr_dist.models.srgan_discriminator import SrganDiscriminatorConfig
from vsr_dist.models.unet_discriminator import UnetConfig
from vsr_dist.training.adversary import AdversaryConfig
from vsr_dist.training.gan_step import GanStep, Players, spread_frames

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


def make_step(
    objective="rpgan", loss=None, adversary=None, discriminator=None, learning_rate=1e-3, max_grad_norm=1.0, parts=1
):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
    generator = build_generator(RecurrentConfig(channels=8, num_blocks=2), 4)
    # The residual starts at zero, where the trunk gets no gradient; the tests look at the trunk as well.
    torch.nn.init.normal_(generator.tail[0].weight, std=0.02)
    network = build_discriminator(discriminator or SpatiotemporalConfig(filters=8, levels=2), 4)
    optimizers = [torch.optim.SGD(net.parameters(), lr=learning_rate) for net in (generator, network)]
    players = Players(*accelerator.prepare(generator, network, *optimizers))
    loss = loss or LossConfig(perceptual=0.0)
    step = GanStep(
        accelerator,
        players,
        loss,
        ADVERSARIAL[objective],
        adversary or AdversaryConfig(),
        scale=4,
        max_grad_norm=max_grad_norm,
        perceptual_frames=0,
    )
    return step, generator, network


@pytest.mark.parametrize("objective", list(ADVERSARIAL))
def test_the_adversarial_gradient_reaches_the_generator(objective):
    """With the adversarial term alone every parameter of G moves; with its factor at 0 (warm-up) none could."""
    only_adversarial = LossConfig(image=0.0, adversarial=1.0, perceptual=0.0, tv=0.0, temporal=0.0)
    step, generator, _ = make_step(objective, only_adversarial, learning_rate=1.0, max_grad_norm=math.inf)
    before = snapshot(generator)
    step.micro_step(*clips(), adversarial_factor=1.0)
    # The recurrence's projection starts at zero, so what lies behind it cannot move in the first step.
    still = {name for name, value in snapshot(generator).items() if torch.equal(value, before[name])}
    assert all("memory.from_" in name for name in still), still
    assert len(still) < len(before)


@pytest.mark.parametrize("objective", list(ADVERSARIAL))
def test_the_discriminator_gets_no_gradient_in_the_generator_step(objective):
    step, _, network = make_step(objective, LossConfig(perceptual=0.0, adversarial=1.0))
    low, real = (clip.float() / 255 for clip in clips())
    from vsr_dist.ops.resample import bicubic_upsample

    with step.accelerator.accumulate(step.players.generator, step.players.discriminator):
        step._generator_step(low, real, bicubic_upsample(low, 4), 1.0)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_warm_up_leaves_the_discriminator_and_its_terms_alone():
    step, generator, network = make_step()
    before_g, before_d = snapshot(generator), snapshot(network)
    scalars = step.micro_step(*clips(), adversarial_factor=0.0)
    assert set(scalars) == {"loss_g/total", "loss_g/image", "loss_g/tv", "loss_g/temporal"}
    assert all(torch.equal(value, before_d[name]) for name, value in snapshot(network).items())
    assert any(not torch.equal(value, before_g[name]) for name, value in snapshot(generator).items())


def test_total_is_the_weighted_sum_of_the_terms():
    loss = LossConfig(image=0.5, adversarial=0.25, perceptual=0.0, tv=0.125, temporal=2.0)
    step, _, _ = make_step("bce", loss)
    scalars = step.micro_step(*clips(), adversarial_factor=0.5)
    expected = (
        0.5 * scalars["loss_g/image"]
        + 0.125 * scalars["loss_g/adversarial"]
        + 0.125 * scalars["loss_g/tv"]
        + 2.0 * scalars["loss_g/temporal"]
    )
    torch.testing.assert_close(scalars["loss_g/total"], expected)


def test_discriminator_loss_falls_on_a_fixed_batch():
    step, _, _ = make_step("bce", LossConfig(perceptual=0.0, adversarial=1e-3), learning_rate=0.05)
    losses = [float(step.micro_step(*clips(), adversarial_factor=1.0)["loss_d/total"]) for _ in range(40)]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize(
    "discriminator", [UnetConfig(filters=4), SpatiotemporalConfig(filters=4, levels=1, norm="spectral")]
)
def test_spectral_norm_moves_once_per_step_however_many_micro_batches(discriminator):
    """Or two processes would not equal one with two micro-batches. The networks rest, so nothing else moves it."""
    found = []
    for parts in (1, 2):
        AcceleratorState._reset_state()
        step, _, network = make_step(discriminator=discriminator, learning_rate=0.0, parts=parts)
        before = {name: value.clone() for name, value in network.named_buffers()}
        for _ in range(2):
            for low, real in zip(*(clip.chunk(parts) for clip in clips()), strict=True):
                network.train()  # as after a validation
                step.micro_step(low, real, adversarial_factor=1.0)
        found.append(dict(network.named_buffers()))
        assert any(not torch.equal(value, before[name]) for name, value in found[-1].items())
    whole, halves = found
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())


def test_penalties_enter_the_discriminator_loss_once():
    plain, _, plain_d = make_step()
    plain.micro_step(*clips(), adversarial_factor=1.0)
    AcceleratorState._reset_state()
    penalised, _, penalised_d = make_step(adversary=AdversaryConfig(r1_gamma=10.0, r2_gamma=10.0))
    scalars = penalised.micro_step(*clips(), adversarial_factor=1.0)
    assert float(scalars["loss_d/penalty"]) > 0
    assert any(not torch.equal(value, snapshot(penalised_d)[name]) for name, value in snapshot(plain_d).items())


def test_finite_difference_enters_the_discriminator_loss():
    adversary = AdversaryConfig(r1_gamma=10.0, r2_gamma=10.0, penalty="finite_difference")
    scalars = make_step(adversary=adversary)[0].micro_step(*clips(), adversarial_factor=1.0)
    assert float(scalars["loss_d/penalty"]) > 0
    total = scalars["loss_d/adversarial"] + scalars["loss_d/penalty"]
    torch.testing.assert_close(scalars["loss_d/total"], total)


@pytest.mark.parametrize("precision", ["float32", "autocast"])
@pytest.mark.parametrize("penalty", ["exact", "finite_difference"])
def test_penalty_precision_under_bf16(penalty, precision):
    """Prepared for bf16, the discriminator's step with a penalty is that of float32, or as asked not quite."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    network = build_discriminator(SpatiotemporalConfig(filters=8, levels=2), 4)
    adversary = AdversaryConfig(r1_gamma=1.0, penalty=penalty, penalty_precision=precision)
    clip, bicubic = torch.rand(2, 2, 3, 3, 32, 32)

    def penalty_and_gradient(discriminator):
        torch.manual_seed(1)
        value = adversary.penalty_of(adversary.scored(discriminator, clip.clone(), bicubic, 1.0))
        weights = [parameter for name, parameter in network.named_parameters() if name.endswith("weight")]
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(value, weights)])

    expected = penalty_and_gradient(network)
    found = penalty_and_gradient(accelerator.prepare_model(network))
    error = float((found - expected).norm() / expected.norm())
    # A difference of two logits loses more digits than a gradient; one draw's own scatter is ten times that.
    assert error == 0.0 if precision == "float32" else 0.0 < error < (0.05 if penalty == "exact" else 0.4)


def test_ping_pong_goes_there_and_back_in_one_forward():
    only_temporal = LossConfig(image=0.0, adversarial=0.0, perceptual=0.0, tv=0.0, temporal=1.0)
    step, generator, _ = make_step(loss=replace(only_temporal, temporal_kind="ping_pong"), learning_rate=1.0)
    # Without a memory both ways agree, so that the recurrence must have begun.
    torch.nn.init.normal_(generator.memory.project.weight, std=0.1)
    lengths = []
    generator.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    before = snapshot(generator)
    scalars = step.micro_step(*clips(), adversarial_factor=1.0)
    assert lengths == [5]
    assert float(scalars["loss_g/temporal"]) > 0
    assert not torch.equal(before["memory.from_state.weight"], snapshot(generator)["memory.from_state.weight"])


def test_ping_pong_leaves_the_other_terms_alone():
    scalars = []
    for kind in ("difference", "ping_pong"):
        step, generator, _ = make_step(loss=LossConfig(perceptual=0.0, temporal_kind=kind))
        torch.nn.init.normal_(generator.memory.project.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        scalars.append(step.micro_step(*clips(), adversarial_factor=1.0))
        AcceleratorState._reset_state()
    for name in ("loss_g/image", "loss_g/adversarial", "loss_g/tv"):
        torch.testing.assert_close(scalars[0][name], scalars[1][name])


def test_warped_takes_the_packed_flow_or_its_own():
    loss = LossConfig(perceptual=0.0, temporal_kind="warped")
    flow = torch.zeros(2, 2, 2, 2, 8, 8, dtype=torch.int16)
    values = []
    for source, units in (("dis", 0), ("packed", 0), ("packed", 64)):
        step, _, _ = make_step(loss=replace(loss, temporal_flow=source))
        scalars = step.micro_step(*clips(), adversarial_factor=1.0, flow_BTKCHW=flow + units)
        values.append(float(scalars["loss_g/temporal"]))
        AcceleratorState._reset_state()
    assert all(value >= 0 for value in values)
    assert values[1] != values[2], "the packed flow is followed"


@pytest.mark.parametrize("kind", ["anisotropic", "isotropic"])
def test_other_total_variations_take_the_papers_place(kind):
    values = []
    for name in ("squared_mean", kind):
        step, _, _ = make_step(loss=LossConfig(perceptual=0.0, tv_kind=name))
        values.append(float(step.micro_step(*clips(), adversarial_factor=0.0)["loss_g/tv"]))
        AcceleratorState._reset_state()
    assert values[0] != values[1] and min(values) > 0


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_a_non_finite_number_stops_before_the_optimiser_moves_and_names_the_term(player):
    step, generator, network = make_step("bce", LossConfig(perceptual=0.0, adversarial=1e-3))
    broken = {"generator": generator.head, "discriminator": next(network.modules())}[player]
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    before = snapshot(generator), snapshot(network)
    with pytest.raises(NonFiniteError) as error:
        step.micro_step(*clips(), adversarial_factor=1.0)
    # A broken D makes the adversarial term of G the first that is not finite.
    assert ("loss_g/adversarial" if player == "discriminator" else "loss_g/image") in str(error.value)
    for saved, net in zip(before, (generator, network), strict=True):
        assert all(torch.equal(v.nan_to_num(), saved[k].nan_to_num()) for k, v in snapshot(net).items())


def test_batch_norm_discriminator_takes_two_forwards_before_one_backward():
    step, _, _ = make_step("paper", discriminator=SrganDiscriminatorConfig(filters=4, norm="batch"))
    scalars = step.micro_step(*clips(), adversarial_factor=1.0)
    assert 0.0 <= float(scalars["loss_d/total"]) <= 2.0


def test_spread_frames():
    assert spread_frames(5, 0) == [0, 1, 2, 3, 4]
    assert spread_frames(5, 1) == [2]
    assert spread_frames(6, 2) == [1, 4]
    assert spread_frames(3, 9) == [0, 1, 2]
