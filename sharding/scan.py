"""Scan the sources of a pack in parallel: number of frames, shots, timestamps, content hash, and all faults at once.

The scan of a video or a folder is saved in a file named by the hash of its content, so that a rerun, or another part
on another machine, does not decode it again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import xxhash

from sharding.console import Progress
from sharding.errors import BadInputError
from sharding.images import image_size, is_folder, list_images, read_file
from sharding.index import write_json
from sharding.parallel import Workers, report_frames
from sharding.schema import JOURNAL_DIR
from sharding.shots import DETECTOR, StepScorer, find_cuts, shots_between
from sharding.sources import ScannedSource, Source
from sharding.video import iter_thumbnails

SCANS_DIR = f"{JOURNAL_DIR}/scans"
_READ_BYTES = 4 << 20
_REPORT_FRAMES = 16


@dataclass(frozen=True)
class ScanStore:
    """A folder of finished scans. `eager`: each one is saved at once, so that other parts can use it."""

    folder: Path
    eager: bool

    def find(self, source: Source, xxh3: str) -> ScannedSource | None:
        """The saved scan of a source with this content hash; None if there is none with the current settings."""
        try:
            record = json.loads(self._path(xxh3).read_bytes())
            if record["detector"] != DETECTOR or record["size"] != [source.info.height, source.info.width]:
                return None
            return ScannedSource(
                source=source,
                num_frames=record["num_frames"],
                fps=source.info.fps,
                height=source.info.height,
                width=source.info.width,
                shots=tuple((first, num_frames) for first, num_frames in record["shots"]),
                pts=tuple(record["pts"]),
                xxh3=xxh3,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, scanned: ScannedSource) -> None:
        """Save a scan, unless it is saved already or of a pair, which is cheap to scan."""
        path = self._path(scanned.xxh3)
        if scanned.source.kind == "paired" or path.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {
            "detector": DETECTOR,
            "size": [scanned.height, scanned.width],
            "num_frames": scanned.num_frames,
            "shots": scanned.shots,
            "pts": scanned.pts,
        }
        write_json(path, record)

    def sync(self, scans: Sequence[ScannedSource]) -> None:
        """Save the missing scans and delete those of other sources."""
        for scanned in scans:
            self.write(scanned)
        names = {self._path(scanned.xxh3).name for scanned in scans}
        for path in list(self.folder.glob("*.json")):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _path(self, xxh3: str) -> Path:
        return self.folder / f"{xxh3}.json"


def scan_sources(
    sources: Sequence[Source], workers: Workers, store: ScanStore, part: tuple[int, int] | None = None
) -> list[ScannedSource]:
    """The scanned sources, in the order of `sources`. Raises BadInputError that lists the faults of all of them.

    Each part starts with another source, so that parts that run at the same time can use each other's scans.
    """
    counts = [source.info.num_frames for source in sources]
    known = [count for count in counts if count is not None]
    progress = Progress(sum(known) if len(known) == len(counts) else 0, "frame", verb="scanned")
    # With fewer sources than workers, the remaining cores are used by the threads of the decoders.
    num_threads = max(1, workers.num_workers // max(1, len(sources)))
    first = 0 if part is None else len(sources) * part[0] // part[1]
    rotated = [*sources[first:], *sources[:first]]
    results = workers.run(partial(_try_scan, store, num_threads), rotated, progress)
    results = [*results[len(sources) - first :], *results[: len(sources) - first]]
    faults = [result.text for result in results if isinstance(result, _Fault)]
    if faults:
        raise BadInputError("; ".join(faults))
    return [result for result in results if isinstance(result, ScannedSource)]


@dataclass(frozen=True)
class _Fault:
    text: str


def _try_scan(store: ScanStore, num_threads: int, source: Source) -> ScannedSource | _Fault:
    try:
        if source.low_path is not None:
            return scan_pair(source, source.low_path)
        xxh3 = content_hash(source.path)
        saved = store.find(source, xxh3)
        if saved is not None:
            report_frames(saved.num_frames)
            return saved
        scanned = scan_frames(source, xxh3, num_threads)
    except BadInputError as error:
        return _Fault(str(error))
    if store.eager:
        store.write(scanned)
    return scanned


def scan_frames(source: Source, xxh3: str, num_threads: int = 1) -> ScannedSource:
    """Decode all frames of a video or a folder once; `xxh3` is its `content_hash`.

    Raises BadInputError if it is truncated, damaged or interlaced, or if the frame size changes.
    """
    scorer = StepScorer()
    pts: list[int | None] = []
    info = source.info
    for frame in iter_thumbnails(source.path, num_threads):
        if (frame.height, frame.width) != (info.height, info.width):
            raise BadInputError(
                f"{source.path} changes its frame size at frame {len(pts)}: expected {info.width} x {info.height} "
                f"px, got {frame.width} x {frame.height}; split the video there"
            )
        scorer.add(frame.rgb)
        pts.append(frame.pts)
        if len(pts) % _REPORT_FRAMES == 0:
            report_frames(_REPORT_FRAMES)
    report_frames(len(pts) % _REPORT_FRAMES)
    known = [value for value in pts if value is not None]
    are_increasing = len(known) == len(pts) and all(a < b for a, b in pairwise(known))
    return ScannedSource(
        source=source,
        num_frames=len(pts),
        fps=info.fps,
        height=info.height,
        width=info.width,
        shots=tuple(shots_between(find_cuts(scorer.scores), len(pts))),
        pts=tuple(known) if are_increasing else (),
        xxh3=xxh3,
    )


def content_hash(path: Path) -> str:
    """xxh3_128 in hex of the bytes of a video, or of the names and bytes of all images in a folder."""
    state = xxhash.xxh3_128()
    if is_folder(path):
        for image in list_images(path):
            state.update(image.name.encode() + b"\0")
            state.update(read_file(image))
        return str(state.hexdigest())
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            state.update(block)
    return str(state.hexdigest())


def scan_pair(source: Source, low_path: Path) -> ScannedSource:
    """Hash and check the images on both sides of a pair without decoding them; a pair is one shot.

    Raises BadInputError that lists every unreadable image and every wrong size.
    """
    state = xxhash.xxh3_128()
    faults: list[str] = []
    num_frames = source.info.num_frames or 0
    for path, scale in ((source.path, 1), (low_path, source.low_scale)):
        expected = (source.info.height // scale, source.info.width // scale)
        for image in list_images(path):
            try:
                data = read_file(image)
                state.update(image.name.encode() + b"\0")
                state.update(data)
                height, width = image_size(image, data)
            except BadInputError as error:
                faults.append(str(error))
                continue
            if (height, width) != expected:
                faults.append(f"{image} is {width} x {height} px, expected {expected[1]} x {expected[0]}")
        report_frames(num_frames // 2 if path == source.path else num_frames - num_frames // 2)
    if faults:
        raise BadInputError("; ".join(faults))
    return ScannedSource(
        source=source,
        num_frames=num_frames,
        fps=None,
        height=source.info.height,
        width=source.info.width,
        shots=((0, num_frames),),
        pts=(),
        xxh3=str(state.hexdigest()),
    )
