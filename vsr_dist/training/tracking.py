"""A run in MLflow. Everything is written to the run directory first and sent by a thread, so training never waits.

RUN_DIR/metrics.jsonl           every scalar, with its step and the time at which it was measured
RUN_DIR/tracking/events.jsonl   everything else: parameters, tags, data set, files, pictures, models, status
RUN_DIR/tracking/state.json     which MLflow run this is, and how many bytes of both files its server acknowledged

Sending a line twice is harmless: MLflow's SQL stores have the primary key (name, time, step, run, value) and drop a
repeated point, and every other event overwrites what it sent before. So after an outage or a kill, the thread, the
resumed run or `vsr-dist track replay` sends from the acknowledged byte on and need not ask what the server has.

A resumed run computes some steps again, and MLflow would draw both values at one step. So the state keeps one integer
per name, the highest step that an earlier attempt wrote, and only later steps are sent. A rollback lowers the integers:
its values differ on purpose, MLflow gets both and shows the newest as the current one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import threading
import time
import traceback
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from vsr_dist.core.collectives import gather_lists
from vsr_dist.core.config_io import flatten, io
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError, BadInputError, missing_extra
from vsr_dist.core.files import exclusive, write_whole
from vsr_dist.core.provenance import git_state

Line = dict[str, Any]
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

METRICS_NAME = "metrics.jsonl"
FOLDER_NAME = "tracking"
_SQLITE, _SQLITE_MAGIC = "sqlite:///", b"SQLite format 3\0"
_TOKEN_TAG = "vsr_dist.token"
_MAX_POINTS, _THUMBNAIL_PX = 1000, 256  # Both are MLflow's.
_INTERVAL_S, _LONGEST_PAUSE_S, _FIRST_ANSWER_S = 2.0, 60.0, 30.0
# How long the end of a run waits for a server that does not answer.
_LAST_TRIES_S = 10.0
# A run that is asked to stop has seconds until it is killed; what is left then is sent by the next one.
_CLOSE_S: dict[Status, float] = {"FINISHED": 300.0, "FAILED": 10.0, "KILLED": 10.0}
_MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # We retry ourselves; MLflow's default blocks for four minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is tracked.

    Attributes:
        mlflow: send parameters, metrics, pictures and models to MLflow; `metrics.jsonl` is written in any case.
        uri: MLflow tracking URI: a server (`http://host:5000`) or a local file (`sqlite:///mlflow.db`); empty for
            MLFLOW_TRACKING_URI, or `sqlite:///mlflow.db` without it.
        experiment: MLflow experiment; empty for MLFLOW_EXPERIMENT_NAME, or `vsr-dist` without it.
        tags: further tags of the run.
        extra_params: further parameters of the run, beside its configuration, by name.
        log_model: log the final generator, and that of the best checkpoint, as MLflow models.
        system_metrics: add `system/*` of every node (CPU, memory, disk, network, GPU) to each log line.
    """

    mlflow: bool = io(True)
    uri: str | None = io(None)
    experiment: str | None = io(None)
    tags: dict[str, str] = field(default_factory=dict, metadata={"effect": "io"})
    extra_params: dict[str, str] = field(default_factory=dict, metadata={"effect": "io"})
    log_model: bool = io(True)
    system_metrics: bool = io(False)

    def __post_init__(self) -> None:
        """Refuse a URI that cannot work, and a password, which would be saved with the configuration."""
        if self.uri:
            check_uri(self.uri, "tracking.uri")

    def resolve(self, before: State | None = None) -> tuple[str, str, str]:
        """(Tracking URI, experiment, both with what decided them, for people).

        In this order: the configuration, MLflow's environment variables, what the run had `before`, the default.
        """
        known = (before.uri, before.experiment) if before else (None, None)
        uri, uri_from = _first(self.uri, "tracking.uri", "MLFLOW_TRACKING_URI", known[0], "sqlite:///mlflow.db")
        experiment, experiment_from = _first(
            self.experiment, "tracking.experiment", "MLFLOW_EXPERIMENT_NAME", known[1], "vsr-dist"
        )
        check_uri(uri, uri_from)
        text = f"{uri} ({uri_from}), experiment {experiment} ({experiment_from})"
        if uri.startswith(_SQLITE):  # Found again from any folder.
            uri = f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}"
            _prepare_sqlite(uri, uri_from)
        return uri, experiment, text


def _first(configured: str | None, setting: str, variable: str, before: str | None, default: str) -> tuple[str, str]:
    """(Value, what decided it)."""
    environment = os.environ.get(variable)
    candidates = ((configured, setting), (environment, variable), (before, "as before"), (default, "default"))
    return next((value, source) for value, source in candidates if value)


