"""`vsr-dist config show|check FILE`: what a configuration resolves to, and whether it can be honoured."""

from __future__ import annotations

import argparse
from pathlib import Path

from vsr_dist.config import check_config, dump_config, load_config
from vsr_dist.core.config_io import add_override_option
from vsr_dist.core.console import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist config`."""
    parser.add_argument("action", choices=["show", "check"], help="print the resolved YAML, or only check")
    parser.add_argument("file", metavar="FILE", type=Path, help="YAML configuration")
    add_override_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show or check; a fault is a `BadConfigError`."""
    config = load_config(arguments.file, arguments.overrides)
    check_config(config)
    say(dump_config(config).rstrip() if arguments.action == "show" else f"{arguments.file} is a valid configuration")
    return 0
