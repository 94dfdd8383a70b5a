"""Where the numbers of a run go: `metrics.jsonl` first, then MLflow. The only module that calls MLflow."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sqlalchemy.exc import SQLAlchemyError
from torch import nn

from vsr_dist.core.config_io import flatten
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.core.fields import io

Status = Literal["FINISHED", "FAILED", "KILLED"]
_MAX_PARAMETER_CHARS = 6000
_SQLITE = "sqlite:///"
# MLflow's own defaults keep a caller waiting for four minutes for a server that is not there.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is tracked.

    Attributes:
        mlflow: send parameters, metrics, pictures and the model to MLflow; `metrics.jsonl` is written in any case.
        uri: MLflow tracking URI: a server (`http://host:5000`) or a local SQLite file (`sqlite:///mlflow.db`).
        experiment: MLflow experiment name.
        tags: further tags of the run.
        log_model: log the final generator as an MLflow model.
    """

    mlflow: bool = io(True)
    uri: str = io("sqlite:///mlflow.db")
    experiment: str = io("vsr-dist")
    tags: dict[str, str] = field(default_factory=dict, metadata={"effect": "io"})
    log_model: bool = io(True)


class MetricsFile:
    """`metrics.jsonl` of a run directory: one object per logged step, `{"step": n, "time_s": t, name: value}`."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Open for appending; lines of steps after `resume_step` (from before a crash) are dropped first, all of
        them for a fresh start at 0."""
        self.path = path
        kept = [line for line in read_metrics(path) if resume_step and line["step"] <= resume_step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time_s": round(time.time(), 3), **metrics}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a `metrics.jsonl`, oldest first; none if there is no file. An unfinished last line is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        raise BadInputError(f"{path} holds a line that is not JSON ({error}); remove that line") from error


class MlflowRun:
    """One MLflow run. Made on rank 0 only."""

    def __init__(self, config: TrackingConfig, name: str, run_id: str | None) -> None:
        """Start a run named `name`, or go on with `run_id`."""
        # Three seconds of import that runs without tracking need not pay.
        import mlflow  # noqa: PLC0415
        from mlflow.tracking.context.registry import resolve_tags  # noqa: PLC0415

        self._mlflow = mlflow
        # Set-up notes of the database and the reminder that pickles run code say nothing to whoever trains.
        for logger in ("mlflow.store.db.utils", "alembic.runtime.migration", "mlflow.pytorch"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        self.faults = (mlflow.exceptions.MlflowException, SQLAlchemyError)
        self.is_new = run_id is None
        for variable, value in _PATIENCE.items():
            os.environ.setdefault(variable, value)
        try:
            mlflow.set_tracking_uri(config.uri)
            self.client = mlflow.MlflowClient()
            experiment_id = self._experiment_id(config)
            if run_id is None:
                tags = resolve_tags({"mlflow.runName": name, "mlflow.source.name": "vsr_dist.train", **config.tags})
                run_id = self.client.create_run(experiment_id, tags=tags).info.run_id
            else:
                self.client.update_run(run_id, status="RUNNING")
        except self.faults as error:
            raise BadConfigError(f"MLflow at tracking.uri={config.uri} cannot be used: {error}") from error
        self.run_id = run_id

    def _experiment_id(self, config: TrackingConfig) -> str:
        found = self.client.get_experiment_by_name(config.experiment)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if config.uri.startswith(_SQLITE):
            # Beside the database and absolute: MLflow's own default is relative to wherever a command was started.
            location = (Path(config.uri.removeprefix(_SQLITE)).absolute().parent / "mlartifacts").as_uri()
        try:
            return str(self.client.create_experiment(config.experiment, artifact_location=location))
        except self._mlflow.exceptions.MlflowException:
            found = self.client.get_experiment_by_name(config.experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def parameters(self, tree: Mapping[str, Any]) -> None:
        """Log a nested mapping as flat parameters; texts over MLflow's limit go to `long_parameters.json`."""
        flat = {key: str(value) for key, value in flatten(tree).items()}
        entities = self._mlflow.entities
        short = [entities.Param(k, v) for k, v in flat.items() if len(v) <= _MAX_PARAMETER_CHARS]
        for first in range(0, len(short), 100):
            self.client.log_batch(self.run_id, params=short[first : first + 100])
        long = {key: value for key, value in flat.items() if len(value) > _MAX_PARAMETER_CHARS}
        if long:
            self.client.log_dict(self.run_id, long, "long_parameters.json")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars at a step in one request."""
        now_ms = int(time.time() * 1000)
        points = [self._mlflow.entities.Metric(name, value, now_ms, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=points)

    def picture(self, key: str, step: int, picture_YXC: np.ndarray) -> None:
        """Log a uint8 RGB picture under a stable key, which gives a step slider in the UI."""
        self.client.log_image(self.run_id, picture_YXC, key=key, step=step, synchronous=True)

    def files(self, *paths: Path) -> None:
        """Log files as artifacts at the top level."""
        for path in paths:
            self.client.log_artifact(self.run_id, str(path))

    def resumed(self, step: int, tree: Mapping[str, Any]) -> None:
        """Tag the run with the step that it was resumed from, and keep the settings in force since then as a file."""
        self.client.set_tag(self.run_id, "resumed_from_step", str(step))
        self.client.log_dict(self.run_id, dict(tree), f"resumes/step_{step:08d}.json")

    def model(self, generator: nn.Module, requirements: list[str]) -> None:
        """Log the generator as an MLflow model `generator`: float32 clips (B, T, 3, H, W) in [0, 1] in and out."""
        mlflow = self._mlflow
        spec = mlflow.types.Schema([mlflow.types.TensorSpec(np.dtype(np.float32), (-1, -1, 3, -1, -1))])
        with mlflow.start_run(run_id=self.run_id):
            mlflow.pytorch.log_model(
                generator,
                name="generator",
                signature=mlflow.models.ModelSignature(inputs=spec, outputs=spec),
                pip_requirements=requirements,
                code_paths=[str(Path(__file__).parents[2] / package) for package in ("vsr_dist", "sharding")],
                serialization_format="pickle",
            )

    def end(self, status: Status) -> None:
        """Set the final status. Set explicitly: MLflow's exit hook would call a crashed run FINISHED."""
        self.client.set_terminated(self.run_id, status=status)


class Tracker:
    """The file and, if configured, MLflow. On ranks other than 0 every call does nothing.

    Metrics go to the file first. A tracking server that fails costs a warning and no step: what it did not take is
    kept and sent again with the next metrics and at the end.
    """

    def __init__(self, file: MetricsFile | None, mlflow_run: MlflowRun | None) -> None:
        self.file, self.mlflow_run = file, mlflow_run
        self._unsent: list[tuple[int, dict[str, float]]] = []

    @property
    def run_id(self) -> str | None:
        """MLflow's id of this run, or None."""
        return self.mlflow_run.run_id if self.mlflow_run else None

    @property
    def faults(self) -> tuple[type[Exception], ...]:
        """What a call of MLflow may raise when its server fails."""
        return self.mlflow_run.faults if self.mlflow_run else ()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars at a step, to the file first."""
        if self.file:
            self.file.write(step, values)
        if self.mlflow_run:
            self._unsent.append((step, dict(values)))
            self._send()

    def picture(self, key: str, step: int, picture_YXC: np.ndarray) -> None:
        """Log a uint8 RGB picture under a stable key; one that the server does not take is lost, and said."""
        if not self.mlflow_run:
            return
        try:
            self.mlflow_run.picture(key, step, picture_YXC)
        except self.mlflow_run.faults as error:
            say(f"warning: MLflow did not take picture {key} of step {step}: {error}")

    def end(self, status: Status) -> None:
        """Send what is left and set the final status; a server that fails now is a warning, like before."""
        if not self.mlflow_run:
            return
        self._send()
        try:
            self.mlflow_run.end(status)
        except self.mlflow_run.faults as error:
            say(f"warning: MLflow did not take the final status {status} of run {self.run_id}: {error}")

    def _send(self) -> None:
        assert self.mlflow_run is not None
        while self._unsent:
            try:
                self.mlflow_run.metrics(*self._unsent[0])
            except self.mlflow_run.faults as error:
                say(f"warning: MLflow took no metrics, {len(self._unsent)} log lines wait to be sent again: {error}")
                return
            self._unsent.pop(0)
