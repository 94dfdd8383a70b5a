"""What is controlled while a run trains: penalties, the adversarial weight, and weights given as shares.

Every decision is a function of numbers that were averaged over the ranks, so all ranks decide the same. The state is
0-d float64 tensors on the device, so that no step waits for the host; checkpoints hold it as plain numbers. The rules
are documented in `vsr_dist.training.config` and `vsr_dist.losses.objective.LossConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsr_dist.core.collectives import mean_over_ranks
from vsr_dist.core.errors import BadCheckpointError
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.losses.objective import ADVERSARIAL_TERM, TERMS, LossConfig
from vsr_dist.training.config import AdversarialConfig, GammaControl

_LOSS = "loss_d/adversarial"
# A gradient norm below this is no gradient: dividing by it would say nothing.
_VANISHED = 1e-12
# Weight of a term in its first measured step under `balance: shares`: large enough to measure the gradient in float32,
# too small to move the generator.
_PROBE_WEIGHT = 1e-6


@dataclass(frozen=True)
class StepPlan:
    """How one optimiser step is played; the same on every rank.

    weights: factor of every term in force, ramp included; positive for those that act. r1_gamma, r2_gamma: weights of
    the discriminator's penalties. measure: return the gradient norm of every term at the generator's output.
    """

    is_warmup: bool
    weights: Mapping[str, float | Tensor]
    r1_gamma: float | Tensor
    r2_gamma: float | Tensor
    measure: bool = False


@dataclass(frozen=True)
class MicroStep:
    """What one micro-batch tells, as detached 0-d tensors.

    scalars: for the log, by metric name. gradient_norms: by term, the L2 norm of the gradient at the generator's
    output, of the mean over this micro-batch without the term's weight; empty unless the plan measures them.
    """

    scalars: dict[str, Tensor]
    gradient_norms: dict[str, Tensor]


class Controllers:
    """The controllers of a run. One that is off leaves its part of the plan as configured.

    shares: the terms whose configured weight is a share of the image term's gradient, with that share.
    """

    def __init__(self, adversarial: AdversarialConfig, loss: LossConfig, device: torch.device) -> None:
        self.adversarial, self.loss, self.device = adversarial, loss, device
        self.chance = ADVERSARIAL[adversarial.loss].chance
        self._configured = {**loss.weights(), ADVERSARIAL_TERM: adversarial.weight}
        by_share = loss.balance == "shares"
        steered = adversarial.weight_control.ratio > 0
        self.shares = {
            name: weight
            for name, weight in self._configured.items()
            if by_share and name != "image" and weight > 0 and not (name == ADVERSARIAL_TERM and steered)
        }
        self.restore(None)

    def plan(self, adversarial_factor: float, *, measure: bool = False) -> StepPlan:
        """The next step: `adversarial_factor` is the ramp's share of the adversarial weight, 0 in the warm-up."""
        weights: dict[str, float | Tensor] = dict(self._configured)
        if self.adversarial.weight_control.ratio > 0:
            weights[ADVERSARIAL_TERM] = self._controlled_weight()
        weights |= {name: self._shared_weight(name) for name in self.shares}
        weights = {name: self._float32(weight) for name, weight in weights.items()}
        weights[ADVERSARIAL_TERM] = weights[ADVERSARIAL_TERM] * adversarial_factor
        scale = self._gamma / self._start_gamma if self.adversarial.gamma_control.target > 0 else 1.0
        is_warmup = adversarial_factor == 0.0
        return StepPlan(
            is_warmup=is_warmup,
            weights=weights,
            r1_gamma=self._float32(self.adversarial.r1_gamma * scale),
            r2_gamma=self._float32(self.adversarial.r2_gamma * scale),
            measure=measure or self._wants_norms(is_warmup),
        )

    def learn(self, results: Sequence[MicroStep]) -> None:
        """Take in what the micro-batches of one step returned; a collective call while a controller is on."""
        rows = [dict(result.gradient_norms) for result in results]
        for row, result in zip(rows, results, strict=True):
            if _LOSS in result.scalars:
                row[_LOSS] = result.scalars[_LOSS]
        names = [name for name in rows[0] if self._reads(name)]
        if not names:
            return
        stacked = torch.stack([torch.stack([row[name].double() for name in names]) for row in rows])
        means = dict(zip(names, mean_over_ranks(stacked.mean(dim=0)).unbind(), strict=True))
        if _LOSS in means:
            self._update_gamma(means[_LOSS] / self.chance)
        if "image" in means:
            if ADVERSARIAL_TERM in means:
                self._update_weight(means[ADVERSARIAL_TERM], means["image"])
            self._update_shares(means)

    def scalars(self) -> dict[str, float]:
        """`control/*` of the controllers that are on; waits for the device."""
        values: dict[str, float] = {}
        if self.adversarial.gamma_control.target > 0:
            scale = float(self._gamma) / self._start_gamma
            values["control/r1_gamma"] = self.adversarial.r1_gamma * scale
            values["control/r2_gamma"] = self.adversarial.r2_gamma * scale
        if self.adversarial.weight_control.ratio > 0:
            values["control/adversarial_weight"] = float(self._controlled_weight())
        measured = [name for name in self.shares if self._measured[name][0] > 0]
        return values | {f"control/{name}_weight": float(self._shared_weight(name)) for name in measured}

    def saved(self) -> dict[str, Any]:
        """The state as JSON values, for a checkpoint; a moving average that has not begun is None."""
        return {
            "gamma": float(self._gamma),
            "gamma_loss": _number_or_none(self._gamma_loss),
            "gamma_steps": self._gamma_steps,
            "adversarial_weight": _number_or_none(self._weight),
            "shares": {
                name: {"steps": steps, "term": float(term), "image": float(image)}
                for name, (steps, term, image) in self._measured.items()
            },
        }

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Continue from what `saved` returned, or begin for None; BadCheckpointError for anything else."""
        self._start_gamma = max(self.adversarial.r1_gamma, self.adversarial.r2_gamma)
        nothing: dict[str, Any] = {
            "gamma": self._start_gamma,
            "gamma_loss": None,
            "gamma_steps": 0,
            "adversarial_weight": None,
            "shares": {name: {"steps": 0, "term": 0.0, "image": 0.0} for name in self.shares},
        }
        state: Mapping[str, Any] = nothing if saved is None else saved
        if state.keys() != nothing.keys() or state["shares"].keys() != self.shares.keys():
            raise BadCheckpointError(
                f"the checkpoint's controllers hold {sorted(state)}; expected {sorted(nothing)} with shares of "
                f"{sorted(self.shares)}: another version of this program wrote it"
            )
        self._gamma = self._tensor(state["gamma"])
        self._gamma_loss = self._tensor(state["gamma_loss"])
        self._gamma_steps = int(state["gamma_steps"])
        self._weight = self._tensor(state["adversarial_weight"])
        self._measured: dict[str, tuple[int, Tensor, Tensor]] = {
            name: (int(part["steps"]), self._tensor(part["term"]), self._tensor(part["image"]))
            for name, part in state["shares"].items()
        }

    def _wants_norms(self, is_warmup: bool) -> bool:
        """True while a rule needs the gradient norms of the terms that act."""
        acting = [name for name in self.shares if not is_warmup or (name in TERMS and TERMS[name].in_warmup)]
        measuring = any(self._measured[name][0] < self.loss.balance_steps for name in acting)
        return measuring or (self.adversarial.weight_control.ratio > 0 and not is_warmup)

    def _reads(self, name: str) -> bool:
        """True if a rule reads the loss or the gradient norm of this name."""
        if name == _LOSS:
            return self.adversarial.gamma_control.target > 0
        steered = self.adversarial.weight_control.ratio > 0
        return name in self.shares or (steered and name == ADVERSARIAL_TERM) or (name == "image" and self._needs_image)

    @property
    def _needs_image(self) -> bool:
        return bool(self.shares) or self.adversarial.weight_control.ratio > 0

    def _update_gamma(self, loss: Tensor) -> None:
        rule = self.adversarial.gamma_control
        self._gamma_loss = _moving_average(self._gamma_loss, loss, rule.decay)
        self._gamma_steps += 1
        if self._gamma_steps > rule.after:
            moved = self._gamma * torch.exp(rule.rate * gamma_error(rule, self._gamma_loss))
            self._gamma = moved.clamp(rule.lowest, rule.highest)

    def _update_weight(self, adversarial_norm: Tensor, image_norm: Tensor) -> None:
        rule = self.adversarial.weight_control
        if rule.ratio == 0:
            return
        target = rule.ratio * self.loss.image * image_norm / adversarial_norm.clamp(min=_VANISHED)
        updated = _moving_average(self._weight, target.clamp(rule.lowest, rule.highest), rule.decay)
        self._weight = torch.where(adversarial_norm < _VANISHED, self._weight, updated)

    def _update_shares(self, means: Mapping[str, Tensor]) -> None:
        for name in self.shares:
            steps, term, image = self._measured[name]
            if name in means and steps < self.loss.balance_steps:
                self._measured[name] = (steps + 1, term + means[name], image + means["image"])

    def _controlled_weight(self) -> Tensor:
        return torch.where(torch.isnan(self._weight), self._configured[ADVERSARIAL_TERM], self._weight)

    def _shared_weight(self, name: str) -> float | Tensor:
        steps, term, image = self._measured[name]
        if steps == 0:
            return _PROBE_WEIGHT
        return self.shares[name] * self.loss.image * image / term.clamp(min=_VANISHED)

    def _tensor(self, value: float | None) -> Tensor:
        return torch.tensor(math.nan if value is None else value, dtype=torch.float64, device=self.device)

    @staticmethod
    def _float32(value: float | Tensor) -> float | Tensor:
        """Two 0-d tensors of unlike type would make a float64 loss; numbers take the other operand's type."""
        return value.float() if isinstance(value, Tensor) else value


def gamma_error(rule: GammaControl, loss: Tensor) -> Tensor:
    """How far an averaged loss over chance (0-d) is from its target, in [-1, 1]; above 0 if it is too low."""
    if rule.rule == "sign":
        return torch.sign(rule.target - loss)
    return ((rule.target - loss) / (1.0 - rule.target)).clamp(-1.0, 1.0)


def _moving_average(known: Tensor, value: Tensor, decay: float) -> Tensor:
    """Exponential moving average that begins at its first value; `known` is NaN before."""
    return torch.where(torch.isnan(known), value, decay * known + (1.0 - decay) * value)


def _number_or_none(value: Tensor) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number
