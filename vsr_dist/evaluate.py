"""Evaluate a generator, a simple method or a finished result against the ground truth, in numbers and pictures.

vsr-dist evaluate --checkpoint demo/run --data demo/data --out demo/evaluation
vsr-dist evaluate --checkpoint demo/run --low LQ_test --real GT_test --protocol realvsr --out evaluation
vsr-dist evaluate --fake result.mp4 --real truth.mp4 --out evaluation
vsr-dist evaluate --results evaluation --against other/evaluation --out compared
accelerate launch --config_file configs/accelerate/cpu-2.yaml -m vsr_dist.evaluate --checkpoint ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vsr_dist.core.collectives import World, gather_lists, join_ranks, raise_on_all_ranks, shutdown
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError, BadInputError, OneLineParser, UserError, run_cli
from vsr_dist.evaluation.output import RESULT_FILES, Report, clear, compare_results, write
from vsr_dist.evaluation.results import (
    Result,
    check_measured_alike,
    compare_in_one,
    compare_with_result,
    is_result,
    read_result,
)
from vsr_dist.evaluation.scoring import Measured, Measurement, Scorer, available
from vsr_dist.evaluation.sources import EvaluationSource, PairSource, ShardSource
from vsr_dist.evaluation.subjects import (
    NAMED_METHODS,
    OTHER,
    RESULT,
    Subject,
    baseline,
    open_checkpoint,
    open_device,
    open_method,
)
from vsr_dist.inference.engine import StreamOptions, add_stream_arguments
from vsr_dist.inference.pictures import stack_rows
from vsr_dist.metrics.registry import EVALUATED, PROTOCOLS, Protocol, find_protocol, parse_metrics
from vsr_dist.training.tracked_runs import TrackedRun, log_evaluation, tracked_run

_THIS = "this evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist evaluate`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--checkpoint", metavar="RUN", type=Path, help="directory of a finished run, or its generator.safetensors"
    )
    what.add_argument("--method", choices=NAMED_METHODS, help="method without training")
    what.add_argument(
        "--fake", metavar="RESULT", type=Path, help="result of any program: video, folder of images, or folder of these"
    )
    what.add_argument("--results", metavar="DIR", type=Path, help="finished evaluation, to compare with --against")
    parser.add_argument("--data", metavar="DIR", type=Path, help="data set written by pack, to evaluate on")
    parser.add_argument("--split", default="val", help="split of --data (default: %(default)s)")
    parser.add_argument(
        "--real", metavar="PATH", type=Path, help="ground truth: video, folder of images, or folder of these"
    )
    parser.add_argument("--low", metavar="PATH", type=Path, help="low-resolution input of --real, in the same layout")
    parser.add_argument("--against", metavar="PATH", type=Path, help="run, weight file or evaluation to compare with")
    parser.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        default="default",
        help="which border, frames and rounding the metrics use (default: %(default)s)",
    )
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        help=f"comma-separated (default: those of the protocol), or all: every one that is installed of "
        f"{', '.join(EVALUATED)}",
    )
    parser.add_argument(
        "--scale", metavar="N", type=int, help="scale of --fake without --low, for the border (default: 1)"
    )
    parser.add_argument("--frames", metavar="N", type=int, help="first N frames of each sequence (default: all)")
    parser.add_argument("--no-pictures", action="store_true", help="metrics only, no pictures or videos (faster)")
    parser.add_argument(
        "--track", action="store_true", help="log the results to the MLflow run that trained the checkpoint"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="output folder for metrics, pictures, videos and report"
    )
    add = parser.add_argument_group("network").add_argument
    add(
        "--device",
        metavar="NAME",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu or cuda (default: a GPU if there is one)",
    )
    add_stream_arguments(add)


@dataclass(frozen=True)
class _Job:
    source: EvaluationSource
    subjects: list[Subject]
    preset: Protocol
    metrics: tuple[str, ...]
    left_out: dict[str, str]
    scorer: Scorer
    device: torch.device
    tracked: TrackedRun | None


def run(arguments: argparse.Namespace) -> int:
    """Evaluate as the parsed arguments say; returns the exit status.

    With several processes each measures whole sequences, and rank 0 writes the same files as a single process.
    """
    _check(arguments)
    if arguments.results is not None:
        compare_results(arguments.results, arguments.against, arguments.out)
        return 0
    world = join_ranks()
    try:
        job = raise_on_all_ranks(lambda: _open(arguments, world))
        pictures = arguments.out if job.source.has_low and not arguments.no_pictures else None
        raise_on_all_ranks(lambda: clear(arguments.out, pictures is not None) if world.is_main else None)
        measurement = Measurement(job.source, job.subjects, job.scorer, job.preset.trim_frames, job.device)
        measured = raise_on_all_ranks(lambda: measurement.run(pictures, world))
        order = [info.name for info in job.source.sequences]
        measured = sorted(gather_lists(measured), key=lambda one: order.index(one.sequence))
        if world.is_main:
            report = _report(arguments, job, measured)
            data = write(arguments.out, report)
            if job.tracked is not None:
                _track(arguments, job.tracked, report, data)
    finally:
        shutdown()
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that exclude each other, before anything is opened."""
    out, results, data, real, low = (getattr(arguments, name) for name in ("out", "results", "data", "real", "low"))
    has_fake, scale, frames = arguments.fake is not None, arguments.scale, arguments.frames
    measures = results is None
    networks = [path for path in (arguments.checkpoint, arguments.against) if path is not None and not is_result(path)]
    faults = {
        f"--out {out} is a file; expected a folder, or a new name": out.exists() and not out.is_dir(),
        "--track needs --checkpoint: the results go to the run that trained it": arguments.track
        and arguments.checkpoint is None,
        "--results compares two finished evaluations: give --against, and no --data or --real": not measures
        and (arguments.against is None or any((data, real, low))),
        "--results does not measure again: remove --protocol, --metrics, --frames and --scale": not measures
        and (arguments.protocol != "default" or any((arguments.metrics, frames, scale))),
        "expected either --data (a shard set), or --real (the ground truth) with --low (its input)": measures
        and (data is None) == (real is None),
        "--low needs --real, its ground truth": low is not None and real is None,
        "--fake needs --real, the ground truth to measure it against": has_fake and real is None,
        "--checkpoint and --method need --low, the input to upscale; or give a finished result as --fake": measures
        and not has_fake
        and real is not None
        and low is None,
        "--scale is for --real; a shard set states its scale": scale is not None and data is not None,
        "--tile, --tile-overlap, --precision, --compile and --no-cuts are for networks: give --checkpoint": not networks
        and StreamOptions.of(arguments) != StreamOptions(),
        f"--scale is {scale}; expected at least 1": scale is not None and scale < 1,
        f"--frames is {frames}; expected at least 2": frames is not None and frames < 2,
    }
    for message, is_fault in faults.items():
        if is_fault:
            raise BadConfigError(message)