def check_uri(uri: str, source: str) -> None:
    """Refuse a tracking URI that can never work; `source` is the setting that it is from, for the message."""
    if re.match(r"[^/]+://[^/@]*:[^/@]*@", uri):
        raise BadConfigError(
            f"{source} contains a password, which would be written to the run directory and to messages; remove it "
            "and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a server, PGPASSWORD for PostgreSQL"
        )
    server, database = r"https?://([^/@]*@)?[^/:@]+(:[1-9]\d*)?(/.*)?", r"(postgresql|mysql|mssql)(\+\w+)?://.+"
    if not re.fullmatch(rf"{server}|{database}|sqlite:///+[^/].*", uri):
        raise BadConfigError(
            f"MLflow at {source}={uri} cannot be used; expected a server (http://host:5000) or a database "
            "(sqlite:///mlflow.db, postgresql://...); MLflow 3 no longer supports folders of files, which 'mlflow "
            "migrate-filestore' converts"
        )


def _prepare_sqlite(uri: str, source: str) -> None:
    """Make the folder of a SQLite file, and refuse a file that can never work: MLflow would try for minutes."""
    text, _, query = uri.removeprefix(_SQLITE).partition("?")
    file, fault = Path(text), ""
    if (query and "=" not in query) or re.search("%[0-9A-Fa-f]{2}", text):
        fault = "MLflow cuts a path at '?' and decodes '%41'; choose a path without them"
    elif file.is_dir():
        fault = "it is a folder; name a file, such as mlflow.db in it"
    else:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            head = b""
            if file.exists():
                with file.open("rb") as opened:
                    head = opened.read(len(_SQLITE_MAGIC))
        except OSError as error:
            fault = f"{error.filename}: {error.strerror}; choose another path"
        else:
            fault = "" if head in (b"", _SQLITE_MAGIC) else "the file is not a SQLite database; choose another path"
    if fault:
        raise BadConfigError(f"MLflow at {source}={uri} cannot be used: {fault}")


# ---- metrics.jsonl ---------------------------------------------------------------------------------------------------


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one JSON object to a `.jsonl` file."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(path: Path, holding: str = "") -> list[Line]:
    """Lines of a `metrics.jsonl`, oldest first; none if there is no file. An unfinished last line is left out.

    `holding`: only lines in which this text occurs; the others are not parsed.
    """
    if not path.is_file():
        return []
    return [_parse(path, raw) for raw in path.read_bytes().split(b"\n")[:-1] if holding.encode() in raw]


def rewind_metrics(path: Path, step: int) -> int:
    """Drop the lines of steps after `step`, all of them for 0; returns the length that is left in bytes."""
    kept = [json.dumps(line) + "\n" for line in read_metrics(path) if step and line["step"] <= step]
    if path.exists():
        write_whole(path, "".join(kept).encode())
    return sum(map(len, kept))


def read_lines(path: Path, offset: int, max_values: int) -> tuple[list[Line], int]:
    """Whole lines from a byte offset on, as many as hold `max_values` values but one at least; the offset after."""
    lines: list[Line] = []
    num_values = 0
    if path.is_file():
        with path.open("rb") as file:
            file.seek(offset)
            for raw in file:
                line = _parse(path, raw) if raw.endswith(b"\n") else None
                if line is None or (lines and num_values + len(line) > max_values):
                    break
                lines.append(line)
                num_values += len(line)
                offset += len(raw)
    return lines, offset


def _parse(path: Path, raw: bytes) -> Line:
    try:
        line: Line = json.loads(raw)
    except ValueError as error:
        raise BadInputError(f"{path} holds a line that is not JSON ({error}); remove that line") from error
    return line


def _values(line: Line) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in {"step", "time_s"}}


# ---- one run, on disk and in MLflow ----------------------------------------------------------------------------------


