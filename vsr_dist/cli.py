"""The command `vsr-dist`: one table of verbs, each in the module that does the work."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sharding.cli import register as register_sharding
from vsr_dist import __version__
from vsr_dist.core.errors import OneLineParser, run_cli


@dataclass(frozen=True)
class Verb:
    """A verb whose module is imported only when it is used: torch and Optuna take seconds to load.

    The module offers `add_arguments(parser)` and `run(arguments) -> exit status`.
    """

    module: str
    summary: str
    example: str


VERBS: dict[str, Verb] = {
    "train": Verb(
        "vsr_dist.train",
        "train with one process (use accelerate launch for more)",
        "vsr-dist train --config configs/demo.yaml --set train.processes=1",
    ),
    "evaluate": Verb(
        "vsr_dist.evaluate",
        "evaluate a generator against bicubic: metrics, pictures and videos",
        "vsr-dist evaluate --checkpoint demo/run --data demo/data --out demo/evaluation",
    ),
    "report": Verb(
        "vsr_dist.report",
        "compare runs and evaluations on one HTML page, which is also logged to MLflow",
        "vsr-dist report demo/report --runs demo/run demo/evaluation",
    ),
    "upscale": Verb(
        "vsr_dist.upscale",
        "upscale a video, or a folder of images",
        "vsr-dist upscale in.mp4 out.mp4 --quality 18 --compare comparison.mp4",
    ),
    "export": Verb(
        "vsr_dist.export",
        "export a generator to ONNX or torch.export",
        "vsr-dist export --checkpoint demo/run --format onnx --out demo/generator.onnx",
    ),
    "import": Verb(
        "vsr_dist.import_cli",
        "turn published weights of BasicVSR into a generator",
        "vsr-dist import basicvsr:reds4 basicvsr_reds4",
    ),
    "config": Verb(
        "vsr_dist.config_cli",
        "show a resolved configuration, or check that training can run with it",
        "vsr-dist config check configs/demo.yaml --set loss.tv=1e-3",
    ),
    "track": Verb(
        "vsr_dist.track_cli",
        "upload what the MLflow server has not received",
        "vsr-dist track replay runs/run",
    ),
    # Named and not imported: `sweeps` stands above this package, which must work without it.
    "study": Verb(
        "sweeps.cli",
        "tune hyperparameters with Optuna, report, promote the best trial",
        "vsr-dist study run --config configs/studies/demo.yaml",
    ),
}


def make_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The whole parser; of the verbs with a module of their own, only `chosen` gets its options."""
    parser = OneLineParser(
        prog="vsr-dist",
        description="Train, compare and tune video super-resolution GANs on many GPUs.",
        epilog="'vsr-dist VERB --help' lists the options of a verb and gives an example.",
    )
    parser.add_argument("--version", action="version", version=f"vsr-dist {__version__}")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    register_sharding(subparsers)
    for name, verb in VERBS.items():
        sub = subparsers.add_parser(
            name,
            help=verb.summary,
            description=verb.summary[0].upper() + verb.summary[1:] + ".",
            epilog=f"example:\n  {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            module = importlib.import_module(verb.module)
            module.add_arguments(sub)
            sub.set_defaults(handler=module.run)
    return parser


def _dispatch(argv: Sequence[str]) -> int:
    chosen = argv[0] if argv and argv[0] in VERBS else None
    arguments = make_parser(chosen).parse_args(argv)
    status: int = arguments.handler(arguments)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vsr-dist ARGV` and return its exit status: 0 done, 2 the user's mistake, 1 a bug."""
    return run_cli(_dispatch, argv)


if __name__ == "__main__":
    sys.exit(main())
