"""Measure a generator (or bicubic) on a held-out split, beside bicubic, and show what it does.

vsr-dist evaluate --checkpoint demo/run --data demo/data --out demo/evaluation
accelerate launch --config_file configs/accelerate/cpu-2.yaml -m vsr_dist.evaluate --checkpoint ...
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sharding.schema import Index
from vsr_dist.core.collectives import gather_lists, join_ranks, shutdown, together
from vsr_dist.core.console import Progress, say
from vsr_dist.core.errors import BadConfigError, OneLineParser, run_cli
from vsr_dist.core.versions import package_versions
from vsr_dist.core.world import World
from vsr_dist.data.augment import Frames
from vsr_dist.data.stream import SplitStream, StreamedClip
from vsr_dist.inference.generator_io import load_generator
from vsr_dist.inference.sequence import BicubicUpscaler, GeneratorUpscaler, SequenceUpscaler
from vsr_dist.inference.sequence_show import FILES_TEXT, SHOW_TEXT, SequenceShow, clear_pictures
from vsr_dist.inference.showcase import FrameSet, stack_rows, write_png
from vsr_dist.metrics.fidelity import frame_fidelity
from vsr_dist.metrics.table import FrameRow, markdown_table, plain_table, summarise, write_csv
from vsr_dist.metrics.temporal import tdiff, tof
from vsr_dist.ops.color import from_uint8, to_uint8
from vsr_dist.ops.picture import Picture

SHOWN_METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "tof", "tdiff")
PROTOCOL = (
    "Frames are rounded to 8 bits; {border} pixels are cut from each side; every frame of the split is measured. "
    "PSNR (peak 255) and SSIM (Gaussian window, sigma 1.5) come from scikit-image, on BT.601 studio-range luma (Y) "
    "and on RGB, per frame, averaged over the frames of a video; `overall` is the mean of the videos. tOF is the "
    "mean length in pixels of the difference between Farneback flows of result and truth (TecoGAN's measure, no "
    "frames cut), tdiff the mean squared error of the frame-to-frame change; both need a frame before, so the first "
    "of a sequence has none. Bicubic is cubic convolution with a = -0.5."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist evaluate`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="finished run directory, or its generator.safetensors")
    what.add_argument("--method", choices=["bicubic"], help="evaluate a method that needs no training")
    parser.add_argument("--data", type=Path, required=True, help="folder of a packed shard set")
    parser.add_argument("--split", default="val", help="split to measure (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics, pictures, videos and report")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")


@dataclass(frozen=True)
class Subject:
    """What is measured: a name for the tables, the upscaler, and where it comes from."""

    name: str
    upscaler: SequenceUpscaler
    description: dict[str, Any]


def run(arguments: argparse.Namespace) -> int:
    """Evaluate as the parsed arguments say; returns the exit status.

    On several processes each measures whole sequences of its own, and rank 0 writes what one process would write.
    """
    world = join_ranks()
    try:
        stream, subject, device = together(lambda: _open(arguments, world))
        together(lambda: _clear(arguments.out) if world.is_main else None)
        part = stream.part(world)
        measured = together(lambda: _measure(part, subject, device, arguments.out, world))
        measured = sorted(gather_lists(measured), key=lambda one: stream.sequences.index(one.sequence))
        if world.is_main:
            _write(arguments, stream.index, subject, measured)
    finally:
        shutdown()
    return 0


def _open(arguments: argparse.Namespace, world: World) -> tuple[SplitStream, Subject, torch.device]:
    """What is measured, by what and where; whatever cannot be used is an error here."""
    stream = SplitStream(arguments.data, arguments.split)
    device = _device(arguments.device, world)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise BadConfigError(f"--out {arguments.out} is a file; expected a folder, or a name that is free")
    return stream, _subject(arguments, stream.index.scale, device), device


def _clear(out: Path) -> None:
    """The output folder, without the pictures of an earlier evaluation, which would pass for this one's."""
    out.mkdir(parents=True, exist_ok=True)
    clear_pictures(out)


def _write(arguments: argparse.Namespace, index: Index, subject: Subject, measured: Sequence[Measured]) -> None:
    """Tables, pictures and report from the scores of all sequences."""
    rows = [row for one in measured for row in one.rows]
    methods = ["bicubic"] if subject.name == "bicubic" else ["bicubic", subject.name]
    table = summarise(rows, methods)
    write_csv(arguments.out / "metrics.csv", rows)
    write_png(arguments.out / "comparison.png", stack_rows([one.picture for one in measured]))
    _write_report(arguments, table, methods, index, subject)
    text = plain_table(table, methods, SHOWN_METRICS)
    (arguments.out / "table.txt").write_text(text + "\n")
    say(text)
    say(f"report: {arguments.out / 'report.md'}   pictures beside it: {FILES_TEXT}")


def _device(name: str, world: World) -> torch.device:
    """The device that was asked for; with several processes on a machine with GPUs, each takes its own."""
    if name == "cuda" and world.size > 1 and torch.cuda.is_available():
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise BadConfigError(f"--device {name} cannot be used ({reason}); expected cpu, or cuda on a GPU") from error


def _subject(arguments: argparse.Namespace, scale: int, device: torch.device) -> Subject:
    if arguments.method == "bicubic":
        return Subject("bicubic", BicubicUpscaler(scale), {"method": "bicubic"})
    generator, description = load_generator(arguments.checkpoint)
    if generator.scale != scale:
        raise BadConfigError(
            f"the generator in {arguments.checkpoint} enlarges x{generator.scale}, but {arguments.data} is packed at "
            f"scale {scale}; evaluate on a set of scale {generator.scale}"
        )
    return Subject("ours", GeneratorUpscaler(generator.to(device)), description)