class Unavailable(Exception):  # noqa: N818 - a state of the server, not a mistake
    """The server did not take something now; it may later. `refused`: waiting alone will not help."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class Rejected(Exception):  # noqa: N818 - an answer of the server
    """The server will never take this one event."""


@dataclass
class State:
    """Which MLflow run this is, and what its server has acknowledged.

    Attributes:
        uri, experiment, name, tags: what the run is created with.
        run_id: the server's id of the run; None until it was created.
        adopted_from: where `run_id` is from, if it was not created here; empty once that was checked.
        token: value of a unique tag by which a run is found whose creation was not acknowledged.
        begin_ms: when the run began, in milliseconds since 1970.
        metrics_bytes, events_bytes: the server has `metrics.jsonl` and `events.jsonl` up to here.
        sent_steps: metric name -> highest step that an earlier attempt wrote.
        described: the run has its parameters, which cannot change any more.
        status: the last status that was added.
    """

    uri: str
    experiment: str = ""
    name: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None
    adopted_from: str = ""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    begin_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    metrics_bytes: int = 0
    events_bytes: int = 0
    sent_steps: dict[str, int] = field(default_factory=dict)
    described: bool = False
    status: str | None = None


class MlflowRun:
    """The files of one run, and sending them. One thread may add to them while another one sends."""

    def __init__(self, run_dir: Path, folder: Path, state: State | None = None) -> None:
        """Open `folder`; `state` is that of a new run, and ignored if the folder holds one already."""
        self._mlflow: Any = None
        self._client: Any = None
        self.run_dir, self.folder, self.lock, self._num_rewinds = run_dir, folder, threading.RLock(), 0
        self.metrics, self.events = run_dir / METRICS_NAME, folder / "events.jsonl"
        self.backlog = folder / "backlog.jsonl"  # Scalars of an earlier attempt that no server acknowledged.
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self.events, self.backlog):
            if path.is_file():  # A process that was killed may have left half a line.
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self.state = read_state(folder) or state or State("")
        self.save()

    def save(self, **changes: object) -> None:
        """Change attributes of the state and write it."""
        with self.lock:
            for name, value in changes.items():
                setattr(self.state, name, value)
            write_whole(self.folder / "state.json", json.dumps(asdict(self.state)).encode())

    def put(self, kind: str, **payload: object) -> None:
        """Add an event: the arguments of the method `_send_KIND`."""
        append_line(self.events, {"kind": kind, **payload})

    def skip_events(self) -> None:
        """Take the events that wait as sent; what is added now replaces them."""
        self.save(events_bytes=self.events.stat().st_size if self.events.is_file() else 0)

    def put_files(self, paths: Sequence[Path], folder: str | None) -> None:
        """Add files of the run directory; they are sent with the content that they have then."""
        for path in paths:
            self.put("file", path=str(path.resolve().relative_to(self.run_dir.resolve())), folder=folder)

    def put_status(self, status: Status) -> None:
        """Add a status; it is sent after everything that was added before."""
        self.put("status", status=status, time_ms=int(time.time() * 1000))
        self.save(status=status)

    def put_picture(self, key: str, step: int, picture_YXC: np.ndarray) -> None:
        """Add a picture: uint8 RGB (Y, X, 3), or float RGB, clipped to [0, 1]."""
        name = f"{uuid.uuid4().hex}.png"
        ok, png = cv2.imencode(".png", as_uint8(picture_YXC)[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not ok:
            raise ValueError(f"picture {key} of step {step} cannot be written as PNG")
        write_whole(self.folder / name, png.tobytes())
        self.put("picture", key=key, step=step, file=name)

    def resume(self, step: int) -> None:
        """Cut `metrics.jsonl` back to `step`. What was not sent yet goes to the backlog; no step is sent twice."""
        with self.lock:
            state = self.state
            for line in read_lines(self.metrics, state.metrics_bytes, sys.maxsize)[0]:
                append_line(self.backlog, self._fresh(line))
            lines = read_metrics(self.metrics)
            for line in lines:
                state.sent_steps |= {n: max(line["step"], state.sent_steps.get(n, -1)) for n in _values(line)}
            # Before the file is cut: if the process dies in between, the next one finds the same.
            self.save(metrics_bytes=sum(len(json.dumps(line)) + 1 for line in lines if step and line["step"] <= step))
            rewind_metrics(self.metrics, step)

    def roll_back(self, step: int) -> None:
        """Cut `metrics.jsonl` back to `step`; the values that follow replace those of the abandoned steps."""
        with self.lock:
            self._num_rewinds += 1
            length = rewind_metrics(self.metrics, step)
            sent = {name: min(step, highest) for name, highest in self.state.sent_steps.items()}
            self.save(metrics_bytes=min(self.state.metrics_bytes, length), sent_steps=sent)

    def num_waiting(self) -> tuple[int, int]:
        """(Number of scalars, number of events) that the server has not acknowledged."""
        with self.lock:
            lines, _ = read_lines(self.metrics, self.state.metrics_bytes, sys.maxsize)
            events, _ = read_lines(self.events, self.state.events_bytes, sys.maxsize)
        return sum(len(_values(line)) for line in lines + read_metrics(self.backlog)), len(events)

    def _fresh(self, line: Line) -> Line:
        """A line of `metrics.jsonl` without the values that an earlier attempt wrote for this step."""
        sent = self.state.sent_steps
        old = {name for name in _values(line) if line["step"] <= sent.get(name, -1)}
        return {name: value for name, value in line.items() if name not in old}

    # -- sending; every method from here on may raise Unavailable

    def send_all(self) -> None:
        """Send until nothing waits."""
        run_id = self.connect()
        end = self.events.stat().st_size if self.events.is_file() else 0
        # Scalars first: those that were written before one of these events (such as the last status) come before it.
        self._send_scalars(run_id)
        while self.state.events_bytes < end:
            events, after = read_lines(self.events, self.state.events_bytes, 1)
            if not events:  # The last line is being written.
                return
            kind = events[0].pop("kind")
            try:
                with self._classified():
                    getattr(self, f"_send_{kind}")(run_id, **events[0])
            # An event that cannot be read or made into a request stays so: it must not hold up those behind it.
            except (Rejected, ValueError, TypeError, LookupError, AttributeError) as error:
                say(f"warning: MLflow rejects the {kind} in {self.events}, which is skipped: {error}")
            self.save(events_bytes=after)

    def connect(self) -> str:
        """Find or create the run; returns its id. One whose creation was not acknowledged is found by its token."""
        state = self.state
        if self._client is None:
            self._mlflow = _import_mlflow()
            with self._classified(), self._set_up_alone():
                client = self._mlflow.MlflowClient(state.uri, state.uri)
                if state.run_id is None:
                    self.save(run_id=self._create_run(client))
                else:
                    self._check_run(client)
            self._client = client
        assert state.run_id is not None
        return state.run_id

    def _set_up_alone(self) -> Any:  # noqa: ANN401 - either of two context managers
        """For SQLite only: MLflow makes the tables at the first use, and fails if two processes do so at once."""
        file = Path(self.state.uri.removeprefix(_SQLITE).partition("?")[0])
        is_file = self.state.uri.startswith(_SQLITE) and os.access(file.parent, os.W_OK)
        return exclusive(file.with_name(f"{file.name}.lock")) if is_file else nullcontext()

    def _check_run(self, client: Any) -> None:  # noqa: ANN401 - MLflow has no types
        state = self.state
        run = client.get_run(state.run_id)
        if run.info.lifecycle_stage != "active":
            raise Unavailable(f"run {state.run_id} was deleted; restore it, or set another run_dir", refused=True)
        if state.adopted_from:
            if state.adopted_from == "MLFLOW_RUN_ID" and run.data.tags.get(_TOKEN_TAG, state.token) != state.token:
                reason = f"MLFLOW_RUN_ID={state.run_id} belongs to another training run; unset it or give a new run"
                raise Unavailable(reason, refused=True)
            client.set_tag(state.run_id, _TOKEN_TAG, state.token)
            sent = {point.key: point.step for point in run.data.to_proto().metrics}
            sent |= {name: max(step, sent.get(name, -1)) for name, step in state.sent_steps.items()}
            self.save(adopted_from="", sent_steps=sent)

    def _create_run(self, client: Any) -> str:  # noqa: ANN401
        state = self.state
        found = client.get_experiment_by_name(state.experiment)
        if found is None:
            # Beside the database: MLflow's own default is relative to the folder that a command was started in.
            folder = Path(state.uri.removeprefix(_SQLITE)).absolute().parent / "mlartifacts"
            location = folder.as_uri() if state.uri.startswith(_SQLITE) else None
            try:
                client.create_experiment(state.experiment, artifact_location=location)
            except self._mlflow.exceptions.MlflowException:
                if client.get_experiment_by_name(state.experiment) is None:
                    raise  # Otherwise another process has created it meanwhile.
            found = client.get_experiment_by_name(state.experiment)
        runs = client.search_runs([found.experiment_id], f"tags.`{_TOKEN_TAG}` = '{state.token}'")
        tags = {**state.tags, "mlflow.runName": state.name, _TOKEN_TAG: state.token}
        run = runs[0] if runs else client.create_run(found.experiment_id, state.begin_ms, tags)
        return str(run.info.run_id)

    def _send_scalars(self, run_id: str) -> None:
        lines, offset = read_lines(self.backlog, 0, _MAX_POINTS)
        while lines:
            self._log(run_id, lines)
            lines, offset = read_lines(self.backlog, offset, _MAX_POINTS)
        self.backlog.unlink(missing_ok=True)
        while True:
            with self.lock:
                num_rewinds = self._num_rewinds
                lines, after = read_lines(self.metrics, self.state.metrics_bytes, _MAX_POINTS)
                fresh = [self._fresh(line) for line in lines]
            if not lines:
                return
            self._log(run_id, fresh)
            with self.lock:
                if self._num_rewinds == num_rewinds:  # Otherwise these lines were dropped meanwhile.
                    self.save(metrics_bytes=after)

    def _log(
        self, run_id: str, lines: Sequence[Line], model_id: str | None = None, dataset: Sequence[str] = ()
    ) -> None:
        """Log lines of scalars, linked to a LoggedModel and to a data set (name, digest) if they are of one."""
        linked = dict(zip(("dataset_name", "dataset_digest"), dataset, strict=False))
        points = [
            self._mlflow.entities.Metric(
                name, float(value), round(1000 * line["time_s"]), line["step"], model_id, **linked
            )
            for line in lines
            for name, value in _values(line).items()
        ]
        try:
            with self._classified():
                self._client.log_batch(run_id, points)
        except Rejected as error:  # It is not about a scalar but about the run, such as that it was deleted.
            raise Unavailable(str(error)) from error

    def _send_parameters(self, run_id: str, values: Mapping[str, str]) -> None:
        self._client.log_batch(run_id, params=[self._mlflow.entities.Param(*item) for item in values.items()])

    def _send_tags(self, run_id: str, values: Mapping[str, str]) -> None:
        self._client.log_batch(run_id, tags=[self._mlflow.entities.RunTag(*item) for item in values.items()])

    def _send_dataset(self, run_id: str, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        entities = self._mlflow.entities
        data = entities.Dataset(name, digest, "local", json.dumps({"uri": source}), profile=json.dumps(profile))
        context = entities.InputTag("mlflow.data.context", "training")
        self._client.log_inputs(run_id, [entities.DatasetInput(data, [context])])

    def _send_file(self, run_id: str, path: str, folder: str | None) -> None:
        if not (self.run_dir / path).is_file():
            raise Rejected(f"{path} is no longer in {self.run_dir}")
        self._client.log_artifact(run_id, str(self.run_dir / path), folder)

    def _send_picture(self, run_id: str, key: str, step: int, file: str) -> None:
        """The two files and the tag of `MlflowClient.log_image`, but under names that sending again overwrites."""
        path = self.folder / file
        if not path.is_file():
            return  # It was sent, and the process died before it wrote that down.
        plain_key = re.sub(r"[^A-Za-z0-9_\-./ ]", "_", key).replace("/", "~")
        mark = uuid.uuid5(uuid.NAMESPACE_URL, f"{key}+{step}")
        stem = f"{plain_key}+step+{step}+timestamp+{self.state.begin_ms}+{mark}"
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(path, Path(folder) / f"{stem}.png")
            picture_YXC = cv2.imread(str(path))
            if picture_YXC is None:
                raise Rejected(f"{path} is damaged")
            share = _THUMBNAIL_PX / max(picture_YXC.shape[:2])
            cv2.imwrite(f"{folder}/{stem}+compressed.webp", cv2.resize(picture_YXC, None, fx=share, fy=share))
            self._client.log_artifacts(run_id, folder, "images")
        self._client.set_tag(run_id, "mlflow.loggedImages", True)
        path.unlink()

    def _send_model(
        self, run_id: str, name: str, folder: str, requirements: list[str], line: Line, dataset: list[str]
    ) -> None:
        """A LoggedModel of the generator in `folder`, with the scalars `line` of its step."""
        if not (self.run_dir / folder / "generator.safetensors").is_file():
            raise Rejected(f"{self.run_dir / folder} has no generator any more")
        for known in self._models(run_id, line["step"]):
            if known.name == name and str(known.status) == "READY":
                return
            if known.name == name:  # Begun, and interrupted.
                self._client.delete_logged_model(known.model_id)
        experiment_id, params = self._client.get_run(run_id).info.experiment_id, {"step": str(line["step"])}
        model_id = self._client.create_logged_model(experiment_id, name, run_id, params=params).model_id
        self._client.log_outputs(run_id, [self._mlflow.entities.LoggedModelOutput(model_id, line["step"])])
        with tempfile.TemporaryDirectory() as temporary:
            write_model(Path(temporary) / "model", self.run_dir / folder, requirements, run_id, model_id)
            self._client.log_model_artifacts(model_id, str(Path(temporary) / "model"))
        self._log(run_id, [line], model_id, dataset)
        self._client.finalize_logged_model(model_id, "READY")

    def _send_evaluation(self, run_id: str, line: Line, dataset: list[str]) -> None:
        """Scores of the checkpoint of a step, linked to its LoggedModel if it has one."""
        models = self._models(run_id, line["step"])
        self._log(run_id, [line], models[0].model_id if models else None, dataset)

    def _models(self, run_id: str, step: int) -> list[Any]:
        """LoggedModels of a step of the run."""
        experiment_id = self._client.get_run(run_id).info.experiment_id
        found = self._client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
        return [model for model in found if model.params.get("step") == str(step)]

    def _send_status(self, run_id: str, status: Status, time_ms: int) -> None:
        """Set explicitly: MLflow's exit hook would call a crashed run FINISHED."""
        if status == "RUNNING":
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status=status, end_time=time_ms)

    @contextmanager
    def _classified(self) -> Iterator[None]:
        """Errors of MLflow, of the way to it and of its database as Unavailable or Rejected."""
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        try:
            yield
        except self._mlflow.exceptions.MlflowException as error:
            code, reason = error.get_http_status_code(), str(error)
            if code in (400, 409):
                raise Rejected(reason) from error
            if "out-of-date database schema" in reason:
                reason = f"another version of MLflow wrote this database; install that one here, or upgrade: {reason}"
                raise Unavailable(reason, refused=True) from error
            if "Invalid Host header" in reason:
                reason += "; the server does not know this name: start it with --allowed-hosts NAME,NAME:*"
            raise Unavailable(reason, refused=code in (401, 403, 404)) from error
        except ImportError as error:
            raise Unavailable(missing_package(error), refused=True) from error
        except OSError as error:  # Those of requests are OSErrors, too.
            raise Unavailable(str(error)) from error
        except SQLAlchemyError as error:
            raise Unavailable(str(error), refused=self.state.uri.startswith(_SQLITE)) from error


