"""One optimiser step of both players: the generator against a frozen discriminator, then the discriminator on the
detached output.

Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns.

Order and freezing matter under DDP. D is frozen while G learns, so that no gradient of G's loss reaches D and none
of D's gradients is all-reduced for it. Each player's backward is followed by its own clip and step. There is one
`accumulate` context per micro-batch, because every call advances Accelerate's step counter.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vsr_dist.core.errors import NonFiniteError
from vsr_dist.losses.adversarial import AdversarialObjective
from vsr_dist.losses.flow import flow_back, unpack_flow
from vsr_dist.losses.objective import LossConfig, TermName, combine
from vsr_dist.losses.perceptual import perceptual
from vsr_dist.losses.pixel import PIXEL
from vsr_dist.losses.temporal import (
    flow_there_and_back,
    split_there_and_back,
    temporal_difference,
    temporal_ping_pong,
    temporal_warped,
    there_and_back,
)
from vsr_dist.losses.tv import TV
from vsr_dist.models.blocks import advance_spectral_norm, rest_spectral_norm
from vsr_dist.models.features import PerceptualTrunk
from vsr_dist.ops.color import from_uint8
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.training.adversary import AdversaryConfig
from vsr_dist.training.controllers import ADVERSARIAL_NORM, IMAGE_NORM, StepPlan
from vsr_dist.training.guards import (
    describe_non_finite,
    refuse_static_graph,
    spread_non_finite,
    with_gradient_norm,
)


@dataclass
class Players:
    """Both networks and optimisers as `Accelerator.prepare` returned them, and the frozen feature network.

    The feature network is not prepared: DDP refuses a module in which nothing needs a gradient.
    """

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    features: PerceptualTrunk | None = None


class GanStep:
    """Runs training steps. Between them it holds nothing but the loss terms of a step that is not over."""

    def __init__(
        self,
        accelerator: Accelerator,
        players: Players,
        loss: LossConfig,
        objective: AdversarialObjective,
        adversary: AdversaryConfig,
        *,
        scale: int,
        max_grad_norm: float,
        perceptual_frames: int,
    ) -> None:
        self.accelerator, self.players = accelerator, players
        self.loss, self.objective, self.adversary = loss, objective, adversary
        self.scale, self.max_grad_norm, self.perceptual_frames = scale, max_grad_norm, perceptual_frames
        self.plan = StepPlan(loss.adversarial, adversary.r1_gamma, adversary.r2_gamma)
        # Values of each loss term in the micro-batches since the player last moved, for the report of a fault.
        self._terms: dict[str, list[Tensor]] = {}
        refuse_static_graph(players.generator, players.discriminator)
        self._replays: list[tuple[Tensor, Tensor, Tensor]] = []

    def begin(self, plan: StepPlan) -> None:
        """Say how the next optimiser step is played, before its first micro-batch; the same on every rank."""
        self.plan, self._replays = plan, []

    def micro_step(
        self,
        low_BTCHW: Tensor,
        real_BTCYX: Tensor,
        adversarial_factor: float,
        flow_BTKCHW: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Learn from one micro-batch (uint8 RGB on the CPU or the device); returns detached 0-d scalars by name.

        `flow_BTKCHW` is the packed flow of `ClipBatch`, if the data has it.
        `adversarial_factor` in [0, 1] multiplies the adversarial weight. At 0, in the warm-up, the adversarial and
        the perceptual term are left out and the discriminator rests, as in the pre-training of SRGAN (Ledig et
        al. 2017, section 3.2). It must be the same on every rank.
        Raises NonFiniteError before the optimiser moves, on all ranks together.
        """
        players, device = self.players, self.accelerator.device
        rest_spectral_norm(players.discriminator)
        low_BTCHW = from_uint8(low_BTCHW.to(device, non_blocking=True))
        real_BTCYX = from_uint8(real_BTCYX.to(device, non_blocking=True))
        if flow_BTKCHW is not None:
            flow_BTKCHW = unpack_flow(flow_BTKCHW.to(device, non_blocking=True))
        with self.accelerator.accumulate(players.generator, players.discriminator):
            bicubic_BTCYX = bicubic_upsample(low_BTCHW, self.scale) if adversarial_factor else None
            fake_BTCYX, scalars = self._generator_step(
                low_BTCHW, real_BTCYX, bicubic_BTCYX, adversarial_factor, flow_BTKCHW
            )
            if bicubic_BTCYX is not None and self.loss.adversarial > 0:
                scalars |= self._discriminator_turn(real_BTCYX, fake_BTCYX.detach(), bicubic_BTCYX)
        return scalars

    def _generator_step(
        self,
        low_BTCHW: Tensor,
        real_BTCYX: Tensor,
        bicubic_BTCYX: Tensor | None,
        adversarial_factor: float,
        flow_BTKCHW: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        players = self.players
        players.discriminator.requires_grad_(False)
        fake_BTCYX, returned_BTCYX = self._generate(low_BTCHW, flow_BTKCHW)
        norms: dict[str, Tensor] = {}
        terms = self._generator_terms(fake_BTCYX, real_BTCYX, bicubic_BTCYX, norms)
        if self.loss.temporal > 0:
            terms["temporal"] = self._temporal_term(fake_BTCYX, returned_BTCYX, real_BTCYX, flow_BTKCHW)
        weights: dict[TermName, float | Tensor] = dict(self.loss.weights())
        weights["adversarial"] = self.plan.adversarial_weight * adversarial_factor
        summed = combine(terms, weights)
        self.accelerator.backward(spread_non_finite(summed.total))
        self._finish(players.generator, players.generator_optimizer, {f"loss_g/{k}": v for k, v in terms.items()})
        players.discriminator.requires_grad_(True)
        scalars = {"loss_g/total": summed.total} | {f"loss_g/{k}": v for k, v in summed.terms.items()}
        # What the hooks saw carries the weights, and the share of this micro-batch in the step.
        shares = {IMAGE_NORM: weights["image"], ADVERSARIAL_NORM: weights["adversarial"]}
        parts = self.accelerator.gradient_accumulation_steps
        scalars |= {name: norm * (parts / shares[name]) for name, norm in norms.items()}
        return fake_BTCYX, {name: value.detach() for name, value in scalars.items()}

    def _generate(self, low_BTCHW: Tensor, flow_BTKCHW: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The generated clip, and with `ping_pong` the frames of the way back, in one forward of the generator."""
        generator = self.players.generator
        if self.loss.temporal == 0 or self.loss.temporal_kind != "ping_pong":
            return generator(low_BTCHW, flow_BTKCHW), None
        if flow_BTKCHW is not None:
            flow_BTKCHW = flow_there_and_back(flow_BTKCHW)
        return split_there_and_back(generator(there_and_back(low_BTCHW), flow_BTKCHW))

    def _generator_terms(
        self, fake_BTCYX: Tensor, real_BTCYX: Tensor, bicubic_BTCYX: Tensor | None, norms: dict[str, Tensor]
    ) -> dict[TermName, Tensor]:
        """The active terms but the temporal one, before weighting; `bicubic_BTCYX` is None in the warm-up.

        The backward pass then puts the gradients' norms into `norms`, if the plan wants them.
        """
        measured = self.plan.measure_gradients and bicubic_BTCYX is not None
        active = self.loss.active_terms()
        terms: dict[TermName, Tensor] = {}
        if "image" in active:
            seen_BTCYX = with_gradient_norm(fake_BTCYX, IMAGE_NORM, norms) if measured else fake_BTCYX
            terms["image"] = PIXEL[self.loss.pixel](seen_BTCYX, real_BTCYX)
        if "adversarial" in active and bicubic_BTCYX is not None:
            seen_BTCYX = with_gradient_norm(fake_BTCYX, ADVERSARIAL_NORM, norms) if measured else fake_BTCYX
            terms["adversarial"] = self._adversarial_term(seen_BTCYX, real_BTCYX, bicubic_BTCYX)
        if "perceptual" in active and bicubic_BTCYX is not None:
            terms["perceptual"] = self._perceptual_term(fake_BTCYX, real_BTCYX)
        if "tv" in active:
            terms["tv"] = TV[self.loss.tv_kind](fake_BTCYX)
        return terms

    def _temporal_term(
        self, fake_BTCYX: Tensor, returned_BTCYX: Tensor | None, real_BTCYX: Tensor, flow_BTKCHW: Tensor | None
    ) -> Tensor:
        """`returned_BTCYX`: the frames of the way back, with `ping_pong` only."""
        if returned_BTCYX is not None:
            return temporal_ping_pong(fake_BTCYX, returned_BTCYX)
        if self.loss.temporal_kind == "difference":
            return temporal_difference(fake_BTCYX, real_BTCYX)
        back_BT2YX = flow_back(self.loss.temporal_flow, real_BTCYX, flow_BTKCHW, self.scale)
        return temporal_warped(fake_BTCYX, real_BTCYX, back_BT2YX)

    def _adversarial_term(self, fake_BTCYX: Tensor, real_BTCYX: Tensor, bicubic_BTCYX: Tensor) -> Tensor:
        discriminator = self.players.discriminator
        real_logits = None
        if self.objective.uses_real_in_generator:
            with torch.no_grad():
                real_logits = discriminator(real_BTCYX, bicubic_BTCYX)
        return self.objective.generator_loss(real_logits, discriminator(fake_BTCYX, bicubic_BTCYX))

    def _perceptual_term(self, fake_BTCYX: Tensor, real_BTCYX: Tensor) -> Tensor:
        features = self.players.features
        assert features is not None, "build.py makes the feature network whenever the term is active"
        frames = spread_frames(fake_BTCYX.shape[1], self.perceptual_frames)
        if len(frames) < fake_BTCYX.shape[1]:  # Picking all would copy them all.
            fake_BTCYX, real_BTCYX = fake_BTCYX[:, frames], real_BTCYX[:, frames]
        with torch.no_grad():
            real_features = features(real_BTCYX.flatten(0, 1))
        return perceptual(features(fake_BTCYX.flatten(0, 1)), real_features, features.rescale)

    def _discriminator_turn(self, real_BTCYX: Tensor, fake_BTCYX: Tensor, bicubic_BTCYX: Tensor) -> dict[str, Tensor]:
        """What the plan lets the discriminator do with a micro-batch; the scalars are those of its first pass."""
        if self.plan.discriminator_steps == 0:
            return self._scored_only(real_BTCYX, fake_BTCYX, bicubic_BTCYX)
        terms, scalars = self._discriminator_backward(real_BTCYX, fake_BTCYX, bicubic_BTCYX)
        self._finish(self.players.discriminator, self.players.discriminator_optimizer, terms)
        if self.plan.discriminator_steps > 1:
            self._replays.append((real_BTCYX, fake_BTCYX, bicubic_BTCYX))
            if self.accelerator.sync_gradients:
                self._replay()
        return scalars

    @torch.no_grad()
    def _scored_only(self, real_BTCYX: Tensor, fake_BTCYX: Tensor, bicubic_BTCYX: Tensor) -> dict[str, Tensor]:
        """A resting discriminator: its loss is true, and the penalties, which nobody computed, are not said to be 0."""
        discriminator = self.players.discriminator
        real_logits, fake_logits = (discriminator(clip, bicubic_BTCYX) for clip in (real_BTCYX, fake_BTCYX))
        loss = self.objective.discriminator_loss(real_logits, fake_logits)
        return {"loss_d/adversarial": loss, "d/real": real_logits.mean(), "d/fake": fake_logits.mean()}

    def _replay(self) -> None:
        """A second optimiser step on the micro-batches of this one; DDP reduces the gradients in the last of them."""
        discriminator = self.players.discriminator
        replays, self._replays = self._replays, []
        for number, batch in enumerate(replays, start=1):
            last = number == len(replays)
            with nullcontext() if last else self.accelerator.no_sync(discriminator):
                terms, _ = self._discriminator_backward(*batch)
            self._note_terms(terms)
        self._move(discriminator, self.players.discriminator_optimizer, "loss_d")

    def _discriminator_backward(
        self, real_BTCYX: Tensor, fake_BTCYX: Tensor, bicubic_BTCYX: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Add the gradient of one micro-batch; returns its terms, and its scalars for the log."""
        discriminator, adversary, plan = self.players.discriminator, self.adversary, self.plan
        real = adversary.scored(discriminator, real_BTCYX, bicubic_BTCYX, plan.r1_gamma)
        fake = adversary.scored(discriminator, fake_BTCYX, bicubic_BTCYX, plan.r2_gamma)
        loss = self.objective.discriminator_loss(real.logits, fake.logits)
        penalty = torch.zeros_like(loss)
        for scored in (real, fake):
            if scored.gamma > 0:
                penalty = penalty + adversary.penalty_of(scored)
        self.accelerator.backward(spread_non_finite(loss + penalty))
        terms = {"loss_d/adversarial": loss.detach(), "loss_d/penalty": penalty.detach()}
        scalars = {"loss_d/total": loss + penalty, **terms, "d/real": real.logits.mean(), "d/fake": fake.logits.mean()}
        return terms, {name: value.detach() for name, value in scalars.items()}

    def _finish(self, network: nn.Module, optimizer: torch.optim.Optimizer, terms: dict[str, Tensor]) -> None:
        """Note the terms of a micro-batch; with the last one of the step, move the optimiser."""
        self._note_terms(terms)
        if self.accelerator.sync_gradients:
            self._move(network, optimizer, next(iter(terms)).split("/")[0])

    def _note_terms(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self._terms.setdefault(name, []).append(value.detach())

    def _move(self, network: nn.Module, optimizer: torch.optim.Optimizer, group: str) -> None:
        """Check and clip the averaged gradient, then move the optimiser.

        The norm is read on the host in every step, because a non-finite gradient must be seen before the
        optimiser moves. DDP has averaged the gradients by now, so all ranks see the same norm.
        """
        norm = self.accelerator.clip_grad_norm_(network.parameters(), self.max_grad_norm)
        values = {name: self._terms.pop(name) for name in list(self._terms) if name.startswith(f"{group}/")}
        if not torch.isfinite(norm):
            found = {name: torch.stack(parts).tolist() for name, parts in values.items()}
            raise NonFiniteError(describe_non_finite(found, group), found)
        optimizer.step()
        optimizer.zero_grad()
        if network is self.players.discriminator:
            advance_spectral_norm(network)

    def abandon(self) -> None:
        """Forget a step that a fault broke off: its gradients and terms, and that D is frozen."""
        self._terms = {}
        self.players.discriminator.requires_grad_(True)
        self.players.generator_optimizer.zero_grad()
        self.players.discriminator_optimizer.zero_grad()


def spread_frames(num_frames: int, num_wanted: int) -> list[int]:
    """Indices of `num_wanted` frames of a clip, evenly spaced and centred; all of them for 0 or too many."""
    if num_wanted <= 0 or num_wanted >= num_frames:
        return list(range(num_frames))
    return [int((i + 0.5) * num_frames / num_wanted) for i in range(num_wanted)]
