"""Scan all sources of a pack, several at a time, and list every fault of theirs at once.

What a scan of a video found is kept in a file named by the hash of its content, so that a rerun, or another part
on another machine, reads a source instead of decoding it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sharding.errors import BadInputError
from sharding.index import write_json
from sharding.parallel import Workers, report_frames
from sharding.progress import Progress
from sharding.shots import DETECTOR
from sharding.sources import ScannedSource, Source, content_hash, scan_frames, scan_pair
from sharding.write import JOURNAL_DIR

SCANS_DIR = f"{JOURNAL_DIR}/scans"


@dataclass(frozen=True)
class ScanStore:
    """A folder of finished scans. `eager`: each is written as soon as it is made, for other parts to find."""

    folder: Path
    eager: bool

    def find(self, source: Source, xxh3: str) -> ScannedSource | None:
        """The scan of a source with this content; None if there is none that this program would make."""
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
        """Keep a scan, unless it is there or of a pair, which is not decoded."""
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

    def keep(self, scans: Sequence[ScannedSource]) -> None:
        """Write all that are missing and remove those of other content."""
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
    """The scans, in the order of the sources. Raises BadInputError with the faults of all of them.

    Each part begins at another place, so that parts that run side by side find each other's scans.
    """
    known = [source.info.num_frames for source in sources]
    counts = [count for count in known if count is not None]
    progress = Progress("scanned", sum(counts) if len(counts) == len(known) else None)
    # Where there are fewer sources than workers, the decoder of each takes what is left over.
    num_threads = max(1, workers.num_workers // max(1, len(sources)))
    first = 0 if part is None else len(sources) * part[0] // part[1]
    turned = [*sources[first:], *sources[:first]]
    results = workers.run(partial(_try_scan, store, num_threads), turned, progress)
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
        known = store.find(source, xxh3)
        if known is not None:
            report_frames(known.num_frames)
            return known
        scanned = scan_frames(source, xxh3, num_threads)
    except BadInputError as error:
        return _Fault(str(error))
    if store.eager:
        store.write(scanned)
    return scanned