def _open(arguments: argparse.Namespace, world: World) -> _Job:
    """Open the data, the methods and the metrics; whatever cannot be used is an error here."""
    source = _source(arguments)
    if world.is_main:
        for line in source.notes:
            say(line)
    preset = find_protocol(arguments.protocol)
    shortest = min(source.sequences, key=lambda info: info.num_frames)
    if shortest.num_frames <= 2 * preset.trim_frames:
        raise BadInputError(
            f"sequence {shortest.name} has {shortest.num_frames} frames, but protocol {preset.name} cuts "
            f"{preset.trim_frames} at both ends; evaluate longer sequences, or use another --protocol"
        )
    if arguments.against is not None and is_result(arguments.against):
        # Before hours of measuring.
        check_measured_alike(_THIS, _alike(source, preset), read_result(arguments.against))
    device = open_device(arguments.device, world)
    subjects = baseline(source, device)
    if arguments.against is not None and not is_result(arguments.against):
        if not source.has_low:
            raise BadConfigError(f"--against {arguments.against} is a network, which needs --low as its input")
        subjects.append(open_checkpoint(arguments.against, source, device, StreamOptions.of(arguments), OTHER))
    subjects.append(_subject(arguments, source, device))
    tracked = None
    if arguments.track:
        folder = arguments.checkpoint if arguments.checkpoint.is_dir() else arguments.checkpoint.parent
        tracked = tracked_run(folder, subjects[-1].description.get("provenance"))
        if tracked is None:
            raise BadConfigError(f"--track: {arguments.checkpoint} was not tracked in MLflow; remove --track")
    # The method may be the baseline itself: it is measured once.
    subjects = [one for one in subjects if one.name != subjects[-1].name] + [subjects[-1]]
    metrics = preset.metrics
    left_out: dict[str, str] = {}
    if arguments.metrics == "all":
        metrics, left_out = available(EVALUATED)
    elif arguments.metrics is not None:
        metrics = parse_metrics(arguments.metrics)
    scorer = Scorer(metrics, preset, source.scale, device)
    return _Job(source, subjects, preset, metrics, left_out, scorer, device, tracked)


