"""One optimiser step of a GAN: the generator's turn against a frozen discriminator, then the discriminator's turn on
the detached output.

Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns, K the two
directions of flow.

Under DDP the order matters. D is frozen in G's turn, so that no gradient of G's loss reaches D and none of D's
gradients is all-reduced for it. Each player's backward is followed by its own clip and step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vsr_dist.core.collectives import World, gather_lists
from vsr_dist.core.errors import NonFiniteError
from vsr_dist.data.loader import ClipBatch
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.losses.objective import ADVERSARIAL_TERM, TERMS, LossConfig, LossInputs, weighted_sum
from vsr_dist.losses.penalties import finite_difference_penalty, gradient_penalty
from vsr_dist.losses.temporal import flow_there_and_back, split_there_and_back, there_and_back, unpack_flow
from vsr_dist.models.base import State
from vsr_dist.models.blocks import advance_spectral_norm, rest_spectral_norm
from vsr_dist.models.features import PerceptualTrunk
from vsr_dist.ops.color import from_uint8
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.training.config import AdversarialConfig
from vsr_dist.training.control import MicroStep, StepPlan


@dataclass(frozen=True)
class Player:
    """A network and its optimiser as `Accelerator.prepare` returned them; `name` is for messages."""

    name: str
    network: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class _Clips:
    """One micro-batch on the device: float RGB in [0, 1]; `bicubic_BTCYX` only in steps with the adversary."""

    low_BTCHW: Tensor
    real_BTCYX: Tensor
    bicubic_BTCYX: Tensor | None
    flow_BTKCHW: Tensor | None
    starts_B: Tensor


class CarriedState(nn.Module):
    """Recurrent states between consecutive windows: truncated backpropagation through time (`train.carry_state`).

    One state per lane of the global batch; a rank holds those of its own micro-batches. Checkpoints hold all lanes in
    the order of the global batch, so that a run can resume on another number of processes.
    """

    def __init__(self, world: World, num_micro_batches: int) -> None:
        super().__init__()
        self.world, self.num_micro_batches = world, num_micro_batches
        self.clear()

    def clear(self) -> None:
        """Every lane begins a sequence."""
        self._own: list[State | None] = [None] * self.num_micro_batches
        self._all_lanes: dict[str, Tensor] = {}

    def before(self, micro_batch: int, starts_B: Tensor) -> State | None:
        """The state before a micro-batch's windows, zero in the lanes that begin a sequence."""
        state = self._own[micro_batch]
        if state is None:
            return None
        # A checkpoint's lanes are read on the CPU; on the device this moves nothing.
        on_device = (part.to(starts_B.device) for part in state)
        return tuple(part.masked_fill(starts_B.view(-1, *(1,) * (part.dim() - 1)), 0.0) for part in on_device)

    def keep(self, micro_batch: int, state: State) -> None:
        """Take over the state after a micro-batch's windows, without its graph."""
        self._own[micro_batch] = tuple(part.detach() for part in state)

    def gather(self) -> None:
        """Collect the states of all lanes for a checkpoint; a collective call."""
        own = [state for state in self._own if state is not None]
        mine = [torch.cat(parts).cpu() for parts in zip(*own, strict=True)]
        ranks = gather_lists([mine])
        self._all_lanes = {str(number): torch.cat(parts) for number, parts in enumerate(zip(*ranks, strict=True))}

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Tensor]:  # type: ignore[override]  # noqa: ANN401
        """What `gather` collected: (lanes, ...) by number."""
        del arguments, options
        return dict(self._all_lanes)

    def load_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Take this rank's lanes out of what `state_dict` returned, on any number of ranks and micro-batches."""
        del arguments, options
        self.clear()
        parts = [state_dict[str(number)] for number in range(len(state_dict))]
        if parts:
            num_parts = self.world.size * self.num_micro_batches
            first = self.world.rank * self.num_micro_batches
            lanes = zip(*(part.chunk(num_parts)[first : first + self.num_micro_batches] for part in parts), strict=True)
            self._own = [tuple(part.clone() for part in state) for state in lanes]


