"""Parts of real videos as PNG folders, and shard sets packed from them.

The videos are the sample clips of `vsr-dist samples` and two films of Debian's package opencv-doc, which are used for
testing only. Those films are compressed for their size: `halve` reduces the frames by area averaging to half the width
and height first, so that the truth is not the compression damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from sharding.errors import BadInputError
from sharding.pack import PackJob, pack
from sharding.plan import PackOptions
from sharding.sources import find_samples
from sharding.video import iter_frames

OPENCV_DOC = Path("/usr/share/doc/opencv-doc/examples/data")
FILMS = ("vtest", "Megamind")


@dataclass(frozen=True)
class Part:
    """Frames `first` to `last` of a video, both included and counted from 0.

    halve: at half the width and height. square_px: of that, the central square of this side, or as much as there is.
    """

    name: str
    video: str
    first: int
    last: int
    halve: bool = False
    square_px: int | None = None

    @property
    def num_frames(self) -> int:
        """How many frames it has."""
        return self.last - self.first + 1


def find_videos(names: Iterable[str]) -> dict[str, Path]:
    """The files of these videos. BadInputError that names all missing ones and how to get them."""
    known = {path.stem: path for path in find_samples()}
    known |= {name: path for name in FILMS if (path := OPENCV_DOC / f"{name}.avi").is_file()}
    missing = sorted(set(names) - set(known))
    if missing:
        advice = f"{', '.join(FILMS)} come with Debian's opencv-doc: apt-get install opencv-doc"
        raise BadInputError(f"video not found: {', '.join(missing)}; known here: {', '.join(sorted(known))}; {advice}")
    return {name: known[name] for name in names}


def extract(parts: Sequence[Part], folder: Path) -> None:
    """Write each part as PNG files into a folder of its name; complete folders are kept.

    BadInputError where a video is missing or ends before the part does.
    """
    videos = find_videos(dict.fromkeys(part.video for part in parts))
    for part in parts:
        out = folder / part.name
        if len(list(out.glob("*.png"))) == part.num_frames:
            continue
        out.mkdir(parents=True, exist_ok=True)
        number = part.first - 1
        for number, frame in enumerate(islice(iter_frames(videos[part.video]), part.first, part.last + 1), part.first):
            image = halve(frame) if part.halve else frame
            image = image if part.square_px is None else central_square(image, part.square_px)
            cv2.imwrite(str(out / f"{number:06d}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        if number != part.last:
            raise BadInputError(f"{part.name}: {part.video} ends at frame {number}, expected {part.last}")


def halve(image_YXC: np.ndarray) -> np.ndarray:
    """Half the width and height, each pixel the mean of 2 x 2; an odd last row or column is dropped."""
    height, width = image_YXC.shape[0] // 2, image_YXC.shape[1] // 2
    return cv2.resize(image_YXC[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)


def central_square(image_YXC: np.ndarray, side_px: int) -> np.ndarray:
    """The central square of that side; a shorter side of the image stays whole."""
    height, width = (min(side_px, size) for size in image_YXC.shape[:2])
    top, left = (image_YXC.shape[0] - height) // 2, (image_YXC.shape[1] - width) // 2
    return image_YXC[top : top + height, left : left + width]


def pack_parts(
    train: Sequence[Part], held_out: Sequence[Part], folder: Path, out: Path, options: PackOptions | None = None
) -> None:
    """Extract the parts to `folder` and pack them into the set `out`: `train`, and `held_out` as its split `val`.

    Every part is a source of its own; scene cuts inside it are found as for any source. A finished set is kept.
    `options`: how it is packed, the default x4 in raw arrays; `holdout` is set here.
    """
    extract([*train, *held_out], folder)
    names = tuple(part.name for part in held_out)
    sources = tuple(folder / part.name for part in (*train, *held_out))
    pack(PackJob(out, sources, options=replace(options or PackOptions(), holdout=names)))
