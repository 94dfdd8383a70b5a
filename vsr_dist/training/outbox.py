"""What the tracking server has not taken yet, on disk: it survives the process and is sent by whoever comes next.

`RUN_DIR/outbox/` holds `target.json` (which run this is, wherever it is sent), `state.json` (what was acknowledged)
and one file per thing that waits: `00000007-tags.json`. Scalars are not copied: they lie in `metrics.jsonl`, and the
state holds the byte up to which they were acknowledged. Every file is published by rename.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from vsr_dist.core.files import write_whole

FOLDER_NAME = "outbox"
Kind = Literal["parameters", "tags", "dataset", "file", "picture", "model", "status"]
_PNG_SPEED = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


@dataclass(frozen=True)
class Target:
    """Which run this is: enough to make it on a server that was not there when training began.

    Attributes:
        uri: tracking URI.
        experiment: name of the experiment.
        name: name of the run.
        tags: tags that the run is made with.
        token: unique tag value by which a run is found whose creation was not acknowledged.
        begin_ms: when the run began, in milliseconds since 1970.
    """

    uri: str
    experiment: str
    name: str
    tags: dict[str, str]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    begin_ms: int = field(default_factory=now_ms)


@dataclass
class State:
    """What the server has acknowledged.

    Attributes:
        run_id: the server's id of the run; None as long as none was made.
        acknowledged_bytes: `metrics.jsonl` was taken up to here.
        attempted: metric name -> highest step that was ever sent; only up to there may the server hold a point.
        pictures: picture key -> highest step that was taken.
        taken_over: the run is known from elsewhere (a copied checkpoint): the server may hold any point.
        described: its parameters are on their way, and cannot change any more.
        status: the last status that was taken.
    """

    run_id: str | None = None
    acknowledged_bytes: int = 0
    attempted: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, int] = field(default_factory=dict)
    taken_over: bool = False
    described: bool = False
    status: str | None = None


@dataclass(frozen=True)
class Job:
    """One thing that waits: its file, what it is, and its content."""

    path: Path
    kind: Kind
    payload: dict[str, Any]


class Outbox:
    """The folder. `put` may be called from the training thread while another thread delivers."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.folder = run_dir, run_dir / FOLDER_NAME
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self.position_lock = threading.Lock()
        state = self._read("state.json")
        self.state = State(**state) if state else State()
        known = self._read("target.json")
        self.target = Target(**known) if known else None
        # Kept beside the files: in a long outage there are too many to read them all for each further picture.
        waiting = [job.payload for job in self.jobs() if job.kind == "picture"]
        self._pictures: dict[tuple[str, int], str] = {(p["key"], p["step"]): p["file"] for p in waiting}
        self._number = max((int(path.name[:8]) for path in self.folder.glob("[0-9]*.json")), default=0)

    def aim(self, target: Target) -> Target:
        """Say where the run goes. One that was aimed before keeps its token, its tags and its beginning."""
        if self.target is not None:
            before = asdict(self.target)
            target = Target(**{**before, "uri": target.uri, "experiment": target.experiment})
        self.target = target
        self._write("target.json", asdict(target))
        return target

    def resume(self, run_id: str | None, num_bytes: int) -> None:
        """Go on with a `metrics.jsonl` that was cut to `num_bytes`; `run_id` counts if no run is known here."""
        if self.state.run_id is None and run_id is not None:
            self.state.run_id, self.state.taken_over = run_id, True
        self.state.acknowledged_bytes = min(self.state.acknowledged_bytes, num_bytes)
        self.put("status", status="RUNNING", time_ms=now_ms())
        self.save()

    def save(self) -> None:
        """Write the state. The training and the delivering thread both do so."""
        with self._lock:
            state = self.state
            # Copied at one go: the delivering thread may note a new name meanwhile.
            copies = {"attempted": dict(state.attempted), "pictures": dict(state.pictures)}
            self._write("state.json", {**vars(state), **copies})

    def put(self, kind: Kind, **payload: object) -> None:
        """Add one thing to deliver. A new status replaces one that waits."""
        with self._lock:
            if kind == "status":
                for job in self.jobs():
                    if job.kind == "status":
                        job.path.unlink(missing_ok=True)
            self._number += 1
            self._write(f"{self._number:08d}-{kind}.json", dict(payload))

    def put_picture(self, key: str, step: int, picture_YXC: np.ndarray) -> None:
        """Add a picture: uint8 RGB (Y, X, 3), or float RGB, of which what is outside [0, 1] is cut off.

        One of a step that was taken already (before a crash) is left out; one that waits under the same key and
        step is replaced.
        """
        if step <= self.state.pictures.get(key, -1):
            return
        ok, png = cv2.imencode(".png", as_uint8(picture_YXC)[:, :, ::-1], _PNG_SPEED)
        if not ok:
            raise ValueError(f"picture {key} of step {step} cannot be written as PNG")
        name = self._pictures.get((key, step))
        if name is not None:
            write_whole(self.folder / name, png.tobytes())
            return
        name = f"{uuid.uuid4().hex}.png"
        write_whole(self.folder / name, png.tobytes())
        self._pictures[key, step] = name
        self.put("picture", key=key, step=step, file=name, time_ms=now_ms())

    def jobs(self) -> list[Job]:
        """What waits, oldest first."""
        found = []
        for path in sorted(self.folder.glob("[0-9]*.json")):
            payload = self._read(path.name)
            if payload is not None:
                found.append(Job(path, path.stem.partition("-")[2], payload))  # type: ignore[arg-type]
        return found

    def done(self, job: Job) -> None:
        """Take a delivered thing out."""
        if job.kind == "picture":
            key, step = job.payload["key"], job.payload["step"]
            self._pictures.pop((key, step), None)
            self.state.pictures[key] = max(step, self.state.pictures.get(key, -1))
        if job.kind == "status":
            self.state.status = job.payload["status"]
        self.save()
        job.path.unlink(missing_ok=True)
        if job.kind == "picture":
            (self.folder / job.payload["file"]).unlink(missing_ok=True)

    def reject(self, job: Job, reason: str) -> None:
        """Put aside what the server will never take, with its reason; it is not sent again."""
        if job.kind == "picture":
            self._pictures.pop((job.payload["key"], job.payload["step"]), None)
        folder = self.folder / "rejected"
        folder.mkdir(exist_ok=True)
        (folder / job.path.name).write_text(json.dumps({**job.payload, "rejected_because": reason}, indent=1))
        job.path.unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return None
        return content

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self.folder / name, json.dumps(content).encode())


def as_uint8(picture_YXC: np.ndarray) -> np.ndarray:
    """uint8 of a uint8 or float picture; floats are cut off at 0 and 1, never stretched."""
    if picture_YXC.dtype == np.uint8:
        return picture_YXC
    if not np.issubdtype(picture_YXC.dtype, np.floating):
        raise TypeError(f"a picture is uint8 or float, not {picture_YXC.dtype}")
    levels: np.ndarray = (np.clip(np.nan_to_num(picture_YXC), 0, 1) * 255).round().astype(np.uint8)
    return levels
