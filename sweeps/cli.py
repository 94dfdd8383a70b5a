"""The verbs `run`, `report` and `promote`, for `python -m sweeps` and for `vsr-dist study`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.driver import run_study
from sweeps.promote import promote
from sweeps.report import write_report
from sweeps.study_config import load_study
from vsr_dist.core.config_io import add_override_option
from vsr_dist.core.console import say
from vsr_dist.core.errors import OneLineParser

Subparsers = Any  # argparse gives its sub-parser action no public name


@dataclass(frozen=True)
class Verb:
    """What a verb does, for its help, and the function that does it."""

    summary: str
    handler: Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the three verbs; this is how `vsr-dist study` takes them in."""
    register(parser.add_subparsers(dest="study_verb", required=True, metavar="VERB"))


def register(subparsers: Subparsers) -> None:
    """Add the three verbs; each parser sets `handler`, which takes the parsed arguments and returns the status."""
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
        if name == "promote":
            parser.add_argument("--out", metavar="FILE", type=Path, help="where to (default STUDY_DIR/best.yaml)")
        parser.set_defaults(handler=verb.handler)


def run(arguments: argparse.Namespace) -> int:
    """Do what the parsed arguments say; returns the exit status."""
    return VERBS[arguments.study_verb].handler(arguments)


def main(argv: Sequence[str]) -> int:
    """`python -m sweeps ARGV`; returns the exit status. UserError is left to the caller."""
    parser = OneLineParser(
        prog="python -m sweeps", description="Tune a training with Optuna, one launched run per trial."
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run_verb(arguments: argparse.Namespace) -> int:
    """Run what is left of a study."""
    run_study(load_study(arguments.config, arguments.overrides))
    return 0


def report_verb(arguments: argparse.Namespace) -> int:
    """Write the report and print its table."""
    table_path, picture_path = write_report(load_study(arguments.config, arguments.overrides))
    say(table_path.read_text(encoding="utf-8").rstrip())
    say(f"wrote {table_path} and {picture_path}")
    return 0


def promote_verb(arguments: argparse.Namespace) -> int:
    """Write the best trial's configuration."""
    config = load_study(arguments.config, arguments.overrides)
    best, path = promote(config, arguments.out)
    say(f"wrote {path}: trial {best.number}, {config.objective.metric} {best.value:.4f}")
    if config.set:
        say(f"the study's own overrides are still in it ({', '.join(config.set)}); change them for a full training")
    return 0


VERBS = {
    "run": Verb("run a study, or what is left of it", run_verb),
    "report": Verb("write the table of trials and the history plot", report_verb),
    "promote": Verb("write the best trial's training configuration", promote_verb),
}
