"""`vsr-dist track replay RUN_DIR`: upload what the MLflow server has not received."""

from __future__ import annotations

import argparse
from pathlib import Path

from vsr_dist.config import Config
from vsr_dist.core.errors import BadInputError
from vsr_dist.run_dir import SUMMARY_NAME, lock_run_dir
from vsr_dist.training.tracked_runs import replay
from vsr_dist.training.tracking import FOLDER_NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist track`."""
    parser.add_argument(
        "action", choices=["replay"], help="upload what the MLflow server has not received; safe to repeat"
    )
    parser.add_argument(
        "run_dir",
        metavar="RUN_DIR",
        type=Path,
        help="directory of a run that is not training, or folder of a tracked evaluation, report or study",
    )


def run(arguments: argparse.Namespace) -> int:
    """Replay; a server that still does not answer is a `UserError`, and everything stays for the next try."""
    run_dir: Path = arguments.run_dir
    if not (run_dir / FOLDER_NAME).is_dir():
        raise BadInputError(f"{run_dir} contains nothing that is tracked in MLflow; give a run directory")
    with lock_run_dir(Config(run_dir=str(run_dir))):
        replay(run_dir, finished=(run_dir / SUMMARY_NAME).exists())
    return 0
