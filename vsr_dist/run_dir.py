"""The run directory: one training at a time, where to start, and what a resumed run must have in common."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from vsr_dist.config import Config, config_tree, dump_config
from vsr_dist.core.config_io import flatten
from vsr_dist.core.errors import BadCheckpointError, BadConfigError
from vsr_dist.core.fields import effects
from vsr_dist.inference.generator_io import DESCRIPTION_NAME, WEIGHTS_NAME
from vsr_dist.training import checkpoint

SUMMARY_NAME = "summary.json"
RUN_ID_NAME = "mlflow_run_id"


@dataclass(frozen=True)
class Start:
    """Where a run begins: the checkpoint to resume from and the state in it, and whether nothing is left to do."""

    checkpoint: Path | None = None
    state: dict[str, Any] = field(default_factory=lambda: {"step": 0})
    finished: bool = False


def lock_run_dir(config: Config) -> TextIO:
    """Make the run directory and lock it against a second training at the same time."""
    run_dir = Path(config.run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadConfigError(f"run_dir {run_dir} cannot be made: {error}; name a folder that can") from error
    file = (run_dir / "run.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BadConfigError(f"{run_dir} is in use by another training; wait for it or set another run_dir") from error
    return file


def prepare_run_dir(config: Config, resume: str | None) -> Start:
    """Decide where to start; a directory with a run in it is an error unless that is resumed."""
    run_dir = Path(config.run_dir)
    newest = checkpoint.newest(run_dir / "checkpoints")
    used = newest is not None or (run_dir / "metrics.jsonl").exists()
    if used and resume is None:
        raise BadConfigError(
            f"{run_dir} holds a run already; add --resume auto to go on with it, or set another run_dir"
        )
    start = Start()
    if newest is not None:
        start = Start(newest, checkpoint.read_state(newest))
        _refuse_changed_config(config, start)
        files = (SUMMARY_NAME, WEIGHTS_NAME, DESCRIPTION_NAME)
        if start.state["step"] >= config.train.steps and all((run_dir / name).exists() for name in files):
            return replace(start, finished=True)
    (run_dir / "config.yaml").write_text(dump_config(config))
    return start


def _refuse_changed_config(config: Config, start: Start) -> None:
    """A resumed run must compute what the interrupted one would have: no `result` field may differ."""
    saved = flatten(start.state["config"])
    current = flatten(config_tree(config))
    kinds = effects(config)
    changed = [
        f"{key} {saved.get(key)!r} -> {current.get(key)!r}"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key) != current.get(key) and kinds.get(key, "result") == "result"
    ]
    if changed:
        raise BadCheckpointError(
            f"{start.checkpoint} was saved by a run with other settings ({'; '.join(changed)}); a resumed run must "
            "keep them: set another run_dir to start a new run"
        )


def refuse_changed_data(start: Start, found: str) -> None:
    """The data may have moved, but it must be the set with the digest that the checkpoint names."""
    saved = start.state.get("data_digest")
    if saved is not None and saved != found:
        raise BadCheckpointError(
            f"{start.checkpoint} was trained on the shard set with digest {saved}; data.root now has {found}: name the "
            "same set, or set another run_dir to start a new run"
        )


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json` by rename: its presence means that the run has ended."""
    temporary = run_dir / (SUMMARY_NAME + ".tmp")
    temporary.write_text(json.dumps(summary, indent=1))
    os.replace(temporary, run_dir / SUMMARY_NAME)
