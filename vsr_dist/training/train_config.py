"""The configuration section `train`: how long, in which stages, with what precautions, and when it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.fields import io, speed

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
        accumulation_steps: micro-batches per optimiser step and process.
        max_grad_norm: gradients are scaled down to this L2 norm, per player.
        ema_decay: decay of the generator's moving average.
        precision: `float32`, or `bf16`, which runs generator and discriminator under bfloat16 autocast; losses and the
            perceptual network stay in float32. There is no float16: its range is too small for these losses and
            penalties, and one scaler cannot serve two players.
        channels_last: keep the convolutions' weights, and with them the images, channel by channel at each pixel,
            which suits tensor cores. Rounding differs.
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
        best_mode: whether the highest or the lowest value of it is the best.
        pictures: number of held-out windows shown in MLflow at each validation.
        perceptual_metric: `stlpips` adds `val/stlpips` (`vsr_dist.metrics.perceptual`) of the middle frame of each
            held-out window to the validation, at the cost of an AlexNet forward for each; `none` leaves it out.
    """

    steps: int = 100_000
    epochs: int = 0
    warmup_steps: int = 0
    ramp_steps: int = 0
    accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
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
    best_mode: Literal["max", "min"] = io("max")
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
        if faults:
            raise BadConfigError(f"train: {'; '.join(faults)}")
