"""The training loop: read, step, average, log, validate, save; and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel

from vsr_dist.core.collectives import any_rank, barrier, broadcast_buffers, gather_lists
from vsr_dist.core.console import Progress
from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.fields import io, speed
from vsr_dist.core.rng import seed_step
from vsr_dist.core.stats import IntervalMeans
from vsr_dist.core.world import World
from vsr_dist.data.loader import TrainLoader
from vsr_dist.data.reader import check_replaced
from vsr_dist.data.ring import ClipBatch
from vsr_dist.training import checkpoint
from vsr_dist.training.gan_step import GanStep, set_learning_rate, spread_frames
from vsr_dist.training.schedule import OptimizerConfig, adversarial_factor_at, learning_rate_at
from vsr_dist.training.tracking import Tracker
from vsr_dist.training.validation import Validator


@dataclass(frozen=True)
class TrainConfig:
    """How long and in which stages a run trains, and when it reports.

    Attributes:
        steps: optimiser steps of each player (the discriminator rests in the warm-up).
        warmup_steps: first steps, without the adversarial and the perceptual term.
        ramp_steps: steps after the warm-up over which the adversarial weight grows to its full value.
        accumulation_steps: micro-batches per optimiser step and process.
        max_grad_norm: gradients are scaled down to this L2 norm, per player.
        ema_decay: decay of the generator's moving average.
        precision: `float32`, or `bf16`, which runs the networks under bfloat16 autocast.
        perceptual_frames: frames per clip that the perceptual term looks at; 0 means all.
        processes: number of processes that this configuration is meant for; a launch with another number is
            refused. Empty accepts any.
        threads: CPU threads per process for torch; 0 leaves torch's own choice.
        log_every: steps between log lines.
        validate_every: steps between validations on the held-out windows.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        keep_checkpoints: newest checkpoints that are kept.
        pictures: number of held-out windows shown in MLflow at each validation.
    """

    steps: int = 100_000
    warmup_steps: int = 0
    ramp_steps: int = 0
    accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["float32", "bf16"] = "float32"
    perceptual_frames: int = 0
    processes: int | None = io(None)
    threads: int = speed(0)
    log_every: int = io(50)
    validate_every: int = io(500)
    checkpoint_every: int = io(1000)
    keep_checkpoints: int = io(2)
    pictures: int = io(4)

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense; all faults at once."""
        lowest = dict.fromkeys(("warmup_steps", "ramp_steps", "perceptual_frames", "threads", "pictures"), 0)
        lowest |= dict.fromkeys(("steps", "accumulation_steps", "log_every", "validate_every"), 1)
        lowest |= dict.fromkeys(("checkpoint_every", "keep_checkpoints"), 1)
        faults = [
            f"{name} is {getattr(self, name)}, expected at least {least}"
            for name, least in lowest.items()
            if getattr(self, name) < least
        ]
        if not self.max_grad_norm > 0:
            faults.append(f"max_grad_norm is {self.max_grad_norm}, expected above 0 (.inf does not clip)")
        if not 0 <= self.ema_decay < 1:
            faults.append(f"ema_decay is {self.ema_decay}, expected at least 0 and below 1")
        if faults:
            raise BadConfigError(f"train: {'; '.join(faults)}")


@dataclass
class Parts:
    """What `build.py` composes for one rank; networks are held both prepared (in `step`) and unwrapped."""

    accelerator: Accelerator
    world: World
    step: GanStep
    live: checkpoint.Restorable
    ema: AveragedModel
    loader: TrainLoader
    validator: Validator
    tracker: Tracker
    run_dir: Path


@dataclass
class _Interval:
    """Steps since the last log line, without validation and saving: their number, time, and time waited for data."""

    num_steps: int = 0
    seconds: float = 0.0
    data_wait_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: metrics of the last validation, optimiser steps in all, training speed since start or resume."""

    metrics: dict[str, float]
    steps: int
    clips_per_s: float


class Stopped(Exception):  # noqa: N818 - not an error: it is how a run ends that was told to
    """The run was told to stop and has saved a checkpoint after `steps` steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.steps = steps


