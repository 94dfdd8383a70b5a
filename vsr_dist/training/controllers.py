"""What is steered while a run trains: the penalties, the adversarial weight, the discriminator's steps, its revival.

Every decision is a pure function of numbers that were averaged over the ranks, in float64 on the host, so that all
ranks decide the same; the numbers that it remembers are in every checkpoint. The rules are in `control_config.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vsr_dist.core.collectives import mean_over_ranks
from vsr_dist.core.errors import BadCheckpointError
from vsr_dist.losses.objective import LossConfig
from vsr_dist.metrics.drift import DEAD_FRACTION
from vsr_dist.training.adversary import AdversaryConfig
from vsr_dist.training.control_config import ControlConfig, GammaControl
from vsr_dist.training.schedule import adversarial_factor_at

LOSS, ADVERSARIAL_NORM, IMAGE_NORM = "loss_d/adversarial", "gradient/adversarial", "gradient/image"
# A norm below this is no gradient: dividing by it would say nothing.
_VANISHED = 1e-12


@dataclass(frozen=True)
class StepPlan:
    """How one optimiser step is played; the same on every rank.

    discriminator_steps: 0 lets it score without learning. measure_gradients: return the norms of the adversarial and
    the image gradient at the generator's output.
    """

    adversarial_weight: float
    r1_gamma: float
    r2_gamma: float
    discriminator_steps: int = 1
    measure_gradients: bool = False


@dataclass
class ControlState:
    """All that the controllers remember; plain numbers that JSON keeps exactly."""

    gamma: float
    adversarial_weight: float
    weight_updates: int = 0
    gamma_loss: float | None = None
    gamma_steps: int = 0
    steps_loss: float | None = None
    discriminator_steps: int = 1
    dead_checks: int = 0
    revivals: int = 0
    revived_at: int = 0


class Controllers:
    """The controllers of a run; one that is off leaves its part of the plan as configured."""

    def __init__(self, config: ControlConfig, loss: LossConfig, adversary: AdversaryConfig, chance: float) -> None:
        """`chance`: discriminator loss at chance of the objective in use."""
        self.config, self.loss, self.adversary, self.chance = config, loss, adversary, chance
        self.state = self._fresh()

    def _fresh(self) -> ControlState:
        return ControlState(max(self.adversary.r1_gamma, self.adversary.r2_gamma), self.loss.adversarial)

    def plan(self) -> StepPlan:
        """How the next step is played."""
        state, start = self.state, self._fresh().gamma
        share = state.gamma / start if start > 0 else 1.0
        return StepPlan(
            adversarial_weight=state.adversarial_weight,
            r1_gamma=self.adversary.r1_gamma * share,
            r2_gamma=self.adversary.r2_gamma * share,
            discriminator_steps=state.discriminator_steps,
            measure_gradients=self.config.weight.ratio > 0,
        )

    def factor_at(self, step: int, warmup_steps: int, ramp_steps: int) -> float:
        """Share of the adversarial weight in force: the schedule's, and after a revival its ramp again."""
        factor = adversarial_factor_at(step, warmup_steps, ramp_steps)
        if self.state.revivals == 0:
            return factor
        return min(factor, adversarial_factor_at(step, self.state.revived_at, ramp_steps))

    def learn(self, micro_steps: Sequence[Mapping[str, Tensor]]) -> None:
        """Take in what the micro-batches of one step returned (0-d tensors by name); a collective call.

        Does nothing without a call to others while no controller is on, or in the warm-up.
        """
        if not self.config.learns_each_step or LOSS not in micro_steps[0]:
            return
        names = [name for name in (LOSS, ADVERSARIAL_NORM, IMAGE_NORM) if name in micro_steps[0]]
        rows = torch.stack([torch.stack([scalars[name].double() for name in names]) for scalars in micro_steps])
        means = dict(zip(names, mean_over_ranks(rows.mean(dim=0)).tolist(), strict=True))
        self._steer_gamma(means[LOSS] / self.chance)
        self._steer_weight(means.get(ADVERSARIAL_NORM, 0.0), means.get(IMAGE_NORM, 0.0))
        self._steer_steps(means[LOSS] / self.chance)

    def _steer_gamma(self, loss: float) -> None:
        rule, state = self.config.gamma, self.state
        if rule.target == 0:
            return
        state.gamma_loss = _averaged(state.gamma_loss, loss, rule.decay)
        state.gamma_steps += 1
        if state.gamma_steps <= rule.after:
            return
        error = gamma_error(rule, state.gamma_loss)
        state.gamma = min(max(state.gamma * math.exp(rule.rate * error), rule.lowest), rule.highest)

    def _steer_weight(self, adversarial_norm: float, image_norm: float) -> None:
        rule, state = self.config.weight, self.state
        if rule.ratio == 0 or adversarial_norm < _VANISHED:
            return
        wished = rule.ratio * self.loss.image * image_norm / adversarial_norm
        wished = min(max(wished, rule.lowest), rule.highest)
        known = state.adversarial_weight if state.weight_updates else None
        state.adversarial_weight = _averaged(known, wished, rule.decay)
        state.weight_updates += 1

    def _steer_steps(self, loss: float) -> None:
        rule, state = self.config.steps, self.state
        if max(rule.rest_below, rule.double_above) == 0:
            return
        state.steps_loss = _averaged(state.steps_loss, loss, rule.decay)
        at_floor = self.config.gamma.target == 0 or state.gamma <= self.config.gamma.lowest
        doubles = 0 < rule.double_above < state.steps_loss and at_floor
        state.discriminator_steps = 0 if state.steps_loss < rule.rest_below else 2 if doubles else 1

    def must_check(self, done: int, warmup_steps: int) -> bool:
        """True if the dead fraction is wanted after `done` steps."""
        rule = self.config.revival
        playing = rule.after > 0 and done > warmup_steps and self.state.revivals < rule.at_most
        return playing and done % rule.every_steps == 0

    def check(self, done: int, dead_fraction: float) -> bool:
        """Take in a dead fraction (equal on all ranks); True if the discriminator must start anew now."""
        state = self.state
        state.dead_checks = state.dead_checks + 1 if dead_fraction > DEAD_FRACTION else 0
        if state.dead_checks < self.config.revival.after:
            return False
        # What was learnt of the dead one says nothing about its successor.
        fresh = self._fresh()
        fresh.revivals, fresh.revived_at = state.revivals + 1, done
        self.state = fresh
        return True

    def scalars(self) -> dict[str, float]:
        """`control/*` of the controllers that are on."""
        config, state, plan = self.config, self.state, self.plan()
        values: dict[str, float] = {}
        if config.gamma.target > 0:
            values |= {"control/r1_gamma": plan.r1_gamma, "control/r2_gamma": plan.r2_gamma}
        if config.weight.ratio > 0:
            values["control/adversarial_weight"] = state.adversarial_weight
        if max(config.steps.rest_below, config.steps.double_above) > 0:
            values["control/discriminator_steps"] = float(state.discriminator_steps)
        if config.revival.after > 0:
            values |= {"control/dead_checks": float(state.dead_checks), "control/revivals": float(state.revivals)}
        return values

    def saved(self) -> dict[str, Any]:
        """The state as JSON values, for a checkpoint."""
        return asdict(self.state)

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Go on from what `saved` returned, or begin for None; BadCheckpointError for anything else."""
        if saved is None:
            self.state = self._fresh()
            return
        expected = asdict(self.state).keys()
        if saved.keys() != expected:
            raise BadCheckpointError(
                f"the checkpoint's controllers hold {sorted(saved)}; expected {sorted(expected)}: it is of another "
                "version of this program"
            )
        self.state = ControlState(**saved)


def gamma_error(rule: GammaControl, loss: float) -> float:
    """How far an averaged loss over chance is from its target, in [-1, 1]; above 0 if it is too low."""
    if rule.rule == "sign":
        return float((loss < rule.target) - (loss > rule.target))
    return min(max((rule.target - loss) / (1.0 - rule.target), -1.0), 1.0)


def _averaged(known: float | None, value: float, decay: float) -> float:
    """Exponential moving average that begins at its first value."""
    return value if known is None else decay * known + (1.0 - decay) * value
