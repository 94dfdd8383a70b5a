"""One optimiser step of both players: the generator against a frozen discriminator, then the discriminator on the
detached output.

Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns.

Order and freezing matter under DDP. D is frozen while G learns, so that no gradient of G's loss reaches D and none
of D's gradients is all-reduced for it. Each player's backward is followed by its own clip and step. There is one
`accumulate` context per micro-batch, because every call advances Accelerate's step counter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vsr_dist.core.collectives import gather_lists
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
from vsr_dist.ops.color import from_uint8
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.training.adversary import AdversaryConfig


@dataclass
class Players:
    """Both networks and optimisers as `Accelerator.prepare` returned them, and the frozen feature network.

    The feature network is not prepared: DDP refuses a module in which nothing needs a gradient.
    """

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    features: nn.Module | None = None


class GanStep:
    """Runs training steps. Between them it holds nothing but what was not finite in a step that is not over."""

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
        self._broken: dict[str, Tensor] = {}

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
                scalars |= self._discriminator_step(real_BTCYX, fake_BTCYX.detach(), bicubic_BTCYX)
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
        terms = self._generator_terms(fake_BTCYX, real_BTCYX, bicubic_BTCYX)
        if self.loss.temporal > 0:
            terms["temporal"] = self._temporal_term(fake_BTCYX, returned_BTCYX, real_BTCYX, flow_BTKCHW)
        weights: dict[TermName, float | Tensor] = dict(self.loss.weights())
        weights["adversarial"] = self.loss.adversarial * adversarial_factor
        summed = combine(terms, weights)
        self.accelerator.backward(summed.total)
        self._finish(players.generator, players.generator_optimizer, {f"loss_g/{k}": v for k, v in terms.items()})
        players.discriminator.requires_grad_(True)
        scalars = {"loss_g/total": summed.total} | {f"loss_g/{k}": v for k, v in summed.terms.items()}
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
        self, fake_BTCYX: Tensor, real_BTCYX: Tensor, bicubic_BTCYX: Tensor | None
    ) -> dict[TermName, Tensor]:
        """The active terms but the temporal one, before weighting; `bicubic_BTCYX` is None in the warm-up."""
        active = self.loss.active_terms()
        terms: dict[TermName, Tensor] = {}
        if "image" in active:
            terms["image"] = PIXEL[self.loss.pixel](fake_BTCYX, real_BTCYX)
        if "adversarial" in active and bicubic_BTCYX is not None:
            terms["adversarial"] = self._adversarial_term(fake_BTCYX, real_BTCYX, bicubic_BTCYX)
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
        with torch.no_grad():
            real_features = features(real_BTCYX[:, frames].flatten(0, 1))
        return perceptual(features(fake_BTCYX[:, frames].flatten(0, 1)), real_features)

    def _discriminator_step(self, real_BTCYX: Tensor, fake_BTCYX: Tensor, bicubic_BTCYX: Tensor) -> dict[str, Tensor]:
        players, adversary = self.players, self.adversary
        real = adversary.scored(players.discriminator, real_BTCYX, bicubic_BTCYX, adversary.r1_gamma)
        fake = adversary.scored(players.discriminator, fake_BTCYX, bicubic_BTCYX, adversary.r2_gamma)
        loss = self.objective.discriminator_loss(real.logits, fake.logits)
        penalty = torch.zeros_like(loss)
        for scored in (real, fake):
            if scored.gamma > 0:
                penalty = penalty + adversary.penalty_of(scored)
        self.accelerator.backward(loss + penalty)
        terms = {"loss_d/adversarial": loss, "loss_d/penalty": penalty}
        self._finish(players.discriminator, players.discriminator_optimizer, terms)
        scalars = {"loss_d/total": loss + penalty, **terms, "d/real": real.logits.mean(), "d/fake": fake.logits.mean()}
        return {name: value.detach() for name, value in scalars.items()}

    def _finish(self, network: nn.Module, optimizer: torch.optim.Optimizer, terms: dict[str, Tensor]) -> None:
        """Check and clip the averaged gradient, then move the optimiser; inside accumulation do nothing yet.

        The norm is read on the host in every step, because a non-finite gradient must be seen before the
        optimiser moves. DDP has averaged the gradients by now, so all ranks see the same norm.
        """
        for name, value in terms.items():
            broken = ~torch.isfinite(value.detach()).all()
            self._broken[name] = self._broken[name] | broken if name in self._broken else broken
        if not self.accelerator.sync_gradients:
            return
        norm = self.accelerator.clip_grad_norm_(network.parameters(), self.max_grad_norm)
        if not torch.isfinite(norm):
            raise NonFiniteError(describe_non_finite(self._broken, next(iter(terms)).split("/")[0]))
        self._broken = {}
        optimizer.step()
        optimizer.zero_grad()


def spread_frames(num_frames: int, num_wanted: int) -> list[int]:
    """Indices of `num_wanted` frames of a clip, evenly spaced and centred; all of them for 0 or too many."""
    if num_wanted <= 0 or num_wanted >= num_frames:
        return list(range(num_frames))
    return [int((i + 0.5) * num_frames / num_wanted) for i in range(num_wanted)]


def describe_non_finite(broken: dict[str, Tensor], group: str) -> str:
    """Which terms were NaN or infinite on any rank and micro-batch, from a flag per term; a collective call."""
    names = sorted(set(gather_lists([name for name, flag in broken.items() if bool(flag)])))
    what = f"the term(s) {', '.join(names)}" if names else "the gradient (every loss term is finite)"
    player = "generator" if group == "loss_g" else "discriminator"
    return (
        f"not finite: {what}; training stopped before the {player} moved. Lower the learning rate or the weight of "
        "that term, or resume from the last checkpoint"
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every parameter group the same learning rate."""
    groups: Iterable[dict[str, object]] = optimizer.param_groups
    for group in groups:
        group["lr"] = learning_rate
