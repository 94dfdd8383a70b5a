"""One training run, on however many processes it was launched with.

accelerate launch --config_file configs/accelerate/cpu-2.yaml -m vsr_dist.train --config configs/demo.yaml
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from vsr_dist.build import build_parts, make_accelerator
from vsr_dist.config import Config, config_tree, dump_config, load_config
from vsr_dist.core.collectives import barrier, from_main, shutdown
from vsr_dist.core.config_io import add_override_option, flatten
from vsr_dist.core.console import format_duration, say
from vsr_dist.core.errors import BadCheckpointError, BadConfigError, OneLineParser, UserError, run_cli
from vsr_dist.core.fields import effects
from vsr_dist.inference.generator_io import DESCRIPTION_NAME, WEIGHTS_NAME, save_generator
from vsr_dist.models.base import Generator
from vsr_dist.training import checkpoint
from vsr_dist.training.tracking import Status, Tracker
from vsr_dist.training.trainer import Outcome, Parts, Trainer

SUMMARY_NAME = "summary.json"
_PACKAGES = ("vsr-dist", "torch", "accelerate", "mlflow", "numpy", "opencv-python-headless", "webdataset")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist train` and `python -m vsr_dist.train`, which are the same command."""
    parser.add_argument("--config", type=Path, required=True, help="YAML configuration")
    add_override_option(parser)
    parser.add_argument(
        "--resume",
        choices=["auto"],
        help="go on from the newest complete checkpoint of run_dir if there is one, else start",
    )


@dataclass(frozen=True)
class Start:
    """Where a run begins: the checkpoint to resume from (None: fresh), and whether nothing is left to do."""

    checkpoint: Path | None = None
    finished: bool = False


def run(arguments: argparse.Namespace) -> int:
    """Train as the parsed arguments say; returns the exit status."""
    config = _load_config_once(arguments.config, arguments.overrides)
    accelerator, world = make_accelerator(config.train)
    try:
        start = from_main(prepare_run_dir(config, arguments.resume) if world.is_main else Start())
        if start.finished:
            if world.is_main:
                say(f"{config.run_dir} is finished already (see {SUMMARY_NAME}); nothing to do")
            return 0
        state = _read_state(start.checkpoint)
        parts = build_parts(config, accelerator, world, resume_step=state["step"], run_id=state["mlflow_run_id"])
        if start.checkpoint is not None:
            checkpoint.load(start.checkpoint, parts.live)
        _tracked(config, parts, state["step"])
    finally:
        shutdown()
    return 0


def _load_config_once(path: Path, overrides: Sequence[str]) -> Config:
    """The configuration; a fault is reported by one process only, for all of them meet the same one."""
    try:
        return load_config(path, overrides)
    except UserError:
        if int(os.environ.get("RANK", "0")) == 0:
            raise
        sys.exit(2)


def prepare_run_dir(config: Config, resume: str | None) -> Start:
    """Make the run directory and decide where to start; a directory in use is an error unless resumed."""
    run_dir = Path(config.run_dir)
    if run_dir.exists() and not run_dir.is_dir():
        raise BadConfigError(f"run_dir {run_dir} is a file; expected a folder, or a name that is free")
    newest = checkpoint.newest(run_dir / "checkpoints")
    used = newest is not None or (run_dir / "metrics.jsonl").exists()
    if used and resume is None:
        raise BadConfigError(
            f"{run_dir} holds a run already; add --resume auto to go on with it, or set another run_dir"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    if newest is not None:
        _refuse_changed_config(config, newest)
        step = int(newest.name.removeprefix("step_"))
        done = step >= config.train.steps and (run_dir / SUMMARY_NAME).exists()
        if done and (run_dir / WEIGHTS_NAME).exists() and (run_dir / DESCRIPTION_NAME).exists():
            return Start(newest, finished=True)
    (run_dir / "config.yaml").write_text(dump_config(config))
    return Start(newest)


def _refuse_changed_config(config: Config, newest: Path) -> None:
    """A resumed run must compute what the interrupted one would have: no `result` field may differ."""
    saved = flatten(json.loads((newest / "state.json").read_text())["config"])
    current = flatten(config_tree(config))
    kinds = effects(config)
    changed = [
        f"{key} {saved.get(key)!r} -> {current.get(key)!r}"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key) != current.get(key) and kinds.get(key, "result") == "result"
    ]
    if changed:
        raise BadCheckpointError(
            f"{newest} was saved by a run with other settings ({'; '.join(changed)}); a resumed run must keep them: "
            "set another run_dir to start a new run"
        )


