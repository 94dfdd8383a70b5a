"""What an evaluation leaves in its folder: tables, pictures and the report."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sharding.schema import Index
from vsr_dist.core.console import say
from vsr_dist.core.versions import package_versions
from vsr_dist.evaluation.measure import Measured
from vsr_dist.evaluation.subject import Subject
from vsr_dist.inference.sequence_show import FILES_TEXT, SHOW_TEXT, clear_pictures
from vsr_dist.inference.showcase import stack_rows, write_png
from vsr_dist.metrics.table import markdown_table, plain_table, summarise, write_csv

SHOWN_METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "tof", "tdiff")
PROTOCOL = (
    "Frames are rounded to 8 bits; {border} pixels are cut from each side; every frame of the split is measured. "
    "PSNR (peak 255) and SSIM (Gaussian window, sigma 1.5) come from scikit-image, on BT.601 studio-range luma (Y) "
    "and on RGB, per frame, averaged over the frames of a video; `overall` is the mean of the videos. tOF is the "
    "mean length in pixels of the difference between Farneback flows of result and truth (TecoGAN's measure, no "
    "frames cut), tdiff the mean squared error of the frame-to-frame change; both need a frame before, so the first "
    "of a sequence has none. Bicubic is cubic convolution with a = -0.5."
)


def clear(out: Path) -> None:
    """The output folder, without the pictures of an earlier evaluation, which would pass for this one's."""
    out.mkdir(parents=True, exist_ok=True)
    clear_pictures(out)


def write(arguments: argparse.Namespace, index: Index, subject: Subject, measured: Sequence[Measured]) -> None:
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
    say(f"report: {arguments.out / 'report.md'}   pictures: {arguments.out / 'comparison.png'}, videos/")


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
        "The crops are where bicubic misses most of the truth in the middle frame of each sequence. Side-by-side "
        "videos are in `videos/`, per-frame numbers in `metrics.csv`.",
    ]
    (arguments.out / "report.md").write_text("\n\n".join(text) + "\n")
