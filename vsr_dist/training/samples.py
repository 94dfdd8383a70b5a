"""`samples/` of a run directory: the pictures of the last validation."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2

from vsr_dist.ops.picture import Picture

SAMPLES_NAME = "samples"
_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Samples:
    """The step that the pictures are of, and window name -> PNG of `ops.picture.two_by_two`."""

    step: int
    paths: dict[str, Path]


def write_samples(run_dir: Path, step: int, pictures: Mapping[str, Picture]) -> None:
    """Write `samples/step_XXXXXXXX/WINDOW.png` (uint8 RGB), and remove those of other steps.

    The folder appears whole, by rename. Without a picture nothing is touched.
    """
    if not pictures:
        return
    folder = run_dir / SAMPLES_NAME
    part = folder / ".part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, picture_YXC in pictures.items():
        png = cv2.imencode(".png", cv2.cvtColor(picture_YXC, cv2.COLOR_RGB2BGR))[1]
        (part / f"{name}.png").write_bytes(png.tobytes())
    final = folder / f"step_{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def read_samples(run_dir: Path) -> Samples | None:
    """The newest pictures of a run directory, or None if it has none."""
    found = [
        (int(match[1]), path) for path in run_dir.glob(f"{SAMPLES_NAME}/*") if (match := _STEP.fullmatch(path.name))
    ]
    if not found:
        return None
    step, folder = max(found)
    return Samples(step, {path.stem: path for path in sorted(folder.glob("*.png"))})