def _read_state(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {"step": 0, "mlflow_run_id": None}
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    return state


def _tracked(config: Config, parts: Parts, first_step: int) -> None:
    """Train, and give the tracked run an explicit end whatever happens."""
    tracker, tree = parts.tracker, config_tree(config)
    begin_s = time.perf_counter()
    trainer = Trainer(
        config.train,
        parts,
        seed=config.seed,
        generator_schedule=config.generator_optimizer,
        discriminator_schedule=config.discriminator_optimizer,
        checkpoint_state={"config": tree, "mlflow_run_id": tracker.run_id, "world_size": parts.world.size},
    )
    _announce(config, parts, first_step)
    status: Status = "FAILED"
    try:
        outcome = trainer.run(first_step)
        if parts.world.is_main:
            _publish(config, parts, outcome, time.perf_counter() - begin_s)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if tracker.mlflow_run is not None:
            tracker.mlflow_run.end(status)
    barrier()


def _announce(config: Config, parts: Parts, first_step: int) -> None:
    """What is about to run, for the log and the tracker."""
    if not parts.world.is_main:
        return
    networks = parts.live.modules
    sizes = {role: sum(p.numel() for p in networks[role].parameters()) for role in ("generator", "discriminator")}
    data = parts.loader.windows_of.index
    say(
        f"{config.name}: {parts.world.size} process(es) on {parts.accelerator.device.type}, "
        f"{config.generator.kind} generator ({sizes['generator']:,} parameters), "
        f"{config.discriminator.kind} discriminator ({sizes['discriminator']:,}), "
        f"{len(parts.loader.windows):,} training windows, steps {first_step} to {config.train.steps}"
    )
    mlflow_run = parts.tracker.mlflow_run
    if mlflow_run is None:
        return
    facts = {
        "processes": parts.world.size,
        "generator_parameters": sizes["generator"],
        "discriminator_parameters": sizes["discriminator"],
        "data_digest": data.digest,
    }
    mlflow_run.parameters({**config_tree(config), "run": facts})
    if first_step:
        mlflow_run.tag("resumed_from_step", str(first_step))


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
    write_summary(parts.run_dir, summary)
    _publish_to_mlflow(config, parts.tracker, parts.run_dir, generator)
    say(f"{config.name}: finished after {format_duration(seconds)}; {parts.run_dir / WEIGHTS_NAME}")


def _publish_to_mlflow(config: Config, tracker: Tracker, run_dir: Path, generator: Generator) -> None:
    if tracker.mlflow_run is None:
        return
    names = ("config.yaml", SUMMARY_NAME, WEIGHTS_NAME, DESCRIPTION_NAME)
    tracker.mlflow_run.files(*(run_dir / name for name in names))
    if config.tracking.log_model:
        requirements = [f"{name}=={version(name)}" for name in ("vsr-dist", "torch", "numpy")]
        tracker.mlflow_run.model(generator.cpu().eval(), requirements)


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json` by rename: its presence means that the run has ended."""
    temporary = run_dir / (SUMMARY_NAME + ".tmp")
    temporary.write_text(json.dumps(summary, indent=1))
    os.replace(temporary, run_dir / SUMMARY_NAME)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what is computed."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m vsr_dist.train`; returns the exit status."""
    parser = OneLineParser(
        prog="vsr_dist.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_cli(lambda arguments: run(parser.parse_args(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
