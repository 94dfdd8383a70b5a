"""Several runs and evaluations side by side in one HTML page, which is added to their MLflow runs.

vsr-dist report demo/report --runs demo/run demo/evaluation
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vsr_dist.core.console import say
from vsr_dist.core.errors import OneLineParser, UserError, run_cli
from vsr_dist.reporting.page import refuse_out, write_report
from vsr_dist.reporting.runs import open_compared
from vsr_dist.training.tracked_runs import log_report, tracked_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist report`."""
    parser.add_argument("out", metavar="OUT_DIR", type=Path, help="output folder; an older report in it is replaced")
    parser.add_argument(
        "--runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        required=True,
        help="run directories and output folders of vsr-dist evaluate, in the order of the columns",
    )
    parser.add_argument("--no-mlflow", action="store_true", help="do not add the report to the MLflow runs")


def run(arguments: argparse.Namespace) -> int:
    """Report as the parsed arguments say; returns the exit status."""
    compared = open_compared(arguments.runs)
    refuse_out(arguments.out)
    files = write_report(compared, arguments.out)
    for one in compared.all:
        for fault in one.missing:
            say(f"{one.label}: {fault}")
    say(f"report: {files.page}   beside it: {', '.join(path.name for path in files.documents)}, pictures")
    tracked = [run for one in compared.runs if (run := tracked_run(one.folder)) is not None]
    if tracked and not arguments.no_mlflow:
        try:
            log_report(tracked, arguments.out, files.all)
        except UserError as error:  # The report itself is there.
            say(f"warning: {error}")
        else:
            run_ids = ", ".join(run.run_id for run in tracked)
            say(f"MLflow: reports/{arguments.out.resolve().name} in the artifacts of run {run_ids}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m vsr_dist.report`; returns the exit status."""
    parser = OneLineParser(
        prog="vsr_dist.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_cli(lambda arguments: run(parser.parse_args(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
