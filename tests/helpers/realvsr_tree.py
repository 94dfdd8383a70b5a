"""A small set of pairs in RealVSR's layout, from frames of a real clip."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import cv2

from sharding.sources import find_samples
from sharding.video import iter_frames

SEQUENCES = {"GT/000": 0, "GT/001": 20, "GT_test/002": 40}
NUM_FRAMES = 10


def make_realvsr(root: Path, *, with_overlap: bool = False) -> Path:
    """Two training sequences and a test sequence of carphone (142 x 176 px), the distorted clip as LQ.

    `with_overlap`: the training folders contain the test sequence as well, as in the published data set.
    """
    clips = {path.stem: path for path in find_samples()}
    for side, name in (("GT", "carphone_pristine"), ("LQ", "carphone_distorted")):
        frames = [frame[:142] for frame in islice(iter_frames(clips[name]), 50)]
        for place, first in SEQUENCES.items():
            folder = root / place.replace("GT", side)
            folder.mkdir(parents=True)
            for number in range(NUM_FRAMES):
                cv2.imwrite(str(folder / f"{number:05d}.png"), frames[first + number][..., ::-1])
        if with_overlap:
            shutil.copytree(root / f"{side}_test" / "002", root / side / "002")
    return root
