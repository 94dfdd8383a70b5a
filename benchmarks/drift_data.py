"""The two shard sets of drift_proof.py: the same training frames, beside what the study may see and what it may not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2

Command = Callable[[Sequence[str]], object]


@dataclass(frozen=True)
class Part:
    """Frames `first` to `last`, both included and counted from 0, of a sample clip."""

    clip: str
    first: int
    last: int

    @property
    def num_frames(self) -> int:
        return self.last - self.first + 1


# 20 frames lie between what trains and what validates, so that no held-out frame neighbours a training frame.
PARTS = {
    "bikes_train": Part("bikes", 0, 129),
    "bikes_study": Part("bikes", 150, 189),
    "bikes_unseen": Part("bikes", 210, 249),
    "carphone_unseen": Part("carphone_pristine", 0, 39),
    "bunny_unseen": Part("bigbuckbunny", 40, 79),
}
TRAIN = "bikes_train"
# Role -> what its split `val` holds; `train` is the same in both.
HELD_OUT = {"study": ("bikes_study",), "unseen": ("bikes_unseen", "carphone_unseen", "bunny_unseen")}


def extract(clips: Path, folder: Path) -> None:
    """Write the frames of every part as PNG files, each part in a folder of its name; existing ones are kept."""
    for name, part in PARTS.items():
        out = folder / name
        if len(list(out.glob("*.png"))) == part.num_frames:
            continue
        out.mkdir(parents=True, exist_ok=True)
        with av.open(str(clips / f"{part.clip}.mp4")) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number > part.last:
                    break
                if number >= part.first:
                    cv2.imwrite(str(out / f"{number:06d}.png"), frame.to_ndarray(format="bgr24"))


def pack(role: str, folder: Path, out: Path, vsr_dist: Command) -> None:
    """Pack the shard set of a role; a finished one is found finished by the packer."""
    held_out = HELD_OUT[role]
    sources = [str(folder / name) for name in (TRAIN, *held_out)]
    options = [part for name in held_out for part in ("--holdout", name)]
    vsr_dist(["pack", *sources, "--out", str(out), "--scale", "4", *options])
