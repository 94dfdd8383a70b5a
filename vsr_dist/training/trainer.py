"""The training loop: read, step, log, validate, save; what stops it, and how it goes back to a checkpoint."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from vsr_dist.core.collectives import Vote, World, broadcast_buffers, gather_lists, mean_over_ranks
from vsr_dist.core.console import LiveView, say
from vsr_dist.core.errors import NonFiniteError, UserError
from vsr_dist.core.rng import seed_step, step_seed
from vsr_dist.data.loader import ClipBatch, TrainLoader, check_replaced
from vsr_dist.losses.objective import ADVERSARIAL_TERM
from vsr_dist.training.checkpoint import CheckpointKeeper, Restorable
from vsr_dist.training.config import (
    OptimizerConfig,
    TrainConfig,
    adversarial_factor_at,
    learning_rate_at,
    set_learning_rate,
)
from vsr_dist.training.console import peak_memory_mb, show_interval, show_validation
from vsr_dist.training.control import Controllers
from vsr_dist.training.drift import DriftMonitor, verdict_of
from vsr_dist.training.gan_step import GanStep, spread_frames
from vsr_dist.training.samples import write_samples
from vsr_dist.training.tracking import Tracker
from vsr_dist.training.validation import Validator

# Share of the image term's gradient outside which a term either does nothing or drowns the others; the share that the
# warning's weight would give.
_USUAL_SHARES, _ADVISED_SHARE = (1e-3, 10.0), 0.1


@dataclass
class Parts:
    """What `build.py` composes for one rank; networks are held both prepared (in `step`) and unwrapped (in `live`).

    monitor: None without a discriminator.
    """

    accelerator: Accelerator
    world: World
    step: GanStep
    live: Restorable
    ema: AveragedModel
    loader: TrainLoader
    validator: Validator
    controllers: Controllers
    monitor: DriftMonitor | None
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


class Stopped(Exception):  # noqa: N818 - not an error: it is how a run ends that is asked to stop
    """The run was asked to stop and has saved a checkpoint after `steps` steps."""

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
        self.keeper = CheckpointKeeper(config, parts.run_dir, parts.live, parts.world)
        self._vote = Vote()
        self._interval, self._trained = _Interval(), _Interval()
        self._step = 0
        self._num_rollbacks = 0
        self._seen_shares: set[str] = set()

    def run(self, start: Mapping[str, Any]) -> Outcome:
        """Train to the end from the state of a checkpoint, which has been loaded, or {"step": 0}.

        Raises Stopped where the run was asked to stop, NonFiniteError where `on_non_finite` ends it.
        """
        self._restore(start)
        metrics = None
        while metrics is None:
            try:
                metrics = self._run_from(self._step)
            except NonFiniteError as error:
                self._write_debug_bundle(error)
                self._roll_back(error)
        trained = self._trained
        clips = trained.num_steps * self.parts.loader.config.batch_clips
        return Outcome(metrics, self.config.steps, clips / trained.seconds if clips else 0.0)

    def _run_from(self, first_step: int) -> dict[str, float]:
        """The loop from `first_step` (steps already done) to the end; returns the last validation."""
        config, parts = self.config, self.parts
        metrics: dict[str, float] = {}
        batches = parts.loader.batches(first_step, parts.accelerator.device)
        view = LiveView(config.steps, "step", start=first_step, enabled=parts.world.is_main)
        with closing(batches), view as progress:
            if first_step == 0:
                metrics = self._validate(first_step, progress)
            elif first_step == config.steps:
                # Only the publication was interrupted: this validation is in the log already.
                metrics = self._measure(first_step)
            if config.on_non_finite == "rollback" and not self.keeper.has_checkpoint():
                self.keeper.save(first_step, self._state())
            for step in range(first_step, config.steps):
                done = step + 1
                is_last = done == config.steps
                logs, validates = (done % every == 0 or is_last for every in (config.log_every, config.validate_every))
                self._train_step(step, batches, measure=logs)
                progress.advance()
                # With several ranks this is the answer to the question of the step before, so that all stop together.
                stopping = self._vote(self.stop_requested()) and not is_last
                saves = stopping or done % config.checkpoint_every == 0 or is_last
                if logs or validates or saves:
                    # On a GPU this waits for the steps so far: their time is part of the training's.
                    begin_s = time.perf_counter()
                    parts.step.raise_if_non_finite()
                    self._interval.seconds += time.perf_counter() - begin_s
                if logs:
                    self._log(done, progress)
                if validates:
                    metrics = self._validate(done, progress)
                if saves:
                    self.keeper.save(done, self._state())
                if stopping:
                    raise Stopped(done)
        self._vote.close()
        return metrics

    def _train_step(self, step: int, batches: Iterator[ClipBatch], *, measure: bool) -> None:
        parts = self.parts
        begin_s = time.perf_counter()
        seed_step(self.seed, parts.world.rank, step)
        for name, optimizer in parts.live.optimizers.items():
            set_learning_rate(optimizer, self._learning_rate_at(name, step))
        plan = parts.controllers.plan(self._adversarial_factor_at(step), measure=measure)
        results = parts.step.run(self._timed(batches), plan, step)
        for result in results:
            self.means.add(result.scalars)
        parts.controllers.learn(results)
        parts.ema.update_parameters(parts.live.modules["generator"])
        self._interval.num_steps += 1
        self._interval.seconds += time.perf_counter() - begin_s

    def _timed(self, batches: Iterator[ClipBatch]) -> Iterator[ClipBatch]:
        """The same batches; the time that the loop waits for each is added to the interval."""
        while True:
            begin_s = time.perf_counter()
            batch = next(batches)
            self._interval.data_wait_s += time.perf_counter() - begin_s
            yield batch

    def _learning_rate_at(self, player: str, step: int) -> float:
        config = self.config
        rate = learning_rate_at(self.schedules[player], step, config.steps, config.warmup_steps)
        return rate * config.rollback_factor**self._num_rollbacks

    def _adversarial_factor_at(self, step: int) -> float:
        return adversarial_factor_at(step, self.config.warmup_steps, self.config.ramp_steps)

    def _state(self) -> dict[str, Any]:
        """What a checkpoint says: all that shapes the next step and the next log line. A collective call."""
        if self.parts.step.carried is not None:
            self.parts.step.carried.gather()
        mine = {
            "rollbacks": self._num_rollbacks,
            "means": gather_lists([self.means.state()]),
            "controllers": self.parts.controllers.saved(),
            "drift_history": self.parts.monitor.history if self.parts.monitor else [],
            "mlflow_run_id": self.parts.tracker.run_id,
        }
        return {**self.checkpoint_state, **mine}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `_state` returned, here or in another process."""
        self._step = state["step"]
        self._num_rollbacks = state.get("rollbacks", 0)
        self.parts.controllers.restore(state.get("controllers"))
        if self.parts.monitor is not None:
            self.parts.monitor.history = [(step, value) for step, value in state.get("drift_history", [])]
        means = state.get("means", [])
        # Sums over part of a log interval are each rank's own; another number of processes begins the interval anew.
        same_world = len(means) == self.parts.world.size
        self.means.restore(means[self.parts.world.rank] if same_world else {}, self.parts.accelerator.device)
        self._interval = _Interval()

    def _write_debug_bundle(self, error: NonFiniteError) -> None:
        """Write what the bad step read and computed; each rank its own part."""
        parts, step = self.parts, error.step
        report = {
            "message": str(error),
            "terms": error.terms,
            "adversarial_factor": self._adversarial_factor_at(step),
            "learning_rates": {name: self._learning_rate_at(name, step) for name in self.schedules},
            "rollbacks": self._num_rollbacks,
            "processes": parts.world.size,
            **seeds(self.seed, parts.world.rank, step),
            "config": self.checkpoint_state["config"],
        }
        try:
            folder = write_bundle(parts.run_dir, parts.loader, step, self.config.accumulation_steps, report)
        except (OSError, UserError) as fault:
            say(f"warning: the micro-batches of step {step + 1} could not be written: {fault}")
        else:
            if parts.world.is_main:
                say(f"step {step + 1} is not finite; its micro-batches, losses and seeds are in {folder}")

    def _roll_back(self, error: NonFiniteError) -> None:
        """Go back to the last good checkpoint with lower learning rates, or give up; the same on every rank."""
        config, parts, count = self.config, self.parts, self._num_rollbacks
        if config.on_non_finite == "stop":
            raise error
        if count >= config.max_rollbacks:
            raise NonFiniteError(
                f"{error}; train.max_rollbacks={count} rollbacks did not help", error.terms, error.step
            ) from error
        state = self.keeper.restore_last_good()
        if state is None:
            raise NonFiniteError(
                f"{error}; no checkpoint has finite weights to roll back to", error.terms, error.step
            ) from error
        parts.step.discard_step()
        self._restore(state)
        self.keeper.forget_best_after(self._step)
        self._num_rollbacks = count + 1
        if parts.world.is_main:
            parts.tracker.rewind(self._step)
            share = config.rollback_factor**self._num_rollbacks
            say(f"step {error.step + 1} was not finite: rolled back to step {self._step}, learning rates x {share:g}")

    def _log(self, done: int, progress: LiveView) -> None:
        """Interval means over steps and ranks, speed and memory; one line for people."""
        means = self.means.pop()
        self._warn_of_shares(done, means)
        values = means | self.parts.controllers.scalars()
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

    def _warn_of_shares(self, done: int, means: Mapping[str, float]) -> None:
        """Name, once per term, a term that does nothing or drowns the others at the first look at its gradient."""
        if done <= self.config.warmup_steps + self.config.ramp_steps:
            means = {name: share for name, share in means.items() if name != f"share_g/{ADVERSARIAL_TERM}"}
        controllers = self.parts.controllers
        plan = controllers.plan(self._adversarial_factor_at(done - 1))
        low, high = _USUAL_SHARES
        for name, share in means.items():
            term = name.removeprefix("share_g/")
            # A weight that is given as a share is set by what is measured.
            if term == name or term in self._seen_shares or term in controllers.shares:
                continue
            self._seen_shares.add(term)
            if self.parts.world.is_main and not low <= share <= high:
                advice = "it has no effect"
                if share > 0:
                    advised = _ADVISED_SHARE * float(plan.weights[term]) / share
                    advice = f"a weight of {advised:.2g} gives {_ADVISED_SHARE:g}"
                say(
                    f"warning: the gradient of the term {term} is {share:.2g} of the image term's at step {done}; "
                    f"the usual range is {low:g} to {high:g}: {advice}"
                )

    def _measure(self, done: int) -> dict[str, float]:
        """Quality of the EMA generator; drift measures of the discriminator once it has learnt something."""
        parts = self.parts
        metrics = parts.validator.quality(parts.ema.module)
        if done > self.config.warmup_steps and parts.monitor is not None:
            live = parts.live.modules
            # Each rank's batch-norm statistics are its own since the last forward: measure one discriminator.
            broadcast_buffers(live["discriminator"])
            weight = float(parts.controllers.plan(self._adversarial_factor_at(done - 1)).weights[ADVERSARIAL_TERM])
            metrics |= parts.monitor.measure(
                live["generator"], live["discriminator"], done=done, adversarial_weight=weight
            )
        return metrics

    def _validate(self, done: int, progress: LiveView) -> dict[str, float]:
        """Measure, log and show; keep the checkpoint if it is the best."""
        parts = self.parts
        metrics = self._measure(done)
        if parts.monitor is not None and done > self.config.warmup_steps:
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