def _alike(source: EvaluationSource, preset: Protocol) -> dict[str, object]:
    """What must be equal in a result to compare with."""
    digest = source.description.get("data_digest")
    return {"protocol_name": preset.name, "data_digest": digest, "scale": source.scale}


def _source(arguments: argparse.Namespace) -> EvaluationSource:
    if arguments.data is not None:
        return ShardSource(arguments.data, arguments.split, arguments.frames)
    return PairSource(arguments.low, arguments.fake, arguments.real, arguments.frames, arguments.scale)


def _subject(arguments: argparse.Namespace, source: EvaluationSource, device: torch.device) -> Subject:
    if arguments.fake is not None:
        return Subject(RESULT, None, {"result": str(arguments.fake)})
    if arguments.method is not None:
        return open_method(arguments.method, source, device)
    return open_checkpoint(arguments.checkpoint, source, device, StreamOptions.of(arguments))


def _report(arguments: argparse.Namespace, job: _Job, measured: Sequence[Measured]) -> Report:
    rows = [row for one in measured for row in one.rows]
    methods = [subject.name for subject in job.subjects]
    comparisons = compare_in_one(rows, methods)
    if arguments.against is not None and is_result(arguments.against):
        this = Result(_THIS, rows, methods[-1], _alike(job.source, job.preset))
        comparisons.insert(0, compare_with_result(this, arguments.against))
    what = arguments.checkpoint or arguments.method or arguments.fake
    pictures = [one.picture for one in measured if one.picture is not None]
    title = f"{what} on {job.source.title}"
    return Report(
        title,
        job.source,
        job.subjects,
        job.preset,
        job.metrics,
        job.left_out,
        rows,
        pictures,
        comparisons,
        arguments.frames,
    )


def _track(arguments: argparse.Namespace, tracked: TrackedRun, report: Report, data: Mapping[str, Any]) -> None:
    """Add the results to the MLflow run of the checkpoint, as `evaluation/NAME OF THE DATA/...`."""
    main = report.methods[-1]
    data_name = arguments.real.stem if arguments.data is None else arguments.data.resolve().name
    name = data_name if arguments.data is None else f"{data_name}-{arguments.split}"
    ends = data["intervals"].get(main, {})
    try:
        log_evaluation(
            tracked,
            arguments.out,
            name=name,
            step=int(report.subjects[-1].description.get("provenance", {}).get("steps", 0)),
            scores=data["table"]["overall"][main],
            intervals={metric: (found["low"], found["high"]) for metric, found in ends.items()},
            pictures={"comparison": stack_rows(list(report.pictures))} if report.pictures else {},
            files=[path for file in RESULT_FILES if (path := arguments.out / file).is_file()],
            dataset=(data_name, data["data_digest"]),
        )
    except UserError as error:  # The results themselves are there.
        say(f"warning: {error}")
    else:
        say(f"MLflow: evaluation/{name} in run {tracked.run_id} at {tracked.uri}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m vsr_dist.evaluate`; returns the exit status."""
    parser = OneLineParser(
        prog="vsr_dist.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_cli(lambda arguments: run(parser.parse_args(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