@dataclass(frozen=True)
class _Treated:
    """One frame with its predecessor in the sequence, if there is one, under every treatment."""

    source: str
    sequence: str
    number: int
    frame: FrameSet
    before: FrameSet | None


@dataclass(frozen=True)
class Measured:
    """Scores of every frame of a sequence, in order, and its row of the comparison picture (uint8 RGB, Y X 3)."""

    sequence: str
    rows: list[FrameRow]
    picture: Picture


def _measure(stream: SplitStream, subject: Subject, device: torch.device, out: Path, world: World) -> list[Measured]:
    """Every sequence of the stream, in order; videos are written on the way."""
    total = sum(clip.num_frames for clip in stream.clips)
    pending: list[tuple[str, Future[list[FrameRow]]]] = []
    shows: dict[str, SequenceShow] = {}
    workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with (
        ThreadPoolExecutor(workers) as pool,
        Progress(total, "frame", enabled=world.is_main) as progress,
        ExitStack() as stack,
    ):
        for treated in _treat(stream, subject, device):
            if treated.sequence not in shows:
                stack.close()
                show = SequenceShow(out, treated.sequence, stream.fps(treated.source))
                shows[treated.sequence] = stack.enter_context(show)
            shows[treated.sequence].add(treated.frame, treated.number)
            pending.append((treated.sequence, pool.submit(_score, treated, subject.name)))
            if len(pending) > 4 * workers:
                # Frames waiting to be scored are held in memory: do not run further ahead than this.
                pending[-4 * workers][1].result()
            progress.advance()
        stack.close()
        rows: dict[str, list[FrameRow]] = {}
        for sequence, future in pending:
            rows.setdefault(sequence, []).extend(future.result())
    return [Measured(sequence, found, shows[sequence].picture) for sequence, found in rows.items()]


def _treat(stream: SplitStream, subject: Subject, device: torch.device) -> Iterator[_Treated]:
    """Every frame of the split in order, enlarged by bicubic and by the subject."""
    bicubic = BicubicUpscaler(stream.index.scale)
    sequence, before = None, None
    for clip in stream:
        if clip.sequence != sequence:
            sequence, before = clip.sequence, None
            subject.upscaler.reset()
        for number, frame in enumerate(_enlarge(clip, bicubic, subject.upscaler, device)):
            yield _Treated(clip.source, clip.sequence, clip.first_frame + number, frame, before)
            before = frame


def _enlarge(
    clip: StreamedClip, bicubic: SequenceUpscaler, upscaler: SequenceUpscaler, device: torch.device
) -> Iterator[FrameSet]:
    low_TCHW = from_uint8(torch.from_numpy(clip.low_THWC.copy()).to(device)).permute(0, 3, 1, 2)
    bicubic_TYXC = _to_frames(bicubic.upscale(low_TCHW))
    only_bicubic = isinstance(upscaler, BicubicUpscaler)
    fake_TYXC = [None] * len(bicubic_TYXC) if only_bicubic else list(_to_frames(upscaler.upscale(low_TCHW)))
    for pictures in zip(clip.low_THWC, bicubic_TYXC, fake_TYXC, clip.real_TYXC, strict=True):
        yield FrameSet(*pictures)


def _to_frames(images_TCYX: torch.Tensor) -> Frames:
    frames: Frames = to_uint8(images_TCYX).permute(0, 2, 3, 1).cpu().numpy()
    return frames


def _score(treated: _Treated, name: str) -> list[FrameRow]:
    """Scores of one frame: bicubic's, and the subject's unless it is bicubic itself."""
    methods = {"bicubic": "bicubic_YXC"} | ({} if name == "bicubic" else {name: "fake_YXC"})
    rows = []
    for method, attribute in methods.items():
        fake_YXC, real_YXC = getattr(treated.frame, attribute), treated.frame.real_YXC
        scale = real_YXC.shape[0] // treated.frame.low_HWC.shape[0]
        scores = asdict(frame_fidelity(fake_YXC, real_YXC, scale))
        if treated.before is not None:
            fake_pair = np.stack([getattr(treated.before, attribute), fake_YXC])
            real_pair = np.stack([treated.before.real_YXC, real_YXC])
            scores["tof"] = tof(fake_pair, real_pair, trim_frames=0)
            scores["tdiff"] = tdiff(fake_pair, real_pair)
        rows.append(FrameRow(treated.source, treated.sequence, treated.number, method, scores))
    return rows


def _write_report(
    arguments: argparse.Namespace,
    table: dict[str, dict[str, dict[str, float]]],
    methods: list[str],
    index: Index,
    subject: Subject,
) -> None:
    """`metrics.json` and `report.md`."""
    protocol = PROTOCOL.format(border=index.scale)
    data = {
        "command": shlex.join(sys.argv),
        "split": arguments.split,
        "data_digest": index.digest,
        "subject": subject.description,
        "protocol": protocol,
        "versions": package_versions(),
        "table": table,
    }
    (arguments.out / "metrics.json").write_text(json.dumps(data, indent=1))
    text = [
        f"# {arguments.checkpoint or arguments.method} on split `{arguments.split}` of {arguments.data}",
        markdown_table(table, methods, SHOWN_METRICS),
        f"**Protocol.** {protocol}",
        "![input, bicubic, ours, ground truth](comparison.png)",
        f"{SHOW_TEXT} Per-frame numbers are in `metrics.csv`.",
    ]
    (arguments.out / "report.md").write_text("\n\n".join(text) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m vsr_dist.evaluate`; returns the exit status."""
    parser = OneLineParser(
        prog="vsr_dist.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_cli(lambda arguments: run(parser.parse_args(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
