"""Train one run on all processes that were launched.

accelerate launch --config_file configs/accelerate/cpu-2.yaml -m vsr_dist.train --config configs/demo.yaml
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

from accelerate import Accelerator

from vsr_dist.build import (
    build_parts,
    check_world,
    make_accelerator,
    open_inputs,
    refuse_launch,
    resolve_epochs,
)
from vsr_dist.config import Config, config_tree, load_config
from vsr_dist.core.collectives import World, barrier, from_main, raise_on_all_ranks, shutdown
from vsr_dist.core.config_io import add_override_option
from vsr_dist.core.console import format_duration, say
from vsr_dist.core.errors import LostRankError, OneLineParser, UserError, run_cli
from vsr_dist.core.files import write_json
from vsr_dist.core.provenance import environment, package_versions
from vsr_dist.inference.generator_io import DESCRIPTION_NAME, WEIGHTS_NAME, save_generator
from vsr_dist.models.base import Generator
from vsr_dist.run_dir import (
    CONFIG_NAME,
    LOST_RANK_STATUS,
    STOPPED_STATUS,
    SUMMARY_NAME,
    Start,
    lock_run_dir,
    note_ending,
    note_origin,
    prepare_run_dir,
    read_origin,
    refuse_changed_data,
    write_summary,
)
from vsr_dist.training import checkpoint
from vsr_dist.training.console import describe_drift, summary_table
from vsr_dist.training.drift import PLOT_NAME, write_drift_plot
from vsr_dist.training.tracking import (
    FOLDER_NAME,
    METRICS_NAME,
    MlflowRun,
    Status,
    Tracker,
    open_tracker,
    read_metrics,
)
from vsr_dist.training.trainer import Outcome, Parts, Stopped, Trainer

Item = TypeVar("Item")

_MODEL_PACKAGES = ("torch", "numpy", "opencv-python-headless", "safetensors", "jsonargparse", "PyYAML", "tqdm")
BEST_NAME = "best"

# What `accelerate launch` and torchrun set for the processes that they start.
_LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
# prctl(2): the signal that the kernel sends to this process when its parent ends.
_PR_SET_PDEATHSIG = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist train` and `python -m vsr_dist.train`, which are the same command."""
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="YAML configuration")
    add_override_option(parser)
    parser.add_argument(
        "--resume",
        choices=["auto"],
        help="resume from the newest complete checkpoint in run_dir, if any (default: an existing run is an error)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train as the parsed arguments say; returns the exit status."""
    stop = StopRequest()
    stop.listen()
    config = report_error_once(lambda: load_config(arguments.config, arguments.overrides))
    report_error_once(lambda: refuse_launch(config.train))
    accelerator, world = make_accelerator(config.train)
    try:
        status = _run_in(config, arguments.resume, accelerator, world, stop)
    except LostRankError as error:
        sys.stderr.write(f"error: rank {world.rank}: {error}\n")
        return LOST_RANK_STATUS
    # Not after an error: NCCL would wait in it for ranks that have none, and nobody would read what went wrong.
    shutdown()
    return status


def _run_in(config: Config, resume: str | None, accelerator: Accelerator, world: World, stop: StopRequest) -> int:
    """Train in the configured run directory, which only rank 0 looks at, and locks until the process ends."""
    raise_on_all_ranks(lambda: check_world(config, world))
    config = raise_on_all_ranks(lambda: resolve_epochs(config))
    lock = raise_on_all_ranks(lambda: lock_run_dir(config) if world.is_main else None)
    with lock or nullcontext():
        start = from_main(raise_on_all_ranks(lambda: prepare_run_dir(config, resume) if world.is_main else Start()))
        if start.finished:
            if world.is_main:
                _say_finished(Path(config.run_dir))
            return 0
        with note_ending(Path(config.run_dir) if world.is_main else None) as ending:
            inputs = raise_on_all_ranks(lambda: open_inputs(config, world, fresh=start.checkpoint is None))
            raise_on_all_ranks(lambda: refuse_changed_data(start, inputs.loader.windows_of.index.digest))
            parts = build_parts(config, accelerator, world, inputs)
            if world.is_main:
                note_origin(Path(config.run_dir), config.train.init_generator, inputs.initial)
            if start.checkpoint is not None:
                path = start.checkpoint
                raise_on_all_ranks(lambda: checkpoint.load(path, parts.live))
            ending.status = _tracked(config, parts, start, stop)
    return ending.status


def _say_finished(run_dir: Path) -> None:
    say(f"{run_dir} is finished already (see {SUMMARY_NAME}); nothing to do")
    folder = run_dir / FOLDER_NAME
    if folder.is_dir() and any(MlflowRun(run_dir, folder).num_waiting()):
        say(f"MLflow has not received all of it; upload the rest with: vsr-dist track replay {run_dir}")


def report_error_once(action: Callable[[], Item]) -> Item:
    """Run what needs no other process; an error, the same on every rank, is reported by rank 0 only."""
    try:
        return action()
    except UserError:
        if int(os.environ.get("RANK", "0")) == 0:
            raise
        sys.exit(2)


def _tracked(config: Config, parts: Parts, start: Start, stop: StopRequest) -> int:
    """Train, and give the tracked run an explicit end whatever happens; returns the exit status."""
    parts.tracker = raise_on_all_ranks(lambda: _start_tracker(config, parts, start))
    begin_s = time.perf_counter()
    status: Status = "FAILED"
    try:
        _announce(config, parts, start)
        outcome = _make_trainer(config, parts, stop).run(start.state)
        if parts.world.is_main:
            _publish(config, parts, outcome, time.perf_counter() - begin_s)
        status = "FINISHED"
        barrier()
        shutdown()  # Now: the other ranks do not wait for the last upload.
    except Stopped as stopped:
        status = "KILLED"
        if parts.world.is_main:
            say(f"{config.name}: stopped by SIGTERM; saved step {stopped.steps}, resume with --resume auto")
            _publish_best(config, parts)
        shutdown()
        return STOPPED_STATUS
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        parts.tracker.end(status)
    return 0


def _start_tracker(config: Config, parts: Parts, start: Start) -> Tracker:
    if not parts.world.is_main:
        return Tracker(system_metrics=config.tracking.system_metrics)
    step, run_id = start.state["step"], start.state.get("mlflow_run_id")
    tracker = open_tracker(config.tracking, config.name, parts.run_dir, resume_step=step, run_id=run_id)
    tracker.start()
    return tracker


def _make_trainer(config: Config, parts: Parts, stop: StopRequest) -> Trainer:
    return Trainer(
        config.train,
        parts,
        seed=config.seed,
        generator_schedule=config.generator_optimizer,
        discriminator_schedule=config.discriminator_optimizer,
        checkpoint_state={
            "config": config_tree(config),
            "data_digest": parts.loader.windows_of.index.digest,
            "processes": parts.world.size,
        },
        stop_requested=stop,
    )


def _announce(config: Config, parts: Parts, start: Start) -> None:
    """What is about to run, for the log and the tracker."""
    if not parts.world.is_main:
        return
    networks, first_step = parts.live.modules, start.state["step"]
    sizes = {role: sum(p.numel() for p in networks[role].parameters()) for role in ("generator", "discriminator")}
    say(
        f"{config.name}: {parts.world.size} process(es) on {parts.accelerator.device.type}, "
        f"{config.generator.kind} generator ({sizes['generator']:,} parameters), "
        f"{config.discriminator.kind} discriminator ({sizes['discriminator']:,}), "
        f"{len(parts.loader.windows):,} training windows, steps {first_step} to {config.train.steps}"
    )
    if start.checkpoint is not None:
        before = _division(start.state["processes"], start.state["config"]["train"]["accumulation_steps"])
        now = _division(parts.world.size, config.train.accumulation_steps)
        if before != now:
            say(
                f"the checkpoint is from {before}, this run has {now}: the order of samples continues, rounding may "
                "differ"
            )
    facts = {
        "processes": parts.world.size,
        "generator_parameters": sizes["generator"],
        "discriminator_parameters": sizes["discriminator"],
        "data_digest": parts.loader.windows_of.index.digest,
        **read_origin(parts.run_dir, config.train.init_generator),
    }
    _describe(config, parts, first_step, run_parameters(config, facts))


def run_parameters(config: Config, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker gets as a run's parameters: the configuration, what else the tracking section names, and facts
    of this run under `run`."""
    settings = config_tree(config)
    extra = settings["tracking"].pop("extra_params")
    return {**settings, **extra, "run": dict(facts)}


def _division(processes: int, accumulation_steps: int) -> str:
    """How each global batch is divided."""
    return f"{processes} process(es) x {accumulation_steps} micro-batch(es)"


def _describe(config: Config, parts: Parts, first_step: int, settings: dict[str, Any]) -> None:
    """Settings, data and surroundings of the run, for the tracker and the run directory."""
    tracker, run_dir, index = parts.tracker, parts.run_dir, parts.loader.windows_of.index
    surroundings = environment()
    write_json(run_dir / "environment.json", surroundings)
    tracker.files(run_dir / "environment.json", run_dir / CONFIG_NAME)
    if tracker.is_described:
        # MLflow's parameters cannot change, but where things are read and written, and how fast, may.
        tracker.tags({"resumed_from_step": str(first_step)})
        resume = run_dir / "resumes" / f"step_{first_step:08d}.json"
        resume.parent.mkdir(exist_ok=True)
        write_json(resume, {"settings": settings, "environment": surroundings})
        tracker.files(resume, folder="resumes")
    else:
        tracker.parameters(settings)
    profile = {"clips": len(index.clips), "shards": len(index.shards), "scale": index.scale, "codec": index.codec}
    tracker.dataset(Path(config.data.root).name or config.data.root, index.digest, config.data.root, profile)


def _publish(config: Config, parts: Parts, outcome: Outcome, seconds: float) -> None:
    """Write what a finished run leaves: the EMA generator, the summary, and both in MLflow."""
    generator = cast(Generator, parts.ema.module)
    save_generator(parts.run_dir, generator, config.generator, _provenance(config, parts, outcome.steps))
    if config.tracking.log_model:
        parts.tracker.model("generator", outcome.steps, ".", _model_requirements())
    _publish_best(config, parts)
    summary = {
        "exit_reason": "finished",
        "metrics": outcome.metrics,
        "drift": describe_drift(outcome.metrics),
        "steps": outcome.steps,
        "clips_per_s": outcome.clips_per_s,
        "seconds": seconds,
        "processes": parts.world.size,
        "device": parts.accelerator.device.type,
        "data_digest": parts.loader.windows_of.index.digest,
        **read_origin(parts.run_dir, config.train.init_generator),
        "mlflow_run_id": parts.tracker.run_id,
        "versions": package_versions(),
        "command": shlex.join(sys.argv),
    }
    parts.tracker.files(parts.run_dir / WEIGHTS_NAME, parts.run_dir / DESCRIPTION_NAME)
    if write_drift_plot(read_metrics(parts.run_dir / METRICS_NAME), parts.run_dir / PLOT_NAME):
        parts.tracker.files(parts.run_dir / PLOT_NAME)
    # Last: its presence means that nothing is left to do.
    write_summary(parts.run_dir, summary)
    parts.tracker.files(parts.run_dir / SUMMARY_NAME)
    say(f"{config.name}: finished after {format_duration(seconds)}; {parts.run_dir / WEIGHTS_NAME}")
    say(summary_table(outcome.metrics))
    if config.tracking.mlflow:
        say(f"MLflow: run {parts.tracker.run_id or 'not created yet'} at {parts.tracker.uri}")


def _publish_best(config: Config, parts: Parts) -> None:
    """Write the generator of the best checkpoint to RUN_DIR/best, if there is one, and log it as MLflow model."""
    path = checkpoint.best(parts.run_dir / "checkpoints")
    if path is None:
        return
    step, folder, ema = checkpoint.read_state(path)["step"], parts.run_dir / BEST_NAME, deepcopy(parts.ema)
    checkpoint.load_weights(ema, path / "ema.safetensors")
    folder.mkdir(exist_ok=True)
    save_generator(folder, cast(Generator, ema.module), config.generator, _provenance(config, parts, step))
    if config.tracking.log_model and step < config.train.steps:  # Else it is the final generator.
        parts.tracker.model("best", step, BEST_NAME, _model_requirements())


def _provenance(config: Config, parts: Parts, steps: int) -> dict[str, Any]:
    """What `generator.json` says of the run that the weights are from."""
    facts = {"run": config.name, "seed": config.seed, "steps": steps}
    facts["data_digest"] = parts.loader.windows_of.index.digest
    tracker = parts.tracker
    return {**facts, "mlflow": {"uri": tracker.uri, "run_id": tracker.run_id}} if tracker.run_id else facts


def _model_requirements() -> list[str]:
    """Packages that a generator needs, without a local suffix such as +cu128, which package indexes do not have."""
    return [f"{name}=={version(name).split('+')[0]}" for name in _MODEL_PACKAGES]


class StopRequest:
    """Remembers that SIGTERM came. The handler only sets a flag: the loop saves and stops between two steps."""

    def __init__(self) -> None:
        self._requested = False

    def listen(self) -> None:
        """Install the handler; call in the main thread."""
        signal.signal(signal.SIGTERM, self._on_signal)
        _hear_of_launchers_end()

    def __call__(self) -> bool:
        """True once the signal came."""
        return self._requested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._requested = True


def _hear_of_launchers_end() -> None:
    """Get SIGTERM when the launcher that started this process ends, so that no orphan trains on.

    `accelerate launch` with one process dies of SIGTERM without passing it on, and no launcher can pass on SIGKILL.
    Only under a launcher: a training started from a shell may outlive the shell. Linux only; elsewhere nothing is done.
    """
    if sys.platform == "linux" and any(name in os.environ for name in _LAUNCHED):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m vsr_dist.train`; returns the exit status."""
    parser = OneLineParser(
        prog="python -m vsr_dist.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_cli(lambda arguments: run(parser.parse_args(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
