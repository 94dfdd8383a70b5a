"""One training run, on however many processes it was launched with.

accelerate launch --config_file configs/accelerate/cpu-2.yaml -m vsr_dist.train --config configs/demo.yaml
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import cast

from vsr_dist.build import build_parts, make_accelerator, make_tracker, open_inputs
from vsr_dist.config import Config, config_tree, load_config
from vsr_dist.core.collectives import barrier, from_main, shutdown, together
from vsr_dist.core.config_io import add_override_option
from vsr_dist.core.console import format_duration, say
from vsr_dist.core.errors import OneLineParser, UserError, run_cli
from vsr_dist.core.versions import package_versions
from vsr_dist.inference.generator_io import DESCRIPTION_NAME, WEIGHTS_NAME, save_generator
from vsr_dist.models.base import Generator
from vsr_dist.run_dir import (
    RUN_ID_NAME,
    SUMMARY_NAME,
    Start,
    lock_run_dir,
    prepare_run_dir,
    refuse_changed_data,
    write_summary,
)
from vsr_dist.training import checkpoint
from vsr_dist.training.signals import StopRequest
from vsr_dist.training.tracking import Status, Tracker
from vsr_dist.training.trainer import Outcome, Parts, Stopped, Trainer

# 128 + SIGTERM, what a shell reports of a process that this signal ended.
STOPPED_STATUS = 143
_MODEL_PACKAGES = ("torch", "numpy", "opencv-python-headless")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist train` and `python -m vsr_dist.train`, which are the same command."""
    parser.add_argument("--config", type=Path, required=True, help="YAML configuration")
    add_override_option(parser)
    parser.add_argument(
        "--resume",
        choices=["auto"],
        help="go on from the newest complete checkpoint of run_dir if there is one, else start",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train as the parsed arguments say; returns the exit status."""
    stop = StopRequest()
    stop.listen()
    config = _load_config_once(arguments.config, arguments.overrides)
    accelerator, world = make_accelerator(config.train)
    try:
        # Only rank 0 looks at the folder, and holds its lock until the process ends.
        lock = together(lambda: lock_run_dir(config) if world.is_main else None)
        start = from_main(together(lambda: prepare_run_dir(config, arguments.resume) if world.is_main else Start()))
        if start.finished:
            if world.is_main:
                say(f"{config.run_dir} is finished already (see {SUMMARY_NAME}); nothing to do")
            return 0
        inputs = together(lambda: open_inputs(config, world))
        together(lambda: refuse_changed_data(start, inputs.loader.windows_of.index.digest))
        parts = build_parts(config, accelerator, world, inputs)
        if start.checkpoint is not None:
            path = start.checkpoint
            together(lambda: checkpoint.load(path, parts.live))
        status = _tracked(config, parts, start, stop)
        del lock
    finally:
        shutdown()
    return status


def _load_config_once(path: Path, overrides: Sequence[str]) -> Config:
    """The configuration; a fault is reported by one process only, for all of them meet the same one."""
    try:
        return load_config(path, overrides)
    except UserError:
        if int(os.environ.get("RANK", "0")) == 0:
            raise
        sys.exit(2)


def _tracked(config: Config, parts: Parts, start: Start, stop: StopRequest) -> int:
    """Train, and give the tracked run an explicit end whatever happens; returns the exit status."""
    first_step = start.state["step"]
    id_file = parts.run_dir / RUN_ID_NAME
    known = id_file.read_text() if id_file.exists() and config.tracking.mlflow else None
    make = partial(make_tracker, config, resume_step=first_step, run_id=known)
    parts.tracker = together(lambda: make() if parts.world.is_main else Tracker(None, None))
    begin_s = time.perf_counter()
    status: Status = "FAILED"
    try:
        if parts.tracker.run_id is not None:
            id_file.write_text(parts.tracker.run_id)
        _announce(config, parts, start)
        outcome = _make_trainer(config, parts, stop).run(first_step)
        if parts.world.is_main:
            _publish(config, parts, outcome, time.perf_counter() - begin_s)
        status = "FINISHED"
    except Stopped as stopped:
        status = "KILLED"
        if parts.world.is_main:
            say(f"{config.name}: told to stop; saved step {stopped.steps}, go on with --resume auto")
        return STOPPED_STATUS
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        parts.tracker.end(status)
    barrier()
    return 0


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
    before = start.state.get("processes", parts.world.size)
    if before != parts.world.size:
        say(f"the checkpoint is of {before} process(es): the order of samples goes on, dropout and batch norm differ")
    mlflow_run = parts.tracker.mlflow_run
    if mlflow_run is None:
        return
    facts = {
        "processes": parts.world.size,
        "generator_parameters": sizes["generator"],
        "discriminator_parameters": sizes["discriminator"],
        "data_digest": parts.loader.windows_of.index.digest,
    }
    if mlflow_run.is_new:
        mlflow_run.parameters({**config_tree(config), "run": facts})
    else:
        # MLflow's parameters cannot change, but where things are read and written, and how fast, may.
        mlflow_run.resumed(first_step, {**config_tree(config), "run": facts})


def _publish(config: Config, parts: Parts, outcome: Outcome, seconds: float) -> None:
    """Write what a finished run leaves: the EMA generator, the summary, and both in MLflow."""
    generator = cast(Generator, parts.ema.module)
    index = parts.loader.windows_of.index
    provenance = {
        "run": config.name,
        "seed": config.seed,
        "steps": outcome.steps,
        "data_digest": index.digest,
    }
    save_generator(parts.run_dir, generator, config.generator, provenance)
    summary = {
        "exit_reason": "finished",
        "metrics": outcome.metrics,
        "steps": outcome.steps,
        "clips_per_s": outcome.clips_per_s,
        "seconds": seconds,
        "processes": parts.world.size,
        "device": parts.accelerator.device.type,
        "data_digest": index.digest,
        "mlflow_run_id": parts.tracker.run_id,
        "versions": package_versions(),
        "command": shlex.join(sys.argv),
    }
    try:
        _publish_to_mlflow(config, parts, generator)
    except parts.tracker.faults as error:
        raise UserError(
            f"MLflow did not take the finished generator: {error}; it lies in {parts.run_dir}: with the server back, "
            "run the same command with --resume auto to hand it over"
        ) from error
    # Last: its presence means that nothing is left to do.
    write_summary(parts.run_dir, summary)
    if parts.tracker.mlflow_run is not None:
        parts.tracker.mlflow_run.files(parts.run_dir / SUMMARY_NAME)
    say(f"{config.name}: finished after {format_duration(seconds)}; {parts.run_dir / WEIGHTS_NAME}")


def _publish_to_mlflow(config: Config, parts: Parts, generator: Generator) -> None:
    mlflow_run = parts.tracker.mlflow_run
    if mlflow_run is None:
        return
    mlflow_run.files(*(parts.run_dir / name for name in ("config.yaml", WEIGHTS_NAME, DESCRIPTION_NAME)))
    if config.tracking.log_model:
        # Without a local suffix such as +cu128, which package indexes do not have.
        requirements = [f"{name}=={version(name).split('+')[0]}" for name in _MODEL_PACKAGES]
        mlflow_run.model(generator.cpu().eval(), requirements)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m vsr_dist.train`; returns the exit status."""
    parser = OneLineParser(
        prog="vsr_dist.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_cli(lambda arguments: run(parser.parse_args(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
