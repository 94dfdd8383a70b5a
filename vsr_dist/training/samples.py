"""`samples/` of a run directory: the pictures of the last validation."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vsr_dist.core.errors import BadInputError
from vsr_dist.ops.picture import Picture

SAMPLES_NAME = "samples"
_STEP = re.compile(r"step_(\d+)$")
_NUM_TRIES = 10


@dataclass(frozen=True)
class Samples:
    """The step that the pictures are of, and window name -> `ops.picture.two_by_two`, uint8 RGB."""

    step: int
    pictures: dict[str, Picture]


def write_samples(run_dir: Path, step: int, pictures: Mapping[str, Picture]) -> None:
    """Write `samples/step_XXXXXXXX/WINDOW.png` (uint8 RGB), and remove those of other steps.

    A folder appears and disappears whole, by rename. Without a picture nothing is touched.
    """
    if not pictures:
        return
    folder = run_dir / SAMPLES_NAME
    part, gone = folder / ".part", folder / ".gone"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, picture_YXC in pictures.items():
        png = cv2.imencode(".png", cv2.cvtColor(picture_YXC, cv2.COLOR_RGB2BGR))[1]
        (part / f"{name}.png").write_bytes(png.tobytes())
    final = folder / f"step_{step:08d}"
    old = list(folder.glob("step_*"))
    if final in old:
        _remove(final, gone)
    part.rename(final)
    for other in old:
        if other != final:
            _remove(other, gone)


def _remove(folder: Path, gone: Path) -> None:
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def read_samples(run_dir: Path) -> Samples | None:
    """The newest pictures of a run directory, or None if it has none. The run may be training meanwhile.

    Raises BadInputError for a file that is no picture.
    """
    for _ in range(_NUM_TRIES):
        folders = {
            int(match[1]): path for path in run_dir.glob(f"{SAMPLES_NAME}/*") if (match := _STEP.match(path.name))
        }
        if not folders:
            return None
        step = max(folders)
        try:
            contents = {path.stem: path.read_bytes() for path in sorted(folders[step].glob("*.png"))}
        except FileNotFoundError:
            continue  # The next validation has replaced them just now.
        # A folder that is still there was whole while it was read.
        if contents and folders[step].exists():
            return Samples(step, {name: _decode(run_dir, name, content) for name, content in contents.items()})
    return None


def _decode(run_dir: Path, name: str, content: bytes) -> Picture:
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if picture is None:
        raise BadInputError(f"{run_dir / SAMPLES_NAME} contains a damaged picture {name}.png; remove it")
    picture_YXC: Picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return picture_YXC
