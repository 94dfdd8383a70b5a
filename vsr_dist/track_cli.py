"""`vsr-dist track replay RUN_DIR`: bring to MLflow what its server has not taken while the run trained."""

from __future__ import annotations

import argparse
from pathlib import Path

from vsr_dist.build import generator_of
from vsr_dist.config import Config
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadInputError, UserError
from vsr_dist.run_dir import SUMMARY_NAME, lock_run_dir
from vsr_dist.training.metrics_file import METRICS_NAME, MetricsFile
from vsr_dist.training.outbox import FOLDER_NAME, Outbox, now_ms
from vsr_dist.training.shipping import Delivery, Rejected, Unavailable
from vsr_dist.training.tracking import MlflowDestination
from vsr_dist.training.tracking_config import check_uri


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist track`."""
    parser.add_argument("action", choices=["replay"], help="send what MLflow has not taken; what it has is left alone")
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="run directory of a run that does not train now")


def run(arguments: argparse.Namespace) -> int:
    """Replay; a server that is still away is a `UserError`, and everything stays for the next try."""
    run_dir: Path = arguments.run_dir
    if not (run_dir / FOLDER_NAME / "target.json").is_file():
        raise BadInputError(f"{run_dir} holds no run that was tracked in MLflow; name the run_dir of one")
    with lock_run_dir(Config(run_dir=str(run_dir))):
        _replay(run_dir)
    return 0


def _replay(run_dir: Path) -> None:
    outbox = Outbox(run_dir)
    assert outbox.target is not None
    check_uri(outbox.target.uri)
    file = MetricsFile(run_dir / METRICS_NAME, None)
    destination = MlflowDestination(outbox.target.uri, generator_of)
    delivery = Delivery(file, outbox, destination)
    _end_a_dead_run(outbox)
    num_scalars, num_things = delivery.outstanding()
    try:
        delivery.run()
    except (Unavailable, Rejected) as error:
        left = delivery.outstanding()
        raise UserError(
            f"MLflow at {outbox.target.uri} did not take everything: {error}; {left[0]:,} scalars and {left[1]:,} "
            "other things stay in the run directory, run the same command again when it is back"
        ) from error
    say(
        f"sent {num_scalars:,} scalars and {num_things:,} other things; MLflow has all of {run_dir} as run "
        f"{outbox.state.run_id}"
    )


def _end_a_dead_run(outbox: Outbox) -> None:
    """Give a run whose process died without a word its status: nothing trains here now, or the lock were taken."""
    waiting = [job.payload["status"] for job in outbox.jobs() if job.kind == "status"]
    if outbox.state.status in {None, "RUNNING"} and (not waiting or waiting == ["RUNNING"]):
        finished = (outbox.run_dir / SUMMARY_NAME).exists()
        outbox.put("status", status="FINISHED" if finished else "FAILED", time_ms=now_ms())