class Trainer:
    """Runs the loop from any step. All ranks make the same calls in the same order."""

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        *,
        seed: int,
        generator_schedule: OptimizerConfig,
        discriminator_schedule: OptimizerConfig,
        checkpoint_state: dict[str, Any],
        stop_requested: Callable[[], bool],
    ) -> None:
        self.config, self.parts, self.seed = config, parts, seed
        self.schedules = {"generator": generator_schedule, "discriminator": discriminator_schedule}
        self.checkpoint_state = checkpoint_state
        self.stop_requested = stop_requested
        self.means = IntervalMeans()
        self._interval = _Interval()
        self._trained_s = 0.0

    def run(self, first_step: int) -> Outcome:
        """Train from `first_step` (steps already done) to the end; returns the last validation."""
        config, parts = self.config, self.parts
        metrics: dict[str, float] = {}
        batches = parts.loader.batches(first_step, parts.accelerator.device)
        with Progress(config.steps, "step", start=first_step, enabled=parts.world.is_main) as progress:
            if first_step in (0, config.steps):
                # At 0 for a curve that starts at its beginning; at the end if only the publication was interrupted.
                metrics = self._validate(first_step, progress)
            for step in range(first_step, config.steps):
                self._train_step(step, batches)
                done = step + 1
                progress.advance()
                if done % config.log_every == 0 or done == config.steps:
                    self._log(done, progress)
                if done % config.validate_every == 0 or done == config.steps:
                    metrics = self._validate(done, progress)
                stopping = self._must_stop(done)
                if stopping or done % config.checkpoint_every == 0 or done == config.steps:
                    self._save(done)
                if stopping:
                    raise Stopped(done)
        batches.close()
        clips = (config.steps - first_step) * parts.loader.config.batch_clips
        return Outcome(metrics, config.steps, clips / self._trained_s if clips else 0.0)

    def _must_stop(self, done: int) -> bool:
        """True on every rank if one was told to stop; with several ranks asked at log intervals only."""
        if self.parts.world.size > 1 and done % self.config.log_every:
            return False
        return any_rank(self.stop_requested()) and done < self.config.steps

    def _train_step(self, step: int, batches: Iterator[ClipBatch]) -> None:
        config, parts = self.config, self.parts
        begin_s = time.perf_counter()
        seed_step(self.seed, parts.world.rank, step)
        for name, optimizer in parts.live.optimizers.items():
            set_learning_rate(optimizer, learning_rate_at(self.schedules[name], step, config.steps))
        factor = adversarial_factor_at(step, config.warmup_steps, config.ramp_steps)
        for _ in range(config.accumulation_steps):
            wait_begin_s = time.perf_counter()
            batch = next(batches)
            self._interval.data_wait_s += time.perf_counter() - wait_begin_s
            scalars = parts.step.micro_step(batch.low_BTCHW, batch.real_BTCYX, factor, batch.flow_BTKCHW)
            self.means.add(scalars)
        parts.ema.update_parameters(parts.live.modules["generator"])
        self._interval.num_steps += 1
        self._interval.seconds += time.perf_counter() - begin_s

    def _log(self, done: int, progress: Progress) -> None:
        """Interval means over steps and ranks, speed and memory; one line for people."""
        values = self.means.read()
        values |= {
            f"learning_rate/{name}": optimizer.param_groups[0]["lr"]
            for name, optimizer in self.parts.live.optimizers.items()
        }
        interval, self._interval = self._interval, _Interval()
        self._trained_s += interval.seconds
        values["perf/clips_per_s"] = interval.num_steps * self.parts.loader.config.batch_clips / interval.seconds
        values["perf/step_ms"] = 1000 * interval.seconds / interval.num_steps
        values["perf/data_wait_ms"] = 1000 * interval.data_wait_s / interval.num_steps
        values["perf/peak_memory_mb"] = peak_memory_mb(self.parts.accelerator.device)
        loader = self.parts.loader
        if loader.config.on_bad_sample == "replace":
            num_replaced = sum(gather_lists([loader.num_replaced]))
            check_replaced(num_replaced, loader.config)
            values["data/bad_samples"] = num_replaced
        self.parts.tracker.metrics(done, values)
        progress.note(describe_losses(done, self.config.steps, values))

    def _validate(self, done: int, progress: Progress) -> dict[str, float]:
        """Quality of the EMA generator; drift measures of the discriminator once it has learnt something."""
        parts = self.parts
        metrics = parts.validator.quality(parts.ema.module)
        if done > self.config.warmup_steps and parts.step.loss.adversarial > 0:
            live = parts.live.modules
            # Each rank's batch-norm statistics are its own since the last forward: measure one discriminator.
            broadcast_buffers(live["discriminator"])
            metrics |= parts.validator.drift(live["generator"], live["discriminator"], parts.step.objective)
        parts.tracker.metrics(done, metrics)
        if parts.world.is_main:
            names = parts.validator.batch.names
            shown = spread_frames(len(names), self.config.pictures) if self.config.pictures else []
            for number in shown:
                picture_YXC = parts.validator.picture(parts.ema.module, number)
                parts.tracker.picture(f"samples/{names[number]}", done, picture_YXC)
        progress.note(describe_validation(done, self.config.steps, metrics))
        return metrics

    def _save(self, done: int) -> None:
        parts = self.parts
        if parts.world.is_main:
            folder = parts.run_dir / "checkpoints"
            checkpoint.save(folder, done, parts.live, self.checkpoint_state, self.config.keep_checkpoints)
        barrier()


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory so far in MB (1e6 bytes): allocated on a CUDA device, resident size of this process else."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # noqa: PLC0415 - absent on Windows, where only the CUDA branch runs

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def describe_losses(done: int, total: int, values: dict[str, float]) -> str:
    """One log line: step, the losses, speed."""
    losses = [f"{name} {values[name]:.4g}" for name in ("loss_g/total", "loss_d/total") if name in values]
    return f"step {done}/{total} | {' | '.join(losses)} | {values['perf/clips_per_s']:.1f} clips/s"


def describe_validation(done: int, total: int, metrics: dict[str, float]) -> str:
    """One log line: held-out quality beside bicubic, and the drift measures once there are some."""
    gain = metrics["val/psnr_y"] - metrics["val_bicubic/psnr_y"]
    text = f"step {done}/{total} | held-out PSNR-Y {metrics['val/psnr_y']:.2f} dB ({gain:+.2f} against bicubic)"
    if "drift/normalized_loss" in metrics:
        text += (
            f" | D loss / chance {metrics['drift/normalized_loss']:.2f}"
            f" | D right on {100 * metrics['drift/paired_accuracy']:.0f} % of pairs"
        )
    return text
