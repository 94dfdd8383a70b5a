"""The training loop: read, step, average, log, validate, save; and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel

from vsr_dist.core.collectives import Vote, broadcast_buffers, gather_lists
from vsr_dist.core.console import LiveView, say
from vsr_dist.core.errors import NonFiniteError
from vsr_dist.core.rng import seed_step
from vsr_dist.core.stats import IntervalMeans
from vsr_dist.core.world import World
from vsr_dist.data.loader import TrainLoader
from vsr_dist.data.reader import check_replaced
from vsr_dist.data.ring import ClipBatch
from vsr_dist.training import checkpoint
from vsr_dist.training.controllers import Controllers
from vsr_dist.training.debug_bundle import seeds, write_bundle
from vsr_dist.training.gan_step import GanStep, spread_frames
from vsr_dist.training.keeper import Keeper
from vsr_dist.training.lines import peak_memory_mb
from vsr_dist.training.monitor import verdict_of
from vsr_dist.training.revival import Revival
from vsr_dist.training.samples import write_samples
from vsr_dist.training.schedule import OptimizerConfig, learning_rate_at, set_learning_rate
from vsr_dist.training.screen import show_interval, show_validation
from vsr_dist.training.tracker import Tracker
from vsr_dist.training.train_config import TrainConfig
from vsr_dist.training.validation import Validator


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
    controllers: Controllers
    revival: Revival | None
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
        """`checkpoint_state`: what every checkpoint says beside what the trainer itself remembers."""
        self.config, self.parts, self.seed = config, parts, seed
        self.schedules = {"generator": generator_schedule, "discriminator": discriminator_schedule}
        self.checkpoint_state = checkpoint_state
        self.stop_requested = stop_requested
        self.means = IntervalMeans()
        self.keeper = Keeper(config, parts.run_dir, parts.live, parts.world)
        self._vote = Vote()
        self._interval, self._trained = _Interval(), _Interval()
        self._step = 0
        self._num_rollbacks = 0

    def run(self, start: Mapping[str, Any]) -> Outcome:
        """Train to the end from the state of a checkpoint, which has been loaded, or {"step": 0}.

        Raises Stopped where the run was told to stop, NonFiniteError where `on_non_finite` ends it.
        """
        self._restore(start)
        metrics = None
        while metrics is None:
            try:
                metrics = self._run_from(self._step)
            except NonFiniteError as error:
                self._keep_bundle(error)
                self._roll_back(error)
        trained = self._trained
        clips = trained.num_steps * self.parts.loader.config.batch_clips
        return Outcome(metrics, self.config.steps, clips / trained.seconds if clips else 0.0)

    def _run_from(self, first_step: int) -> dict[str, float]:
        """The loop from `first_step` (steps already done) to the end; returns the last validation."""
        config, parts = self.config, self.parts
        metrics: dict[str, float] = {}
        batches = parts.loader.batches(first_step, parts.accelerator.device)
        shown = LiveView(config.steps, "step", start=first_step, enabled=parts.world.is_main)
        with closing(batches), shown as progress:
            if first_step in (0, config.steps):
                # At 0 for a curve that starts at its beginning; at the end if only the publication was interrupted.
                metrics = self._validate(first_step, progress)
            if config.on_non_finite == "rollback" and not self.keeper.has_checkpoint():
                self.keeper.save(first_step, self._state())
            for step in range(first_step, config.steps):
                self._step = step
                self._train_step(step, batches)
                done = step + 1
                progress.advance()
                if done % config.log_every == 0 or done == config.steps:
                    self._log(done, progress)
                if done % config.validate_every == 0 or done == config.steps:
                    metrics = self._validate(done, progress)
                if parts.revival is not None:
                    parts.revival.after_step(done, config.warmup_steps)
                # On several processes the answer to the question before: all of them stop at the same step.
                stopping = self._vote(self.stop_requested()) and done < config.steps
                if stopping or done % config.checkpoint_every == 0 or done == config.steps:
                    self.keeper.save(done, self._state())
                if stopping:
                    raise Stopped(done)
        self._vote.close()
        return metrics

    def _state(self) -> dict[str, Any]:
        """What a checkpoint says: all that shapes the next step and the next log line. A collective call."""
        mine = {
            "rollbacks": self._num_rollbacks,
            "means": gather_lists([self.means.state()]),
            "controllers": self.parts.controllers.saved(),
            "mlflow_run_id": self.parts.tracker.run_id,
        }
        return {**self.checkpoint_state, **mine}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `_state` said, here or in another process."""
        self._step = state["step"]
        self._num_rollbacks = state.get("rollbacks", 0)
        self.parts.controllers.restore(state.get("controllers"))
        means = state.get("means", [])
        # Sums over part of a log interval are each rank's own; another number of processes begins the interval anew.
        same_world = len(means) == self.parts.world.size
        self.means.restore(means[self.parts.world.rank] if same_world else {}, self.parts.accelerator.device)
        self._interval = _Interval()

    def _keep_bundle(self, error: NonFiniteError) -> None:
        """Write what was read and computed in the broken step; each rank its own part."""
        parts, step = self.parts, self._step
        report = {
            "message": str(error),
            "terms": error.terms,
            "adversarial_factor": self._factor_at(step),
            "learning_rates": {name: o.param_groups[0]["lr"] for name, o in parts.live.optimizers.items()},
            "rollbacks": self._num_rollbacks,
            "processes": parts.world.size,
            **seeds(self.seed, parts.world.rank, step),
            "config": self.checkpoint_state["config"],
        }
        try:
            folder = write_bundle(parts.run_dir, parts.loader, step, self.config.accumulation_steps, report)
        except OSError as fault:
            say(f"warning: the micro-batches of step {step} could not be kept for a look: {fault}")
        else:
            if parts.world.is_main:
                say(f"step {step + 1} is not finite; its micro-batches, losses and seeds are in {folder}")

    def _roll_back(self, error: NonFiniteError) -> None:
        """Go back to the last good checkpoint with lower learning rates, or give up; the same on every rank."""
        config, parts, broken, count = self.config, self.parts, self._step, self._num_rollbacks
        if config.on_non_finite == "stop":
            raise error
        if count >= config.max_rollbacks:
            raise NonFiniteError(f"{error}; train.max_rollbacks={count} rollbacks did not help", error.terms) from error
        state = self.keeper.restore_last_good()
        if state is None:
            raise NonFiniteError(f"{error}; no checkpoint has finite weights to go back to", error.terms) from error
        parts.step.abandon()
        self._restore(state)
        self._num_rollbacks = count + 1
        if parts.world.is_main:
            parts.tracker.rewind(self._step)
            share = config.rollback_factor**self._num_rollbacks
            say(f"step {broken + 1} was not finite: back to step {self._step}, learning rates x {share:g}")

    def _train_step(self, step: int, batches: Iterator[ClipBatch]) -> None:
        config, parts = self.config, self.parts
        begin_s = time.perf_counter()
        seed_step(self.seed, parts.world.rank, step)
        for name, optimizer in parts.live.optimizers.items():
            share = config.rollback_factor**self._num_rollbacks
            rate = learning_rate_at(self.schedules[name], step, config.steps, config.warmup_steps)
            set_learning_rate(optimizer, share * rate)
        factor = self._factor_at(step)
        parts.step.begin(parts.controllers.plan())
        micro_steps = []
        for _ in range(config.accumulation_steps):
            wait_begin_s = time.perf_counter()
            batch = next(batches)
            self._interval.data_wait_s += time.perf_counter() - wait_begin_s
            scalars = parts.step.micro_step(batch.low_BTCHW, batch.real_BTCYX, factor, batch.flow_BTKCHW)
            self.means.add(scalars)
            micro_steps.append(scalars)
        parts.controllers.learn(micro_steps)
        parts.ema.update_parameters(parts.live.modules["generator"])
        self._interval.num_steps += 1
        self._interval.seconds += time.perf_counter() - begin_s

    def _factor_at(self, step: int) -> float:
        return self.parts.controllers.factor_at(step, self.config.warmup_steps, self.config.ramp_steps)

    def _log(self, done: int, progress: LiveView) -> None:
        """Interval means over steps and ranks, speed and memory; one line for people."""
        values = self.means.read() | self.parts.controllers.scalars()
        values |= {
            f"learning_rate/{name}": optimizer.param_groups[0]["lr"]
            for name, optimizer in self.parts.live.optimizers.items()
        }
        interval, self._interval = self._interval, _Interval()
        self._trained.seconds += interval.seconds
        self._trained.num_steps += interval.num_steps
        values["perf/clips_per_s"] = interval.num_steps * self.parts.loader.config.batch_clips / interval.seconds
        values["perf/step_ms"] = 1000 * interval.seconds / interval.num_steps
        values["perf/data_wait_ms"] = 1000 * interval.data_wait_s / interval.num_steps
        values["perf/peak_memory_mb"] = peak_memory_mb(self.parts.accelerator.device)
        loader = self.parts.loader
        if loader.config.on_bad_sample == "replace":
            num_replaced = sum(gather_lists([loader.num_replaced]))
            check_replaced(num_replaced, loader.config)
            values["data/bad_samples"] = num_replaced
        self.parts.tracker.metrics(done, values | self.parts.tracker.system())
        show_interval(progress, done, self.config.steps, values)

    def _validate(self, done: int, progress: LiveView) -> dict[str, float]:
        """Quality of the EMA generator; drift measures of the discriminator once it has learnt something."""
        parts = self.parts
        metrics = parts.validator.quality(parts.ema.module)
        if done > self.config.warmup_steps and parts.revival is not None:
            live = parts.live.modules
            # Each rank's batch-norm statistics are its own since the last forward: measure one discriminator.
            broadcast_buffers(live["discriminator"])
            weight = parts.step.plan.adversarial_weight * self._factor_at(done - 1)
            monitor = parts.revival.monitor
            metrics |= monitor.measure(live["generator"], live["discriminator"], done=done, adversarial_weight=weight)
            parts.tracker.tags({"drift/verdict": str(verdict_of(metrics))})
        parts.tracker.metrics(done, metrics)
        if parts.world.is_main:
            names = parts.validator.batch.names
            shown = spread_frames(len(names), self.config.pictures) if self.config.pictures else []
            pictures = {names[number]: parts.validator.picture(parts.ema.module, number) for number in shown}
            write_samples(parts.run_dir, done, pictures)
            for name, picture_YXC in pictures.items():
                parts.tracker.picture(f"samples/{name}", done, picture_YXC)
        self.keeper.keep_best(done, metrics, self._state)
        show_validation(progress, done, self.config.steps, metrics)
        return metrics