class IntervalMeans:
    """Adds up 0-d tensors without a host sync; `pop` gives the mean over steps and ranks.

    Every rank must add the same names in the same order: `pop` reduces over ranks.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one step's values (0-d, any device, detached or not)."""
        for name, value in values.items():
            kept = value.detach().double()
            self._sums[name] = self._sums[name] + kept if name in self._sums else kept
            self._counts[name] = self._counts.get(name, 0) + 1

    def state(self) -> dict[str, tuple[float, int]]:
        """Sum and number of steps of each name so far on this rank, for a checkpoint; reads the device."""
        return {name: (float(total), self._counts[name]) for name, total in self._sums.items()}

    def restore(self, state: Mapping[str, Sequence[float]], device: torch.device) -> None:
        """Go on from what `state` gave, bit for bit."""
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64, device=device) for name, (total, _) in state.items()
        }
        self._counts = {name: int(count) for name, (_, count) in state.items()}

    def pop(self) -> dict[str, float]:
        """Means since the last call, equal on all ranks; the sums start again from nothing."""
        if not self._sums:
            return {}
        names = list(self._sums)
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        values = mean_over_ranks(means).tolist()
        self._sums, self._counts = {}, {}
        return dict(zip(names, values, strict=True))


_KEPT = 5


def bundle_path(run_dir: Path, step: int) -> Path:
    """Where the bundle of the step lies that would have been done after `step` others."""
    return run_dir / "debug" / f"step_{step:08d}"


