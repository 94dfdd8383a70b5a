"""How a run trains: duration, optimisers and their schedules, the adversarial part, and what is controlled in it.

Plain dataclasses, which `vsr_dist.config` composes, and the schedules as pure functions of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch

from vsr_dist.core.config_io import io, speed
from vsr_dist.core.errors import BadConfigError, nearest_hint
from vsr_dist.losses.adversarial import AdversarialName
from vsr_dist.losses.penalties import PenaltyName
from vsr_dist.metrics.registry import TABLE, direction_of

# Fused: one pass over memory per step, on CPUs as on GPUs.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
# Progress from 0 to 1 -> share of the way from `final_ratio` (0) back to the full learning rate (1).
SCHEDULES: dict[str, Callable[[float], float]] = {
    # Loshchilov and Hutter 2017 (SGDR, arXiv:1608.03983), equation 5, without restarts.
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
}


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser of one player, and how its learning rate falls.

    Attributes:
        kind: `adam` (Kingma and Ba 2015) or `adamw` (Loshchilov and Hutter 2019), from `OPTIMIZERS`.
        learning_rate: at the start.
        betas: decay rates of the first and second moment.
        weight_decay: L2 penalty of `adam`, decoupled decay of `adamw`.
        schedule: `cosine` or `linear`, from `SCHEDULES`.
        schedule_start: where the schedule begins: `run` at step 0, `adversarial` where the warm-up ends; until then the
            learning rate is constant.
        final_ratio: learning rate at the last step as a share of the first; 1 keeps it constant.
    """

    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    schedule: Literal["cosine", "linear"] = "cosine"
    schedule_start: Literal["run", "adversarial"] = "run"
    final_ratio: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that the optimiser cannot run with."""
        if not 0 < self.learning_rate < math.inf or not 0 <= self.final_ratio < math.inf:
            raise BadConfigError("expected a learning_rate above 0 and a final_ratio of at least 0, both finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise BadConfigError(f"betas are {self.betas}; expected two numbers from 0 to below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise BadConfigError(f"weight_decay is {self.weight_decay}; expected a finite number of at least 0")


def make_optimizer(network: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimiser over all parameters of a network."""
    options = {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay, "fused": True}
    return OPTIMIZERS[config.kind](network.parameters(), **options)


