"""The run directory: one training at a time, where to start, and what a resumed run must have in common."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from vsr_dist.config import Config, config_tree, dump_config
from vsr_dist.core.collectives import is_lost_rank
from vsr_dist.core.config_io import effects, flatten, read_yaml
from vsr_dist.core.errors import BadCheckpointError, BadConfigError, LostRankError, UserError
from vsr_dist.core.files import write_json
from vsr_dist.inference.generator_io import DESCRIPTION_NAME, WEIGHTS_NAME, InitialWeights
from vsr_dist.training import checkpoint

CONFIG_NAME = "config.yaml"
SUMMARY_NAME = "summary.json"
ENDED_NAME = "ended.json"
ORIGIN_NAME = "init_generator.json"
# Result fields that a resumed run may change all the same: the batch of a step stays what it was, only its division
# into micro-batches differs, as it does on another number of processes.
_MAY_CHANGE = {"train.accumulation_steps"}
# Of a run that SIGTERM stopped: 128 + 15, what a shell reports of a process that this signal ended.
STOPPED_STATUS = 143
# Of a process whose training lost another one: EX_TEMPFAIL of sysexits.h, "try again".
LOST_RANK_STATUS = 75


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
        raise BadConfigError(f"run_dir {run_dir} cannot be created: {error}; set a writable run_dir") from error
    file = (run_dir / "run.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadConfigError(f"{run_dir} is in use by another training; wait for it or set another run_dir") from error
    except OSError as error:
        raise BadConfigError(f"{run_dir} is on a file system without locks ({error}); set another run_dir") from error
    return file


def prepare_run_dir(config: Config, resume: str | None) -> Start:
    """Decide where to start; a directory with a run in it is an error unless that is resumed."""
    run_dir = Path(config.run_dir)
    newest = checkpoint.newest(run_dir / "checkpoints")
    used = newest is not None or (run_dir / "metrics.jsonl").exists()
    if used and resume is None:
        raise BadConfigError(
            f"{run_dir} already contains a run; add --resume auto to resume it, or set another run_dir"
        )
    start = Start()
    if newest is not None:
        start = Start(newest, checkpoint.read_state(newest))
        _refuse_changed_config(config, start.state["config"], newest)
        files = (SUMMARY_NAME, WEIGHTS_NAME, DESCRIPTION_NAME)
        if start.state["step"] >= config.train.steps and all((run_dir / name).exists() for name in files):
            return replace(start, finished=True)
    elif used and (run_dir / CONFIG_NAME).exists():
        # What MLflow has of the steps before its first checkpoint would be taken for this run's.
        _refuse_changed_config(config, read_yaml(run_dir / CONFIG_NAME), run_dir / CONFIG_NAME)
    (run_dir / CONFIG_NAME).write_text(dump_config(config))
    return start


def _refuse_changed_config(config: Config, begun_with: Mapping[str, Any], origin: Path) -> None:
    """A resumed run must compute what the interrupted one would have: no `result` field may differ, but for one."""
    saved = flatten(begun_with)
    current = flatten(config_tree(config))
    kinds = effects(config)
    changed = [
        f"{key} {saved.get(key)!r} -> {current.get(key)!r}"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key) != current.get(key) and kinds.get(key, "result") == "result" and key not in _MAY_CHANGE
    ]
    if changed:
        raise BadCheckpointError(
            f"{origin} was saved by a run with other settings ({'; '.join(changed)}); a resumed run must "
            "keep them: set another run_dir to start a new run"
        )


def refuse_changed_data(start: Start, found: str) -> None:
    """The data may have moved, but it must be the set with the digest that the checkpoint names."""
    saved = start.state.get("data_digest")
    if saved is not None and saved != found:
        raise BadCheckpointError(
            f"{start.checkpoint} was trained on the shard set with digest {saved}; data.root now has {found}: use "
            "the same data set, or set another run_dir to start a new run"
        )


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json` by rename: its presence means that the run has ended."""
    write_json(run_dir / SUMMARY_NAME, summary)


def note_origin(run_dir: Path, source: str | None, initial: InitialWeights | None) -> None:
    """Leave in the run directory which weights a fresh run's generator started from; a resumed run keeps that."""
    if initial is not None:
        write_json(run_dir / ORIGIN_NAME, {"init_generator": source, "init_generator_sha256": initial.sha256})


def read_origin(run_dir: Path, source: str | None) -> dict[str, str]:
    """`init_generator_sha256` of a run whose `train.init_generator` is `source`; nothing for none."""
    if source is None:
        return {}
    noted: dict[str, str] = json.loads((run_dir / ORIGIN_NAME).read_text())
    return {"init_generator_sha256": noted["init_generator_sha256"]}


@dataclass
class Ending:
    """How a run ended, by its exit status; 0 until it is set."""

    status: int = 0


@contextmanager
def note_ending(run_dir: Path | None) -> Iterator[Ending]:
    """Leave `ended.json` when the block ends, however it ends, but for SIGKILL: then the file is absent.

    For whoever started the run and sees only what the launcher made of its status. `exit_reason` is `finished`,
    `stopped` (SIGTERM, saved), `interrupted` (Ctrl-C), `lost_rank` or `failed`, with the error and its message.
    A RuntimeError that means a lost rank becomes a LostRankError. With `run_dir` None, as on other ranks than 0,
    nothing is written.
    """
    ending = Ending()
    if run_dir is not None:
        (run_dir / ENDED_NAME).unlink(missing_ok=True)
    try:
        try:
            yield ending
        except RuntimeError as error:
            if not is_lost_rank(error):
                raise
            reason = str(error).partition("\n")[0]
            raise LostRankError(
                f"another process of this run exited or does not respond ({reason}); the launcher's output names "
                "it; resume with --resume auto"
            ) from error
    except BaseException as error:
        _write_ended(run_dir, *_judge(error), error)
        raise
    _write_ended(run_dir, "stopped" if ending.status == STOPPED_STATUS else "finished", ending.status)


def read_ended(run_dir: Path) -> dict[str, Any] | None:
    """What `note_ending` left in a run directory, or None: the run goes on, was killed, or never began."""
    try:
        noted = json.loads((run_dir / ENDED_NAME).read_text())
    except (OSError, ValueError):
        return None
    return noted if isinstance(noted, dict) and "exit_reason" in noted else None


def _judge(error: BaseException) -> tuple[str, int]:
    """Exit reason and status of a run that ends with this error."""
    if isinstance(error, LostRankError):
        return "lost_rank", LOST_RANK_STATUS
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    return "failed", 2 if isinstance(error, UserError) else 1


def _write_ended(run_dir: Path | None, reason: str, status: int, error: BaseException | None = None) -> None:
    if run_dir is None:
        return
    facts = {"exit_reason": reason, "status": status, "time_s": round(time.time(), 3)}
    if error is not None:
        facts |= {"error": type(error).__name__, "message": str(error)}
    write_json(run_dir / ENDED_NAME, facts)