def _import_mlflow() -> Any:  # noqa: ANN401
    """MLflow with our settings; three seconds that a run without tracking need not pay."""
    for variable, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(variable, value)
    import mlflow  # noqa: PLC0415

    for logger in ("mlflow.store.db.utils", "alembic.runtime.migration"):  # Notes on the set-up of the database.
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.pyfunc")  # It asks for input examples.
    return mlflow


def missing_package(error: ImportError) -> str:
    """What to do about a package that MLflow's client imports when it first needs it, such as a database's driver."""
    if error.name == "psycopg":
        return str(missing_extra("postgres", str(error), "its client"))
    if error.name == "boto3":
        return str(missing_extra("s3", str(error), "its client"))
    return f"its client lacks a package ({error}); install that"


def read_state(folder: Path) -> State | None:
    """The state in a folder, or None."""
    path = folder / "state.json"
    return State(**json.loads(path.read_text())) if path.is_file() else None


def as_uint8(picture_YXC: np.ndarray) -> np.ndarray:
    """uint8 of a uint8 or float picture; floats are clipped to [0, 1], never stretched."""
    if picture_YXC.dtype == np.uint8:
        return picture_YXC
    if not np.issubdtype(picture_YXC.dtype, np.floating):
        raise TypeError(f"a picture is uint8 or float, not {picture_YXC.dtype}")
    levels: np.ndarray = (np.clip(np.nan_to_num(picture_YXC), 0, 1) * 255).round().astype(np.uint8)
    return levels