class GanStep:
    """Runs optimiser steps of both players. All ranks must make the same calls with equal plans.

    On the CPU a gradient that is not finite raises NonFiniteError before its player moves. On a GPU reading the norm
    would make the host wait in every step: there the optimisers are held back on the device from the first such step
    on, and `raise_if_non_finite` raises.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        generator: Player,
        discriminator: Player,
        features: PerceptualTrunk | None,
        loss: LossConfig,
        adversarial: AdversarialConfig,
        *,
        scale: int,
        max_grad_norm: float,
        perceptual_frames: int,
        carried: CarriedState | None = None,
        hold_on_device: bool | None = None,
    ) -> None:
        """`features` is not prepared: DDP refuses a module without trainable parameters.

        carried: recurrent states that consecutive windows hand on, or None. hold_on_device: see the class; by default
        True on GPUs only.
        """
        self.accelerator, self.generator, self.discriminator = accelerator, generator, discriminator
        self.features, self.loss, self.adversarial = features, loss, adversarial
        self.objective = ADVERSARIAL[adversarial.loss]
        self.scale, self.max_grad_norm, self.perceptual_frames = scale, max_grad_norm, perceptual_frames
        self.carried = carried
        hold = accelerator.device.type == "cuda" if hold_on_device is None else hold_on_device
        self.guard = _DeviceGuard(accelerator.device) if hold else None

    def run(self, micro_batches: Iterator[ClipBatch], plan: StepPlan, step: int) -> list[MicroStep]:
        """One optimiser step on the next micro-batches (uint8 RGB, CPU or device), as many as are accumulated.

        `step` counts from 0. Raises NonFiniteError, see the class; a collective call.
        """
        rest_spectral_norm(self.discriminator.network)
        terms_g: list[dict[str, Tensor]] = []
        terms_d: list[dict[str, Tensor]] = []
        results = []
        for number in range(self.accelerator.gradient_accumulation_steps):
            clips = self._on_device(next(micro_batches), plan)
            # One context per micro-batch: each call advances Accelerate's counter. Gradients are complete, and averaged
            # over the ranks, when `sync_gradients` is true.
            with self.accelerator.accumulate(self.generator.network, self.discriminator.network):
                fake_BTCYX, result = self._generator_turn(clips, plan, terms_g, number)
                if self.accelerator.sync_gradients:
                    self._clip_and_step(self.generator, terms_g, step)
                if clips.bicubic_BTCYX is not None:
                    scalars = self._discriminator_turn(clips, fake_BTCYX.detach(), plan, terms_d)
                    if self.accelerator.sync_gradients:
                        self._clip_and_step(self.discriminator, terms_d, step)
                        advance_spectral_norm(self.discriminator.network)
                    result = replace(result, scalars=result.scalars | scalars)
            results.append(result)
        return results

    def _on_device(self, batch: ClipBatch, plan: StepPlan) -> _Clips:
        device = self.accelerator.device
        low_BTCHW = from_uint8(batch.low_BTCHW.to(device, non_blocking=True))
        real_BTCYX = from_uint8(batch.real_BTCYX.to(device, non_blocking=True))
        flow_BTKCHW = None
        if batch.flow_BTKCHW is not None:
            flow_BTKCHW = unpack_flow(batch.flow_BTKCHW.to(device, non_blocking=True))
        has_adversary = self.adversarial.is_on and not plan.is_warmup
        bicubic_BTCYX = bicubic_upsample(low_BTCHW, self.scale) if has_adversary else None
        return _Clips(low_BTCHW, real_BTCYX, bicubic_BTCYX, flow_BTKCHW, batch.starts_B)

    def _generator_turn(
        self, clips: _Clips, plan: StepPlan, noted: list[dict[str, Tensor]], micro_batch: int = 0
    ) -> tuple[Tensor, MicroStep]:
        """Add the generator's gradient on one micro-batch; returns the generated clip and what is logged."""
        self.discriminator.network.requires_grad_(False)
        fake_BTCYX, returned_BTCYX = self._generate(clips, micro_batch)
        norms = _GradientNorms(measure=plan.measure)
        terms: dict[str, Tensor] = {}
        for name in self._active_terms(clips, plan):
            inputs = LossInputs(
                fake_BTCYX, clips.real_BTCYX, self.scale, returned_BTCYX=returned_BTCYX, flow_BTKCHW=clips.flow_BTKCHW
            )
            terms[name] = self._term(name, norms.watch(name, inputs), clips)
        total = weighted_sum(terms, plan.weights)
        self.accelerator.backward(_nan_gradient_if_not_finite(total))
        self.discriminator.network.requires_grad_(True)
        scalars = {"loss_g/total": total} | {f"loss_g/{name}": value for name, value in terms.items()}
        noted.append({name: value.detach() for name, value in scalars.items() if name != "loss_g/total"})
        measured: dict[str, Tensor] = {}
        if plan.measure:
            # The backward pass saw each gradient with its weight, and divided by the number of micro-batches.
            num_micro_batches = self.accelerator.gradient_accumulation_steps
            measured = {name: norm * (num_micro_batches / plan.weights[name]) for name, norm in norms.read().items()}
            scalars |= gradient_shares(measured, plan.weights)
        return fake_BTCYX, MicroStep({name: value.detach() for name, value in scalars.items()}, measured)

    def _generate(self, clips: _Clips, micro_batch: int) -> tuple[Tensor, Tensor | None]:
        """The generated clip, and with ping-pong the frames of the way back, in one forward of the generator."""
        network = self.generator.network
        if self.carried is not None:
            starts_B = clips.starts_B.to(clips.low_BTCHW.device, non_blocking=True)
            state = self.carried.before(micro_batch, starts_B)
            fake_BTCYX, state = network(clips.low_BTCHW, clips.flow_BTKCHW, state=state, return_state=True)
            self.carried.keep(micro_batch, state)
            return fake_BTCYX, None
        if not self.loss.is_ping_pong:
            return network(clips.low_BTCHW, clips.flow_BTKCHW), None
        flow_BTKCHW = None if clips.flow_BTKCHW is None else flow_there_and_back(clips.flow_BTKCHW)
        return split_there_and_back(network(there_and_back(clips.low_BTCHW), flow_BTKCHW))

    def _active_terms(self, clips: _Clips, plan: StepPlan) -> list[str]:
        """Names of the terms that act in this step, the image term first."""
        active = [name for name, term in TERMS.items() if self.loss.weights()[name] > 0]
        if plan.is_warmup:
            active = [name for name in active if TERMS[name].in_warmup]
        if clips.bicubic_BTCYX is None:
            return active
        index = 1 if "image" in active else 0
        return [*active[:index], ADVERSARIAL_TERM, *active[index:]]

    def _term(self, name: str, inputs: LossInputs, clips: _Clips) -> Tensor:
        """One term without its weight; losses read tensors, so the networks that it needs run here."""
        if name == ADVERSARIAL_TERM:
            discriminator, real_logits = self.discriminator.network, None
            if self.objective.uses_real_in_generator:
                with torch.no_grad():
                    real_logits = discriminator(inputs.real_BTCYX, clips.bicubic_BTCYX)
            return self.objective.generator_loss(real_logits, discriminator(inputs.fake_BTCYX, clips.bicubic_BTCYX))
        if TERMS[name].needs_features:
            inputs = self._with_features(inputs)
        return TERMS[name].loss(self.loss, inputs)

    def _with_features(self, inputs: LossInputs) -> LossInputs:
        assert self.features is not None, "build.py makes the feature network whenever a term needs it"
        fake_BTCYX, real_BTCYX = inputs.fake_BTCYX, inputs.real_BTCYX
        frames = spread_frames(fake_BTCYX.shape[1], self.perceptual_frames)
        if len(frames) < fake_BTCYX.shape[1]:
            # Not indexed with the list: on a GPU that would copy the list there and wait for it.
            fake_BTCYX = torch.stack([fake_BTCYX[:, t] for t in frames], dim=1)
            real_BTCYX = torch.stack([real_BTCYX[:, t] for t in frames], dim=1)
        with torch.no_grad():
            real_features = self.features(real_BTCYX.flatten(0, 1))
        return replace(
            inputs,
            fake_features=self.features(fake_BTCYX.flatten(0, 1)),
            real_features=real_features,
            features_rescale=self.features.rescale,
        )

    def _discriminator_turn(
        self, clips: _Clips, fake_BTCYX: Tensor, plan: StepPlan, noted: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Add the discriminator's gradient on one micro-batch; returns what is logged."""
        assert clips.bicubic_BTCYX is not None
        real_logits, r1 = self._score(clips.real_BTCYX, clips.bicubic_BTCYX, self.adversarial.r1_gamma, plan.r1_gamma)
        fake_logits, r2 = self._score(fake_BTCYX, clips.bicubic_BTCYX, self.adversarial.r2_gamma, plan.r2_gamma)
        loss = self.objective.discriminator_loss(real_logits, fake_logits)
        penalty = torch.zeros_like(loss)
        for part in (r1, r2):
            if part is not None:
                penalty = penalty + part
        self.accelerator.backward(_nan_gradient_if_not_finite(loss + penalty))
        terms = {"loss_d/adversarial": loss.detach(), "loss_d/penalty": penalty.detach()}
        noted.append(terms)
        scalars = {"loss_d/total": loss + penalty, "d/real": real_logits.mean(), "d/fake": fake_logits.mean()}
        return terms | {name: value.detach() for name, value in scalars.items()}

    def _score(
        self, clip_BTCYX: Tensor, bicubic_BTCYX: Tensor, configured_gamma: float, gamma: float | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of a clip and its gradient penalty with weight `gamma`, None where the configured one is 0.

        With `finite_difference` the clips with noise go through the same forward: a change of the network between two,
        over sigma, would be taken for steepness. Each rank draws its own noise.
        """
        config, network = self.adversarial, self.discriminator.network
        full = config.penalty_precision == "float32" and max(config.r1_gamma, config.r2_gamma) > 0
        if configured_gamma == 0:
            return network(clip_BTCYX, bicubic_BTCYX, full_precision=full), None
        if config.penalty == "exact":
            clip_BTCYX = clip_BTCYX.requires_grad_()
            logits = network(clip_BTCYX, bicubic_BTCYX, full_precision=full)
            return logits, gradient_penalty(logits, clip_BTCYX, gamma)
        noise_BTCYX = config.sigma * torch.randn_like(clip_BTCYX)
        moved = torch.cat((clip_BTCYX, clip_BTCYX + noise_BTCYX, clip_BTCYX - noise_BTCYX))
        logits, plus, minus = network(moved, torch.cat(3 * (bicubic_BTCYX,)), full_precision=full).chunk(3)
        return logits, finite_difference_penalty(plus, minus, config.sigma, gamma)

    def _clip_and_step(self, player: Player, terms: list[dict[str, Tensor]], step: int) -> None:
        """Clip the averaged gradient and move the optimiser, unless the gradient is not finite.

        DDP has averaged the gradients, so that all ranks see the same norm.
        """
        norm = self.accelerator.clip_grad_norm_(player.network.parameters(), self.max_grad_norm)
        if self.guard is not None:
            self.guard.hold_back_if_non_finite(norm, player, terms, step)
        elif not torch.isfinite(norm):
            raise _non_finite_error(player.name, _term_values(terms), step)
        player.optimizer.step()
        player.optimizer.zero_grad()

    def raise_if_non_finite(self) -> None:
        """Raise the NonFiniteError that the device has held back, if any; waits for the device. A collective call."""
        if self.guard is not None:
            self.guard.raise_if_non_finite()

    def discard_step(self) -> None:
        """Discard a step that an error interrupted: its gradients, and that D is frozen."""
        self.discriminator.network.requires_grad_(True)
        for player in (self.generator, self.discriminator):
            player.optimizer.zero_grad()
        if self.guard is not None:
            self.guard.reset()


def spread_frames(num_frames: int, num_wanted: int) -> list[int]:
    """Indices of `num_wanted` frames of a clip, evenly spaced and centred; all of them for 0 or too many."""
    if num_wanted <= 0 or num_wanted >= num_frames:
        return list(range(num_frames))
    return [int((i + 0.5) * num_frames / num_wanted) for i in range(num_wanted)]


def gradient_shares(norms: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> dict[str, Tensor]:
    """`share_g/TERM`: each term's weighted gradient norm over the image term's; none without an image term."""
    if "image" not in norms:
        return {}
    image = weights["image"] * norms["image"]
    return {f"share_g/{name}": weights[name] * norm / image for name, norm in norms.items() if name != "image"}


class _GradientNorms:
    """Notes, in the backward pass, the norm of the gradient that each term sends to the generator's output.

    measure: False notes nothing. The views are made all the same: they decide the order in which autograd adds up the
    gradients of the terms, so that measured and other steps compute the same bits.
    """

    def __init__(self, *, measure: bool) -> None:
        self._measure = measure
        self._squares: dict[str, list[Tensor]] = {}

    def watch(self, name: str, inputs: LossInputs) -> LossInputs:
        """The same inputs, whose generated clips report the gradient that comes back through them."""
        returned_BTCYX = inputs.returned_BTCYX
        return replace(
            inputs,
            fake_BTCYX=self._watched(name, inputs.fake_BTCYX),
            returned_BTCYX=None if returned_BTCYX is None else self._watched(name, returned_BTCYX),
        )

    def _watched(self, name: str, clip_BTCYX: Tensor) -> Tensor:
        squares = self._squares.setdefault(name, [])
        view_BTCYX = clip_BTCYX.view_as(clip_BTCYX)
        if self._measure:
            view_BTCYX.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: squares.append(torch.linalg.vector_norm(gradient.detach().float()) ** 2)
            )
        return view_BTCYX

    def read(self) -> dict[str, Tensor]:
        """Norm of each watched term that sent a gradient."""
        return {name: torch.stack(parts).sum().sqrt() for name, parts in self._squares.items() if parts}


class _DeviceGuard:
    """Holds the optimisers back on the device from the first step whose gradient is not finite.

    Fused optimisers of torch skip a step whose `found_inf` is 1, without the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Forget what was held back."""
        self._step = torch.full((), -1, dtype=torch.int64, device=self._device)
        self._player = torch.full((), -1, dtype=torch.int64, device=self._device)
        self._values: dict[str, dict[str, Tensor]] = {}
        self._names: list[str] = []

    def hold_back_if_non_finite(self, norm: Tensor, player: Player, terms: list[dict[str, Tensor]], step: int) -> None:
        """Tell the player's optimiser whether its next step may move; the first bad step is kept with its terms."""
        if player.name not in self._names:
            self._names.append(player.name)
        is_first = ~torch.isfinite(norm) & (self._step < 0)
        kept = self._values.setdefault(player.name, {})
        for name in terms[0]:
            values = torch.stack([part[name] for part in terms])
            # 0 for a term that began to act after the bad step.
            kept[name] = torch.where(is_first, values, kept.get(name, torch.zeros_like(values)))
        self._step = torch.where(is_first, step, self._step)
        self._player = torch.where(is_first, self._names.index(player.name), self._player)
        optimizer: Any = getattr(player.optimizer, "optimizer", player.optimizer)  # inside Accelerate's wrapper
        optimizer.found_inf = (self._step >= 0).float()

    def raise_if_non_finite(self) -> None:
        """See `GanStep.raise_if_non_finite`."""
        step, index = torch.stack([self._step, self._player]).tolist()
        if step >= 0:
            name = self._names[index]
            raise _non_finite_error(name, {key: part.tolist() for key, part in self._values[name].items()}, step)


def _term_values(terms: list[dict[str, Tensor]]) -> dict[str, list[float]]:
    return {name: torch.stack([part[name] for part in terms]).tolist() for name in terms[0]}


def _non_finite_error(player: str, values: dict[str, list[float]], step: int) -> NonFiniteError:
    """The error that names the terms that were NaN or infinite on any rank and micro-batch; a collective call."""
    mine = [name for name, parts in values.items() if not all(map(math.isfinite, parts))]
    names = sorted(set(gather_lists(mine)))
    what = f"the term(s) {', '.join(names)}" if names else "the gradient (every loss term is finite)"
    return NonFiniteError(
        f"step {step + 1}: not finite: {what}; training stopped before the {player}'s optimiser step. Lower the "
        "learning rate or the weight of that term, or resume from the last checkpoint",
        values,
        step,
    )


def _nan_gradient_if_not_finite(loss: Tensor) -> Tensor:
    """The loss itself (0-d, float), whose gradient is NaN if it is not finite and else the same to the last bit.

    A loss can overflow while its gradient does not. NaN reaches every rank's averaged gradient, where the check sees it
    without an exchange of its own.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)
