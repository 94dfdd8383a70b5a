"""The `control` section: what may be steered while a run trains. Everything is off by default.

Losses are given as shares of the objective's chance value: 1 is chance, 0 perfect separation, in every formula.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from vsr_dist.core.errors import BadConfigError


@dataclass(frozen=True)
class GammaControl:
    """Steers the weights of R1 and R2 so that the discriminator's training loss stays at a wished level.

    `gamma <- clip(gamma * exp(rate * error))` after every step: a loss that drifts up to chance lowers the penalties,
    one that falls raises them. With the rule `sign` the error is `sign(target - EMA(loss))`: always a whole step, so
    that gamma overshoots by what it moves while the average and the discriminator follow, and swings about its place.
    With `proportional` it is `(target - EMA(loss)) / (1 - target)`, cut to [-1, 1]: an integral controller of log gamma
    in units of the wished distance from chance, which takes the whole step down at chance, the whole step up at twice
    the wished distance, and none at the target. `adversary.r1_gamma` and `r2_gamma` are the start, and their ratio
    stays. docs/drift.md compares the two rules.

    Attributes:
        target: wished training loss over its chance value, below 1; 0 switches it off.
        rule: how the error is taken.
        rate: greatest step of log gamma.
        decay: of the loss's moving average.
        after: first steps of the discriminator in which gamma is left alone; after a revival again.
        lowest: least value of the larger gamma.
        highest: greatest value of the larger gamma.
    """

    target: float = 0.0
    rule: Literal["sign", "proportional"] = "sign"
    rate: float = 0.02
    decay: float = 0.95
    after: int = 0
    lowest: float = 1e-3
    highest: float = 30.0

    def __post_init__(self) -> None:
        """Refuse numbers that could not steer."""
        _check(
            "gamma",
            {
                "target": 0 <= self.target < 1,
                "rate": 0 < self.rate < 1,
                "decay": 0 <= self.decay < 1,
                "after": self.after >= 0,
                "lowest": 0 < self.lowest < math.inf,
                "highest": self.lowest <= self.highest < math.inf,
            },
            self,
        )


@dataclass(frozen=True)
class WeightControl:
    """Sets the adversarial weight so that its gradient is a wished share of the image term's.

    `weight = EMA(clip(ratio * |grad image| / |grad adversarial|))`, norms at the generator's output, the image term
    with its weight: the adaptive weight of VQGAN (Esser et al. 2021, arXiv:2012.09841, equation 7, and its code, which
    clips at 1e4), with a wished ratio and an average. It takes the place of `loss.adversarial`; `train.ramp_steps`
    still multiplies it. A gradient that vanishes altogether leaves the weight alone. In the trainings of
    docs/drift_monitor.md 0.1 kept the PSNR, and 1 closed more of the gap in high frequencies for 0.9 dB.

    Attributes:
        ratio: wished ratio; 0 switches it off.
        decay: of the weight's moving average.
        lowest: least weight.
        highest: greatest weight.
    """

    ratio: float = 0.0
    decay: float = 0.9
    lowest: float = 1e-6
    highest: float = 1e4

    def __post_init__(self) -> None:
        """Refuse numbers that could not steer."""
        _check(
            "weight",
            {
                "ratio": 0 <= self.ratio < math.inf,
                "decay": 0 <= self.decay < 1,
                "lowest": 0 < self.lowest < math.inf,
                "highest": self.lowest <= self.highest < math.inf,
            },
            self,
        )


@dataclass(frozen=True)
class StepsControl:
    """Lets the discriminator rest while it is too strong, and step twice while it is too weak.

    After TecoGAN (Chu et al. 2020, arXiv:1811.09393), whose code rests it on a moving average of its advantage; here of
    its loss over chance, so that one level serves every objective. A resting discriminator still scores the batch, or
    it would never play again. The second step is on the same batch; with `control.gamma` on it comes only once the
    penalties are at their floor. 0.2 and 0.9 are the borders of the verdicts `too strong` and `weak`.

    Attributes:
        rest_below: loss over chance below which it rests; 0 switches that off.
        double_above: loss over chance above which it steps twice; 0 switches that off.
        decay: of the loss's moving average.
    """

    rest_below: float = 0.0
    double_above: float = 0.0
    decay: float = 0.95

    def __post_init__(self) -> None:
        """Refuse levels that exclude each other."""
        _check(
            "steps",
            {
                "rest_below": 0 <= self.rest_below < 1,
                "double_above": self.double_above == 0 or self.rest_below < self.double_above < math.inf,
                "decay": 0 <= self.decay < 1,
            },
            self,
        )


@dataclass(frozen=True)
class RevivalControl:
    """Starts a dead discriminator anew: fresh weights, fresh optimiser, and the ramp of the adversarial weight again.

    Dead is one with more than half of its logits dead on the held-out windows (`drift/dead_fraction`) at several checks
    in succession. The fresh weights depend on the seed and on how often it was done.

    Attributes:
        after: checks in succession; 0 switches it off.
        every_steps: steps between checks.
        at_most: times that it is done in a run.
    """

    after: int = 0
    every_steps: int = 500
    at_most: int = 3

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        rules = {"after": self.after >= 0, "every_steps": self.every_steps >= 1, "at_most": self.at_most >= 1}
        _check("revival", rules, self)


@dataclass(frozen=True)
class ControlConfig:
    """Which controllers are on. The ramp of the adversarial weight, always there, is `train.ramp_steps`."""

    gamma: GammaControl = field(default_factory=GammaControl)
    weight: WeightControl = field(default_factory=WeightControl)
    steps: StepsControl = field(default_factory=StepsControl)
    revival: RevivalControl = field(default_factory=RevivalControl)

    @property
    def learns_each_step(self) -> bool:
        """True if a controller reads every training step."""
        steps = self.steps
        return max(self.gamma.target, self.weight.ratio, steps.rest_below, steps.double_above) > 0

    @property
    def any_on(self) -> bool:
        """True if a controller is on at all."""
        return self.learns_each_step or self.revival.after > 0


def _check(name: str, rules: dict[str, bool], config: object) -> None:
    """Raise BadConfigError naming each value whose rule does not hold."""
    bad = [f"{key} {getattr(config, key)}" for key, holds in rules.items() if not holds]
    if bad:
        raise BadConfigError(f"control.{name}: out of range: {', '.join(bad)}; see vsr_dist.training.control_config")