def write_model(path: Path, folder: Path, requirements: list[str], run_id: str, model_id: str) -> None:
    """Write the generator in `folder` as an MLflow model: weights, description, this package's source as one zip.

    Nothing is pickled. Input and output are float32 clips (B, T, 3, H, W) in [0, 1].
    """
    import mlflow  # noqa: PLC0415

    root = Path(__file__).parents[2]
    spec = mlflow.types.Schema([mlflow.types.TensorSpec(np.dtype(np.float32), (-1, -1, 3, -1, -1))])
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source.zip"
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(file for package in ("vsr_dist", "sharding") for file in (root / package).rglob("*.py")):
                archive.write(file, file.relative_to(root))
        files = {"weights": folder / "generator.safetensors", "description": folder / "generator.json"}
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(root / "vsr_dist" / "inference" / "mlflow_model.py"),
            # As URIs: MLflow cuts a plain path at "#" and "?", and decodes "%41".
            artifacts={key: file.absolute().as_uri() for key, file in {**files, "source": source}.items()},
            signature=mlflow.models.ModelSignature(inputs=spec, outputs=spec),
            pip_requirements=requirements,
            mlflow_model=mlflow.models.Model(run_id=run_id, model_id=model_id),
        )


# ---- what training calls ---------------------------------------------------------------------------------------------


