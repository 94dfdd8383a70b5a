"""The report's pictures of frames: the same windows of several runs, and what evaluations drew."""

from __future__ import annotations

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


@dataclass
class Gallery:
    """Blocks, and the PNG files that they name: path below the report's folder -> content."""

    blocks: list[Block] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def put(self, name: str, png: bytes, caption: str) -> None:
        """Add a picture under a file name made of letters that every system and URL can hold."""
        path = f"{ASSETS}/{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}.png"
        assert path not in self.files
        self.files[path] = png
        self.blocks.append(Picture(path, caption))


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
    """`comparison.png` of each, and its crops, profiles and difference maps."""
    for number, one in enumerate(evaluations):
        path = one.folder / "comparison.png"
        if not path.is_file():
            continue
        gallery.blocks.append(Heading(f"Pictures of {one.label}", 3))
        gallery.put(f"evaluation-{number}", path.read_bytes(), f"{one.label}: where the compared methods miss most")
        for kind, words in (
            ("crops", "the most telling crops"),
            ("profiles", "one row over time"),
            ("differences", "difference from the truth"),
        ):
            found = sorted((one.folder / kind).glob("*.png"))
            for place, picture in enumerate(found[:_MAX_SEQUENCES]):
                caption = f"{one.label}: {picture.stem}, {words}"
                gallery.put(f"evaluation-{number}-{kind}-{place}", picture.read_bytes(), caption)
            if len(found) > _MAX_SEQUENCES:
                left = len(found) - _MAX_SEQUENCES
                gallery.blocks.append(Paragraph(f"{left} more sequences are in `{one.folder}/{kind}/`."))


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
    rows = []
    for first in range(0, len(titles), _PANELS_IN_ROW):
        part = slice(first, first + _PANELS_IN_ROW)
        rows.append(with_titles(side_by_side(pictures[part], _PANEL_PX), titles[part]))
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])


def _png(picture_YXC: Pixels) -> bytes:
    data: bytes = cv2.imencode(".png", cv2.cvtColor(picture_YXC, cv2.COLOR_RGB2BGR))[1].tobytes()
    return data