def learning_rate_at(config: OptimizerConfig, step: int, num_steps: int, warmup_steps: int = 0) -> float:
    """From `learning_rate` at the schedule's first step to `final_ratio` of it at step `num_steps` - 1.

    The first step is 0, or `warmup_steps` with `schedule_start: adversarial`.
    """
    first = warmup_steps if config.schedule_start == "adversarial" else 0
    progress = max(step - first, 0) / max(num_steps - 1 - first, 1)
    low = config.learning_rate * config.final_ratio
    return low + (config.learning_rate - low) * SCHEDULES[config.schedule](progress)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every parameter group the same learning rate."""
    groups: Iterable[dict[str, object]] = optimizer.param_groups
    for group in groups:
        group["lr"] = learning_rate


def adversarial_factor_at(step: int, warmup_steps: int, ramp_steps: int) -> float:
    """Share of the adversarial weight in force: 0 in the warm-up, then a line up to 1 over `ramp_steps`."""
    if step < warmup_steps:
        return 0.0
    return min(1.0, (step - warmup_steps + 1) / max(ramp_steps, 1))


@dataclass(frozen=True)
class GammaControl:
    """Controls the weights of R1 and R2 so that the discriminator's training loss stays near a target.

    `gamma <- clip(gamma * exp(rate * error))` after every step: a loss near chance lowers the penalties, a low loss
    raises them. `adversarial.r1_gamma` and `r2_gamma` are the start values; their ratio stays. Rules for the error:

    - `sign`: `sign(target - EMA(loss))`, always a full step. Gamma overshoots and oscillates about its place.
    - `proportional`: `(target - EMA(loss)) / (1 - target)`, cut to [-1, 1]: an integral controller of log gamma. A full
      step down at chance, none at the target, a full step up at twice the target's distance from chance.

    Losses are shares of the objective's chance value: 1 is chance, 0 perfect separation, in every formula.

    Attributes:
        target: target of the training loss over its chance value, below 1; 0 switches the control off.
        rule: how the error is taken.
        rate: greatest step of log gamma.
        decay: of the loss's moving average.
        after: first steps of the discriminator in which gamma is left alone.
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
        """Refuse values out of range."""
        _check(
            "gamma_control",
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
    """Sets the adversarial weight so that its gradient is a given share of the image term's.

    `weight = EMA(clip(ratio * |grad image| / |grad adversarial|))`, norms at the generator's output, the image term
    with its weight: the adaptive weight of VQGAN (Esser et al. 2021, arXiv:2012.09841, equation 7, and its code, which
    clips at 1e4), with a target ratio and an average. It takes the place of `adversarial.weight`; `train.ramp_steps`
    still multiplies it. A gradient that vanishes altogether leaves the weight alone. In the trainings of
    docs/drift_monitor.md 0.1 kept the PSNR, and 1 closed more of the gap in high frequencies for 0.9 dB.

    Attributes:
        ratio: target ratio; 0 switches the control off.
        decay: of the weight's moving average.
        lowest: least weight.
        highest: greatest weight.
    """

    ratio: float = 0.0
    decay: float = 0.9
    lowest: float = 1e-6
    highest: float = 1e4

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check(
            "weight_control",
            {
                "ratio": 0 <= self.ratio < math.inf,
                "decay": 0 <= self.decay < 1,
                "lowest": 0 < self.lowest < math.inf,
                "highest": self.lowest <= self.highest < math.inf,
            },
            self,
        )


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial part: its loss, its weight in the generator's loss, the discriminator's penalties, its control.

    Attributes:
        loss: adversarial loss of both players (`vsr_dist.losses.adversarial`).
        weight: weight of the generator's adversarial term; 0 trains without a discriminator. Under
            `loss.balance: shares` it is a share, as the other weights.
        r1_gamma: weight of the discriminator's gradient penalty on real clips; 0 switches it off.
        r2_gamma: the same on generated clips.
        penalty: `exact` differentiates twice; `finite_difference` estimates the same quantity from the logits of the
            clip plus and minus noise (`vsr_dist.losses.penalties`): no second derivative, three forwards in one; takes
            no dropout.
        sigma: standard deviation of that noise, for images in [0, 1]; the difference drowns in bfloat16 below 0.03.
        penalty_precision: `float32` takes the discriminator's step out of autocast while a penalty is on, `autocast`
            leaves it there: faster, and in bfloat16 about 1 % off with `exact`, 17 % with `finite_difference`.
        gamma_control: controls both gammas by the discriminator's loss.
        weight_control: controls the weight by the ratio of gradients.
    """

    loss: AdversarialName = "rpgan"
    weight: float = 0.001
    r1_gamma: float = 0.0
    r2_gamma: float = 0.0
    penalty: PenaltyName = "exact"
    sigma: float = 0.03
    penalty_precision: Literal["float32", "autocast"] = "float32"
    gamma_control: GammaControl = field(default_factory=GammaControl)
    weight_control: WeightControl = field(default_factory=WeightControl)

    def __post_init__(self) -> None:
        """Refuse negative weights and penalties, and noise of no size."""
        _check(
            "",
            {
                "weight": 0 <= self.weight < math.inf,
                "r1_gamma": 0 <= self.r1_gamma < math.inf,
                "r2_gamma": 0 <= self.r2_gamma < math.inf,
                "sigma": 0 < self.sigma < math.inf,
            },
            self,
        )

    @property
    def is_on(self) -> bool:
        """True if a discriminator takes part."""
        return self.weight > 0


_AT_LEAST = {
    "epochs": 0,
    "warmup_steps": 0,
    "ramp_steps": 0,
    "perceptual_frames": 0,
    "max_rollbacks": 0,
    "threads": 0,
    "pictures": 0,
    "steps": 1,
    "accumulation_steps": 1,
    "log_every": 1,
    "validate_every": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
}


@dataclass(frozen=True)
class TrainConfig:
    """How long and in which stages a run trains, and when it reports.

    Attributes:
        steps: optimiser steps of each player (the discriminator rests in the warm-up).
        epochs: passes over the training windows; above 0 it sets `steps`, 0 leaves `steps` as it is.
        warmup_steps: first steps, without the adversarial and the perceptual term.
        ramp_steps: steps after the warm-up over which the adversarial weight grows to its full value.
        carry_state: carry the recurrent state of the generator over consecutive windows of a sequence, without its
            gradient (truncated backpropagation through time); needs data.order=ordered and a recurrent generator.
        accumulation_steps: micro-batches per optimiser step and process.
        max_grad_norm: gradients are scaled down to this L2 norm, per player.
        ema_decay: decay of the generator's moving average.
        precision: `float32`, or `bf16`, which runs generator and discriminator under bfloat16 autocast; losses and the
            perceptual network stay in float32. There is no float16: its range is too small for these losses and
            penalties, and one scaler cannot serve two players.
        channels_last: keep the convolutions' weights, and with them the images, channel by channel at each pixel,
            which suits tensor cores. Rounding differs.
        checkpoint_activations: keep the generator's activations of one frame only and compute the others again in the
            backward pass: long clips in little memory, for about a third more time. For generators that run frame by
            frame. Rounding differs, since frames are no longer computed together.
        compile: `torch.compile` both networks. Rounding differs; takes no `exact` gradient penalty, for compiled code
            has no second derivative.
        on_non_finite: what a loss or gradient that is not finite does. `stop` ends the run before the optimiser moves;
            `rollback` goes on from the last good checkpoint with the learning rates times `rollback_factor`, at most
            `max_rollbacks` times in a run, and then stops.
        rollback_factor: share of the learning rates that is left by each rollback.
        max_rollbacks: rollbacks after which the run stops all the same.
        perceptual_frames: frames per clip that the perceptual term looks at; 0 means all.
        init_generator: run directory or `generator.safetensors` of a trained generator of the same architecture, from
            whose weights the generator and its average start; empty starts afresh. A resumed run does not read it.
        allow_batch_norm: yes to batch norm in the discriminator on several processes, where each normalises by its
            own part of the batch.
        processes: number of processes that this configuration is meant for; a launch with another number is
            refused. Empty accepts any.
        threads: CPU threads per process for torch; 0 leaves torch's own choice.
        log_every: steps between log lines.
        validate_every: steps between validations on the held-out windows.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        keep_checkpoints: newest checkpoints that are kept.
        best_metric: metric of the validation whose best checkpoint is kept as `checkpoints/best`; empty keeps none.
        best_mode: whether its highest or its lowest value is the best; empty for the direction of the metric.
        pictures: number of held-out windows shown in MLflow at each validation.
        perceptual_metric: `stlpips` adds `val/stlpips` (`vsr_dist.metrics.perceptual`) of the middle frame of each
            held-out window to the validation, at the cost of an AlexNet forward for each; `none` leaves it out.
    """

    steps: int = 100_000
    epochs: int = 0
    warmup_steps: int = 0
    ramp_steps: int = 0
    carry_state: bool = False
    accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    checkpoint_activations: bool = False
    compile: bool = False
    on_non_finite: Literal["stop", "rollback"] = "stop"
    rollback_factor: float = 0.5
    max_rollbacks: int = 3
    perceptual_frames: int = 0
    init_generator: str | None = None
    allow_batch_norm: bool = io(False)
    processes: int | None = io(None)
    threads: int = speed(0)
    log_every: int = io(50)
    validate_every: int = io(500)
    checkpoint_every: int = io(1000)
    keep_checkpoints: int = io(2)
    best_metric: str | None = io("val/psnr_y")
    best_mode: Literal["max", "min"] | None = io(None)
    pictures: int = io(4)
    perceptual_metric: Literal["none", "stlpips"] = io("none")

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense; all faults at once."""
        faults = [
            f"{name} is {getattr(self, name)}, expected at least {least}"
            for name, least in _AT_LEAST.items()
            if getattr(self, name) < least
        ]
        if not self.max_grad_norm > 0:
            faults.append(f"max_grad_norm is {self.max_grad_norm}, expected above 0 (.inf does not clip)")
        if not 0 <= self.ema_decay < 1:
            faults.append(f"ema_decay is {self.ema_decay}, expected at least 0 and below 1")
        if not 0 < self.rollback_factor < 1:
            faults.append(f"rollback_factor is {self.rollback_factor}, expected above 0 and below 1")
        if self.best_metric and self.best_mode is None and not direction_of(self.best_metric):
            hint = nearest_hint(self.best_metric, [metric.scalar for metric in TABLE])
            faults.append(
                f"best_metric is {self.best_metric}{hint}, whose better direction is not known: set best_mode"
            )
        if faults:
            raise BadConfigError(f"train: {'; '.join(faults)}")

    @property
    def is_highest_best(self) -> bool:
        """True if the best checkpoint is that with the highest `best_metric`."""
        return self.best_mode == "max" if self.best_mode else direction_of(self.best_metric or "") > 0


def _check(name: str, rules: dict[str, bool], config: object) -> None:
    """Raise BadConfigError naming each value whose rule does not hold."""
    bad = [f"{key} {getattr(config, key)}" for key, holds in rules.items() if not holds]
    if bad:
        section = f"adversarial.{name}".rstrip(".")
        raise BadConfigError(f"{section}: out of range: {', '.join(bad)}; see vsr_dist.training.config")