class Tracker:
    """Rank 0 writes the files and sends them; on other ranks every call but `system` does nothing.

    Only `start` and `end` wait for the server, for a limited time. No call fails because the server is away.
    """

    def __init__(
        self, metrics: Path | None = None, run: MlflowRun | None = None, *, system_metrics: bool = False
    ) -> None:
        """metrics: `metrics.jsonl`; run: what is sent to MLflow; neither on other ranks than 0."""
        self._metrics, self.run, self._system_metrics = metrics, run, system_metrics
        self._gauges = _node_gauges() if system_metrics and os.environ.get("LOCAL_RANK", "0") == "0" else None
        self._dataset: list[str] = []
        self._news, self._closing, self._answered = threading.Event(), threading.Event(), threading.Event()
        self._failures, self._refusal = 0, ""
        self._thread = threading.Thread(target=self._send_in_background, name="tracking", daemon=True)

    @property
    def run_id(self) -> str | None:
        """MLflow's id of this run; None without MLflow, or until its server was first reached."""
        return self.run.state.run_id if self.run else None

    @property
    def uri(self) -> str | None:
        """Where the run is tracked; None without MLflow."""
        return self.run.state.uri if self.run else None

    @property
    def is_described(self) -> bool:
        """True if the run has its parameters from an earlier start; they cannot change any more."""
        return self.run is not None and self.run.state.described

    def start(self) -> None:
        """Connect. A server that refuses is a BadConfigError; one that does not answer is a warning."""
        if not self.run:
            return
        self._thread.start()
        self._answered.wait(_FIRST_ANSWER_S)
        if self._refusal:
            raise BadConfigError(f"MLflow at {self.uri} cannot be used: {self._refusal}")
        if self._failures or not self._answered.is_set():
            say(f"warning: MLflow at {self.uri} has not answered yet; training starts without it")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars at a step."""
        if self._metrics:
            append_line(self._metrics, {"step": step, "time_s": round(time.time(), 3), **values})
            self._news.set()

    def system(self) -> dict[str, float]:
        """`system/*` of every node, on every rank; empty unless configured. A collective call."""
        if not self._system_metrics:
            return {}
        readings = gather_lists([self._gauges()] if self._gauges else [])
        return {name: value for reading in readings for name, value in reading.items()}

    def picture(self, key: str, step: int, picture_YXC: np.ndarray) -> None:
        """Log a picture, uint8 or float RGB in [0, 1], under a key that stays: the UI then has a slider of steps."""
        if self.run:
            self.run.put_picture(key, step, picture_YXC)
            self._news.set()

    def parameters(self, tree: Mapping[str, Any]) -> None:
        """Log a nested mapping as flat parameters. MLflow cuts long values; `config.yaml` has them whole."""
        if self.run:
            names = {re.sub(r"[^A-Za-z0-9_\-. :/]", "_", key): str(value) for key, value in flatten(tree).items()}
            self._put("parameters", values=names)
            self.run.save(described=True)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._put("tags", values=dict(values))

    def dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Name the data set that the run reads; `profile` is any JSON mapping that describes it."""
        self._dataset = [name, digest]
        self._put("dataset", name=name, digest=digest, source=source, profile=dict(profile))

    def files(self, *paths: Path, folder: str | None = None) -> None:
        """Log files of the run directory as artifacts, with the content that they have when they are sent."""
        if self.run:
            self.run.put_files(paths, folder)
            self._news.set()

    def model(self, name: str, step: int, folder: str, requirements: list[str]) -> None:
        """Log the generator in a folder of the run directory as LoggedModel, with the validation of its step."""
        if self.run:
            found = [line for line in read_metrics(self.run.metrics, '"val/') if line["step"] == step]
            line = found[-1] if found else {"step": step}
            self._put("model", name=name, folder=folder, requirements=requirements, line=line, dataset=self._dataset)

    def rewind(self, step: int) -> None:
        """Forget the scalars after `step`, for a run that goes back to a checkpoint and on with other settings."""
        if self.run:
            self.run.roll_back(step)
        elif self._metrics:
            rewind_metrics(self._metrics, step)

    def end(self, status: Status) -> None:
        """Set the final status and send what waits, for a limited time; what is left is reported and kept."""
        if not self.run:
            return
        self.run.put_status(status)
        self._closed_at_s = time.monotonic()
        self._closing.set()
        self._news.set()
        self._thread.join(_CLOSE_S[status])
        num_scalars, num_events = self.run.num_waiting()
        if num_scalars or num_events:
            say(
                f"warning: MLflow has not received {num_scalars:,} scalars and {num_events:,} other events of this "
                f"run; they are kept, upload them with: vsr-dist track replay {self.run.run_dir}"
            )

    def _put(self, kind: str, **payload: object) -> None:
        if self.run:
            self.run.put(kind, **payload)
            self._news.set()

    def _send_in_background(self) -> None:
        """Send in batches; after a failure try again, after a longer pause each time."""
        assert self.run is not None
        may_pass = True
        while True:
            closing = self._closing.is_set()
            before = self.run.state.metrics_bytes, self.run.state.events_bytes
            try:
                self.run.connect()
                self._answered.set()
                self.run.send_all()
                if self._failures:
                    say("MLflow is available again")
                self._failures = 0
            except Exception as error:  # noqa: BLE001 - whatever is wrong here, training goes on and nothing is lost
                self._note_failure(error)
                may_pass = isinstance(error, Unavailable) and not error.refused
                if before != (self.run.state.metrics_bytes, self.run.state.events_bytes):
                    self._failures = 1
            if closing:
                if not self._failures or not may_pass or time.monotonic() > self._closed_at_s + _LAST_TRIES_S:
                    return
                time.sleep(_INTERVAL_S)
                continue
            if not self._failures:
                self._news.wait()
            self._news.clear()
            self._closing.wait(min(_INTERVAL_S * 2.0 ** min(self._failures, 10), _LONGEST_PAUSE_S))

    def _note_failure(self, error: Exception) -> None:
        expected = isinstance(error, Rejected | Unavailable)
        reason = str(error) if expected else traceback.format_exc()
        refused = isinstance(error, Rejected) or (isinstance(error, Unavailable) and error.refused)
        if refused and not self._answered.is_set():
            self._refusal = reason
        elif not self._failures:
            say(f"warning: MLflow has not received everything; training continues, the rest is kept: {reason}")
        self._failures += 1
        self._answered.set()


