"""The report's pictures of frames: the same windows of several runs, and what evaluations drew."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from vsr_dist.core.report_blocks import Block, Heading, Paragraph, Picture
from vsr_dist.ops.picture import Picture as Pixels
from vsr_dist.ops.picture import four_of, side_by_side, with_titles
from vsr_dist.reporting.runs import Evaluation, TrainingRun

ASSETS = "assets"
_PANELS_IN_ROW = 5
_PANEL_PX = 224
_MAX_WINDOWS = 4
# Beyond these the page would be too heavy for a browser; the folders themselves hold everything.
_MAX_SEQUENCES = 8
_KINDS = {
    "crops": "where the compared methods are farthest from the truth",
    "profiles": "one row over time",
    "differences": "difference from the truth",
}


@dataclass
class Gallery:
    """Blocks, and the PNG files that they name: path below the report's folder -> content."""

    blocks: list[Block] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def put(self, name: str, png: bytes, caption: str, folded: str | None = None) -> None:
        """Add a picture under a file name made of letters that every system and URL can hold."""
        path = f"{ASSETS}/{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}.png"
        assert path not in self.files
        self.files[path] = png
        self.blocks.append(Picture(path, caption, folded))


def add_samples(gallery: Gallery, runs: Sequence[TrainingRun]) -> None:
    """Held-out windows of the last validation: input, bicubic, every run that has the window, and the truth."""
    with_samples = [run for run in runs if run.samples is not None]
    if not with_samples:
        return
    gallery.blocks.append(Heading("Held-out windows"))
    steps = ", ".join(f"`{run.label}` at step {run.samples.step:,}" for run in with_samples if run.samples)
    gallery.blocks.append(Paragraph(f"The middle frame of held-out windows at the last validation: {steps}."))
    names = list(dict.fromkeys(name for run in with_samples for name in _windows(run)))
    for number, name in enumerate(names[:_MAX_WINDOWS]):
        for part, group in enumerate(_same_window(with_samples, name)):
            panels = _panels(group)
            who = ", ".join(f"`{label}`" for label in group)
            caption = f"{name}: input, bicubic, {who.replace('`', '')}, ground truth"
            gallery.put(f"window-{number}-{part}", _png(_rows(panels)), caption)
    if len(names) > _MAX_WINDOWS:
        gallery.blocks.append(Paragraph(f"{len(names) - _MAX_WINDOWS} more windows are in the runs' `samples/`."))


def add_evaluations(gallery: Gallery, evaluations: Sequence[Evaluation]) -> None:
    """The crops, profiles and difference maps of each sequence, of one evaluation after the other.

    Bicubic is in all of them: an evaluation of it alone is left out beside others.
    """
    shown = [one for one in evaluations if one.subject != one.baseline] or list(evaluations)
    names = list(dict.fromkeys(path.stem for one in shown for path in sorted((one.folder / "crops").glob("*.png"))))
    if len(names) > _MAX_SEQUENCES or not names:
        overviews = [one for one in shown if (one.folder / "comparison.png").is_file()]
        if overviews:
            gallery.blocks.append(Heading("Most telling crops"))
        for number, one in enumerate(overviews):
            gallery.put(
                f"comparison-{number}", (one.folder / "comparison.png").read_bytes(), f"{one.label}: all sequences"
            )
    for place, name in enumerate(names[:_MAX_SEQUENCES]):
        gallery.blocks.append(Heading(f"Sequence {name}"))
        for kind, words in _KINDS.items():
            for number, one in enumerate(shown):
                path = one.folder / kind / f"{name}.png"
                if path.is_file():
                    caption = f"{one.label}: {words}"
                    folded = None if kind == "crops" else caption
                    gallery.put(f"sequence-{place}-{kind}-{number}", path.read_bytes(), caption, folded)
    if len(names) > _MAX_SEQUENCES:
        text = f"{len(names) - _MAX_SEQUENCES} more sequences are in `crops/`, `profiles/` and `differences/`"
        gallery.blocks.append(Paragraph(f"{text} of the evaluations."))


def _windows(run: TrainingRun) -> dict[str, Pixels]:
    return run.samples.pictures if run.samples else {}


def _same_window(runs: Sequence[TrainingRun], name: str) -> list[dict[str, list[Pixels]]]:
    """Groups of run label -> its four panels whose truth is the same; a name alone does not tell that."""
    groups: list[dict[str, list[Pixels]]] = []
    for run in runs:
        picture_YXC = _windows(run).get(name)
        if picture_YXC is None:
            continue
        four = four_of(picture_YXC)
        for group in groups:
            first = next(iter(group.values()))
            if first[3].shape == four[3].shape and np.array_equal(first[3], four[3]):
                group[run.label] = four
                break
        else:
            groups.append({run.label: four})
    return groups


def _panels(group: dict[str, list[Pixels]]) -> dict[str, Pixels]:
    first = next(iter(group.values()))
    generated = {label: four[2] for label, four in group.items()}
    return {"input": first[0], "bicubic": first[1], **generated, "ground truth": first[3]}


def _rows(panels: dict[str, Pixels]) -> Pixels:
    """Titled panels in rows of a few, so that they stay large enough on a page."""
    titles, pictures = list(panels), list(panels.values())
    num_rows = math.ceil(len(titles) / _PANELS_IN_ROW)
    in_row = math.ceil(len(titles) / num_rows)  # 3 + 3 and not 5 + 1
    rows = []
    for first in range(0, len(titles), in_row):
        part = slice(first, first + in_row)
        rows.append(with_titles(side_by_side(pictures[part], _PANEL_PX), titles[part]))
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])


def _png(picture_YXC: Pixels) -> bytes:
    data: bytes = cv2.imencode(".png", cv2.cvtColor(picture_YXC, cv2.COLOR_RGB2BGR))[1].tobytes()
    return data
