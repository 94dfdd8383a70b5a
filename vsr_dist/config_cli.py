"""`vsr-dist config show|check FILE`: what a configuration resolves to, and whether a training can run with it."""

from __future__ import annotations

import argparse
from pathlib import Path

from vsr_dist.build import check_world, measure_terms, open_inputs, resolve_epochs
from vsr_dist.config import Config, check_config, dump_config, load_config
from vsr_dist.core.collectives import World
from vsr_dist.core.config_io import add_override_option
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist config`."""
    parser.add_argument(
        "action",
        choices=["show", "check"],
        help="show: print the resolved YAML; check: open the data and all weights that training would read, and report "
        "every error",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="YAML configuration")
    add_override_option(parser)
    parser.add_argument("--no-data", action="store_true", help="check: open neither data nor weights")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="check: also print the gradient norm of every loss term at the generator's output as a share of the image "
        "term's, for the first batch and the initial weights",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show or check; an error in the configuration is a `BadConfigError`."""
    if (arguments.no_data or arguments.measure) and arguments.action == "show":
        raise BadConfigError("--no-data and --measure are options of 'config check' only")
    if arguments.no_data and arguments.measure:
        raise BadConfigError("--measure needs the data; remove --no-data")
    config = load_config(arguments.file, arguments.overrides)
    if arguments.action == "show":
        check_config(config)
        say(dump_config(config).rstrip())
        return 0
    check_config(config)
    if not arguments.no_data:
        _check_inputs(config, measure=arguments.measure)
    say(f"{arguments.file} is a valid configuration")
    return 0


def _check_inputs(config: Config, *, measure: bool) -> None:
    world = World(0, config.train.processes or 1)
    check_world(config, world)
    resolved = resolve_epochs(config)
    inputs = open_inputs(resolved, world)
    if resolved.train.steps != config.train.steps:
        num_windows = len(inputs.loader.windows)
        say(f"train.epochs {config.train.epochs}: {resolved.train.steps:,} steps over {num_windows:,} windows")
    if measure:
        say(f"{'term':<12} {'weight':>10} {'share of the image gradient':>28}")
        for term in measure_terms(resolved):
            say(f"{term.name:<12} {term.weight:>10.3g} {term.share:>28.3g}")
