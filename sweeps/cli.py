"""The verbs `run`, `report` and `promote`, for `python -m sweeps` and for `vsr-dist study`.

Their help works without Optuna, which is in the extra `studies`: what needs it is imported by the verbs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_dist.core.config_io import add_override_option
from vsr_dist.core.console import say
from vsr_dist.core.errors import OneLineParser, import_extra
from vsr_dist.run_dir import STOPPED_STATUS

Subparsers = Any  # argparse gives its sub-parser action no public name


@dataclass(frozen=True)
class Verb:
    """What a verb does, for its help, and the function that does it."""

    summary: str
    handler: Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three verbs to a parser, such as that of `vsr-dist study`."""
    register(parser.add_subparsers(dest="study_verb", required=True, metavar="VERB"))


def register(subparsers: Subparsers) -> None:
    """Add the three verbs to subparsers with the dest `study_verb`; each parser sets `handler` to `run`."""
    for name, verb in VERBS.items():
        parser: argparse.ArgumentParser = subparsers.add_parser(
            name,
            help=verb.summary,
            description=verb.summary[0].upper() + verb.summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.epilog = f"example:\n  {parser.prog} --config configs/studies/demo.yaml"
        parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="YAML file of the study")
        add_override_option(parser, "num_trials=50")
        if name == "run":
            _add_run_options(parser)
        if name == "promote":
            parser.add_argument("--out", metavar="FILE", type=Path, help="output file (default STUDY_DIR/best.yaml)")
            parser.add_argument("--number", metavar="N", type=int, help="trial to promote instead of the best one")
        parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen verb; returns the exit status. Raises MissingExtraError without Optuna."""
    import_extra("studies", "optuna", "a study")
    return VERBS[arguments.study_verb].handler(arguments)


def main(argv: Sequence[str]) -> int:
    """`python -m sweeps ARGV`; returns the exit status. Raises UserError."""
    parser = OneLineParser(
        prog="python -m sweeps", description="Tune hyperparameters with Optuna, one launched training run per trial."
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Settings that depend on the machine rather than on the study."""
    parser.add_argument("--workers", type=int, metavar="N", help="trials in parallel (default: workers in FILE, or 1)")
    parser.add_argument(
        "--gpus-per-trial",
        type=int,
        metavar="K",
        help="GPUs per trial (default: as in FILE, or all of them)",
    )


def run_verb(arguments: argparse.Namespace) -> int:
    """Run or continue a study, and write its report; 143 if a signal stopped it."""
    from sweeps.config import load_study  # noqa: PLC0415
    from sweeps.driver import run_study  # noqa: PLC0415
    from sweeps.report import publish_report  # noqa: PLC0415

    given = {"workers": arguments.workers, "launch.gpus_per_trial": arguments.gpus_per_trial}
    shortcuts = [f"{path}={value}" for path, value in given.items() if value is not None]
    config = load_study(arguments.config, [*arguments.overrides, *shortcuts])
    try:
        run_study(config)
    except KeyboardInterrupt:
        say("stopped; run the same command again to continue: interrupted trials resume from their checkpoints")
        return STOPPED_STATUS
    files, _ = publish_report(config)
    say(f"report: {files.page}")
    return 0


def report_verb(arguments: argparse.Namespace) -> int:
    """Write the report and print it."""
    from sweeps.config import load_study  # noqa: PLC0415
    from sweeps.report import publish_report  # noqa: PLC0415

    files, run_id = publish_report(load_study(arguments.config, arguments.overrides))
    say(files.markdown.read_text(encoding="utf-8").rstrip())
    say(f"wrote {files.markdown}, {files.page} and {files.table}{f'; MLflow run {run_id}' if run_id else ''}")
    return 0


def promote_verb(arguments: argparse.Namespace) -> int:
    """Write the configuration of the best trial, or of one chosen by number."""
    from sweeps.config import load_study  # noqa: PLC0415
    from sweeps.findings import load_findings  # noqa: PLC0415
    from sweeps.trial import outcome, promote  # noqa: PLC0415

    config = load_study(arguments.config, arguments.overrides)
    chosen, path = promote(config, arguments.out, arguments.number)
    say(f"wrote {path}: trial {chosen.number}, {outcome(load_findings(config), chosen)}")
    if config.set:
        say(f"it still contains the study's `set` ({', '.join(config.set)}); change this for a full training run")
    return 0


VERBS = {
    "run": Verb("run or continue a study", run_verb),
    "report": Verb("write the report (markdown, HTML, CSV), even while the study runs", report_verb),
    "promote": Verb("write the training configuration of the best trial, or of one chosen by number", promote_verb),
}