def write_bundle(run_dir: Path, loader: TrainLoader, step: int, num_batches: int, report: Mapping[str, Any]) -> Path:
    """Write `rank_N.safetensors` and `rank_N.json`; returns their folder. Every rank writes its own.

    The tensors are the micro-batches of the step, read again, as uint8: `low_M`, `real_M` and, if the data has it,
    `flow_M`. The JSON is the report with the names of their windows. The newest bundles are kept, five of them.
    """
    tensors: dict[str, torch.Tensor] = {}
    windows = []
    num_replaced = loader.num_replaced
    try:
        with closing(loader.batches(step)) as batches:
            for number in range(num_batches):
                batch = next(batches)
                windows.append(batch.names)
                fields = {"low": batch.low_BTCHW, "real": batch.real_BTCYX, "flow": batch.flow_BTKCHW}
                # Copies: the loader fills a batch's memory again.
                tensors |= {f"{name}_{number}": t.contiguous().clone() for name, t in fields.items() if t is not None}
    finally:
        loader.num_replaced = num_replaced  # Damaged windows that are read again do not count twice.
    folder, rank = bundle_path(run_dir, step), loader.world.rank
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"rank_{rank}.safetensors")
    facts = {"step": step, "rank": rank, "windows": windows, **report}
    (folder / f"rank_{rank}.json").write_text(json.dumps(_plain(facts), indent=1, allow_nan=False) + "\n")
    if rank == 0:
        # By age: after a rollback a newer bundle may be of an earlier step.
        by_age = sorted(folder.parent.glob("step_*"), key=lambda path: path.stat().st_mtime_ns)
        for old in by_age[:-_KEPT]:
            shutil.rmtree(old)
    return folder


def seeds(seed: int, rank: int, step: int) -> dict[str, int]:
    """The run's seed, and the one that torch's generator had at the beginning of the step."""
    return {"seed": seed, "step_seed": step_seed(seed, rank, step)}


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """The value with numbers that JSON does not know (NaN, infinities) as texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