def open_tracker(
    config: TrackingConfig, name: str, run_dir: Path, *, resume_step: int, run_id: str | None = None
) -> Tracker:
    """The tracker of rank 0, from `resume_step` on (0 for a fresh start). Nothing is sent before `Tracker.start`.

    run_id: MLflow run to go on with if the run directory knows none; MLFLOW_RUN_ID comes next.
    """
    if not config.mlflow:
        rewind_metrics(run_dir / METRICS_NAME, resume_step)
        return Tracker(run_dir / METRICS_NAME, system_metrics=config.system_metrics)
    folder = run_dir / FOLDER_NAME
    before = read_state(folder)
    uri, experiment, decided = config.resolve(before)
    from mlflow.tracking.context.registry import resolve_tags  # noqa: PLC0415

    git = {f"mlflow.source.git.{key}": value for key, value in git_state(Path.cwd()).items()}
    source = {"mlflow.source.name": "vsr_dist.train", "command": shlex.join(sys.argv)[:5000], "kind": "training"}
    tags = resolve_tags({**source, **git, **config.tags})
    run = MlflowRun(run_dir, folder, State(uri, experiment, name, tags))
    run.save(uri=uri, experiment=experiment)
    given = ("the checkpoint", run_id) if run_id else ("MLFLOW_RUN_ID", os.environ.get("MLFLOW_RUN_ID"))
    if given[1] and run.state.run_id is None:
        run.save(adopted_from=given[0], run_id=given[1])
        run.put("tags", values=tags)
    if run.state.run_id:
        why = given[0] if given[1] == run.state.run_id else "as before"
        ignored = f"; {given[0]}={given[1]} is ignored" if given[1] not in {None, run.state.run_id} else ""
        decided += f", run {run.state.run_id} ({why}{ignored})"
    run.resume(resume_step)
    run.put_status("RUNNING")
    say(f"MLflow: {decided}")
    return Tracker(run.metrics, run, system_metrics=config.system_metrics)


def _node_gauges() -> Callable[[], dict[str, float]]:
    """Reads CPU, memory, disk, network and GPU of this node: `system/*`, or `system/NODE/*` where there are several.

    MLflow's own thread for this ends at the first failing request; its gauges are used without it.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # noqa: PLC0415

    node = os.environ.get("GROUP_RANK") if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1 else None
    monitor = SystemMetricsMonitor(run_id=None, node_id=node, tracking_uri="sqlite://")
    prefix = f"system/{monitor.node_id}/" if monitor.node_id else "system/"

    def read() -> dict[str, float]:
        monitor.collect_metrics()
        values = {f"{prefix}{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        for gauge in monitor.monitors:
            gauge.clear_metrics()
        return values

    return read
