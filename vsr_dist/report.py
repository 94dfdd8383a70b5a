"""Several runs and evaluations side by side, in one HTML page and in MLflow.

vsr-dist report demo/report --runs demo/run demo/evaluation
"""

from __future__ import annotations

import argparse
import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vsr_dist.config import load_config
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError, OneLineParser, run_cli
from vsr_dist.reporting.page import ReportFiles, refuse_out, write_report
from vsr_dist.reporting.runs import Compared, open_compared
from vsr_dist.reporting.tables import verdict_words
from vsr_dist.run_dir import CONFIG_NAME
from vsr_dist.training.outbox import FOLDER_NAME, Outbox
from vsr_dist.training.report_run import publish_files
from vsr_dist.training.tracking_config import TrackingConfig, check_uri

REPORT_KIND = "report"
_MAX_TAG_CHARS = 5000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist report`."""
    parser.add_argument("out", metavar="OUT_DIR", type=Path, help="folder of the report; an older report is replaced")
    parser.add_argument(
        "--runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        required=True,
        help="run directories (vsr-dist train) and output folders of vsr-dist evaluate, in the order to show them",
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow server or file (default: that of the first run)")
    parser.add_argument("--experiment", metavar="NAME", help="MLflow experiment (default: that of the first run)")
    parser.add_argument("--no-mlflow", action="store_true", help="write the files only")


def run(arguments: argparse.Namespace) -> int:
    """Report as the parsed arguments say; returns the exit status."""
    compared = open_compared(arguments.runs)
    refuse_out(arguments.out)
    tracking = None if arguments.no_mlflow else _tracking(arguments, compared)
    files = write_report(compared, arguments.out)
    for one in compared.all:
        for fault in one.missing:
            say(f"{one.label}: {fault}")
    say(f"report: {files.page}   beside it: {', '.join(path.name for path in files.documents)}, pictures")
    if tracking is not None:
        run_id = _publish(tracking, compared, arguments.out, files)
        if run_id is not None:
            say(f"MLflow: run {run_id} at {tracking.uri}, experiment {tracking.experiment}")
    return 0


def _tracking(arguments: argparse.Namespace, compared: Compared) -> TrackingConfig | None:
    """Where the report goes; None where nothing says where, or the first run was not tracked."""
    first = load_config(compared.runs[0].folder / CONFIG_NAME).tracking if compared.runs else None
    if arguments.tracking_uri is not None:
        check_uri(arguments.tracking_uri)
        base = first or TrackingConfig()
        tracking = replace(base, mlflow=True, uri=arguments.tracking_uri)
    elif first is None:
        say("no training run among --runs says where MLflow is: files only; name it by --tracking-uri")
        return None
    elif not first.mlflow:
        say(f"{compared.runs[0].label} was not tracked in MLflow: files only; name a server by --tracking-uri")
        return None
    else:
        tracking = first
    return replace(tracking, experiment=arguments.experiment) if arguments.experiment else tracking


def _publish(tracking: TrackingConfig, compared: Compared, out: Path, files: ReportFiles) -> str | None:
    """Bring the files to MLflow; the id of the report's run there, or None with a warning."""
    known = Outbox(out).target
    if known is not None and (known.uri, known.experiment) != (tracking.uri, tracking.experiment):
        # Its run is on another server; this one gets a run of its own.
        shutil.rmtree(out / FOLDER_NAME)
    try:
        return publish_files(
            # The tags of the first run are about that run.
            replace(tracking, tags={}),
            out,
            files.all,
            name=out.resolve().name,
            token=uuid.uuid4().hex,
            tags=report_tags(compared),
            source="vsr-dist report",
        )
    except OSError as error:
        raise BadConfigError(f"OUT_DIR {out} cannot be written: {error}; name a folder that can") from error


def report_tags(compared: Compared) -> dict[str, str]:
    """Tags of the report's run: what was compared, and where the runs are in MLflow."""
    tags = {"kind": REPORT_KIND, "compared": ", ".join(compared.labels)}
    for number, one in enumerate(compared.runs, start=1):
        tags[f"run_{number}/name"] = one.label
        tags[f"run_{number}/state"] = one.state
        tags[f"run_{number}/drift_verdict"] = verdict_words(one)
        if one.mlflow_run_id is not None:
            tags[f"run_{number}/mlflow_run_id"] = one.mlflow_run_id
    return {name: value[:_MAX_TAG_CHARS] for name, value in tags.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m vsr_dist.report`; returns the exit status."""
    parser = OneLineParser(
        prog="vsr_dist.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_cli(lambda arguments: run(parser.parse_args(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
