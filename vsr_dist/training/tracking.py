"""The only module that calls MLflow: where a run is tracked, and how each thing is handed over."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sqlalchemy.exc import SQLAlchemyError
from torch import nn

from vsr_dist.core.console import say
from vsr_dist.core.locks import exclusive
from vsr_dist.training.outbox import Job, Outbox, Target
from vsr_dist.training.shipping import MAX_POINTS, Point, Rejected, Unavailable
from vsr_dist.training.tracking_config import SQLITE, TrackingConfig

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
_MAX_PARAMETER_CHARS = 6000
_MAX_PER_REQUEST = 100
_MAX_DIGEST_CHARS = 36
_TOKEN_TAG = "vsr_dist.token"
_SETTINGS = {
    # The outbox tries again by itself. MLflow's own defaults keep a caller for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # Training says where its run is, once and in its own words.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# The server says: this one thing is wrong. Anything else may be better at the next try.
_REJECTED_STATUS = (400, 409)
_REFUSED_STATUS = (401, 403, 404)


def make_target(config: TrackingConfig, name: str, tags: Mapping[str, str]) -> Target:
    """A run named `name` as MLflow should make it: with the user, and the given tags."""
    # Three seconds of import that runs without tracking need not pay.
    from mlflow.tracking.context.registry import resolve_tags  # noqa: PLC0415

    basic = {"mlflow.runName": name, "mlflow.source.name": "vsr_dist.train"}
    return Target(config.uri, config.experiment, name, resolve_tags({**basic, **tags, **config.tags}))


class SystemSampler:
    """CPU, memory, disk, network and GPU of this machine, measured when asked.

    MLflow's own monitor is a thread that ends at the first request that fails; its gauges are used without it.
    """

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics import (  # noqa: PLC0415
            cpu_monitor,
            disk_monitor,
            gpu_monitor,
            network_monitor,
        )

        self._gauges = [cpu_monitor.CPUMonitor(), disk_monitor.DiskMonitor(), network_monitor.NetworkMonitor()]
        if torch.cuda.is_available():
            try:
                self._gauges.append(gpu_monitor.GPUMonitor())
            except (ImportError, RuntimeError) as error:
                say(f"warning: tracking.system_metrics goes without the GPU: {error}")

    def read(self) -> dict[str, float]:
        """`system/*` now."""
        values: dict[str, float] = {}
        for gauge in self._gauges:
            gauge.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in gauge.aggregate_metrics().items()}
            gauge.clear_metrics()
        return values


class MlflowDestination:
    """One MLflow run, seen from the outbox. `load_generator` reads a generator from a run directory."""

    def __init__(self, uri: str, load_generator: Callable[[Path], nn.Module]) -> None:
        import mlflow  # noqa: PLC0415

        for variable, value in _SETTINGS.items():
            os.environ.setdefault(variable, value)
        # Set-up notes of the database and the reminder that pickles run code say nothing to whoever trains.
        for logger in ("mlflow.store.db.utils", "alembic.runtime.migration", "mlflow.pytorch"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        self._mlflow, self.uri, self.load_generator = mlflow, uri, load_generator
        self._client: Any = None
        self._run_dir = Path()

    def connect(self, outbox: Outbox) -> str:
        """Find or make the run; returns its id. A run whose creation was not acknowledged is found by its token."""
        target, run_id = outbox.target, outbox.state.run_id
        assert target is not None
        self._run_dir = outbox.run_dir
        with self._classified(), self._set_up_alone():
            self._mlflow.set_tracking_uri(self.uri)
            self._client = self._mlflow.MlflowClient()
            if run_id is not None:
                run = self._client.get_run(run_id)
                if run.info.lifecycle_stage != "active":
                    raise Unavailable(f"run {run_id} was deleted; restore it, or set another run_dir", refused=True)
                return run_id
            experiment_id = self._experiment_id(target.experiment)
            found = self._client.search_runs([experiment_id], f"tags.`{_TOKEN_TAG}` = '{target.token}'")
            tags = {**target.tags, _TOKEN_TAG: target.token}
            run = found[0] if found else self._client.create_run(experiment_id, target.begin_ms, tags)
            return str(run.info.run_id)

    def _set_up_alone(self) -> AbstractContextManager[None]:
        """For SQLite only: MLflow makes the tables at the first use, and fails if two processes do so at once."""
        file = Path(self.uri.removeprefix(SQLITE).partition("?")[0])
        is_ours = self.uri.startswith(SQLITE) and os.access(file.parent, os.W_OK)
        return exclusive(file.with_name(f"{file.name}.lock")) if is_ours else nullcontext()

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self.uri.startswith(SQLITE):
            # Beside the database and absolute: MLflow's own default is relative to wherever a command was started.
            location = (Path(self.uri.removeprefix(SQLITE)).absolute().parent / "mlartifacts").as_uri()
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except self._mlflow.exceptions.MlflowException:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def send(self, run_id: str, points: Sequence[Point]) -> None:
        """Log scalars, up to 1,000 in a request, with the time at which they were measured."""
        metrics = [self._mlflow.entities.Metric(p.name, p.value, p.time_ms, p.step) for p in points]
        with self._classified():
            for first in range(0, len(metrics), MAX_POINTS):
                self._client.log_batch(run_id, metrics=metrics[first : first + MAX_POINTS])

    def steps(self, run_id: str, name: str) -> set[int]:
        """Steps of which MLflow holds a point of this name."""
        with self._classified():
            return {metric.step for metric in self._client.get_metric_history(run_id, name)}

    def deliver(self, run_id: str, job: Job) -> None:
        """Hand over one thing; each way of doing so ends the same if it is done twice."""
        with self._classified():
            getattr(self, f"_deliver_{job.kind}")(run_id, **job.payload)

    def _deliver_parameters(self, run_id: str, values: Mapping[str, str]) -> None:
        short = {key: value for key, value in values.items() if len(value) <= _MAX_PARAMETER_CHARS}
        entries = [self._mlflow.entities.Param(key, value) for key, value in short.items()]
        for first in range(0, len(entries), _MAX_PER_REQUEST):
            self._client.log_batch(run_id, params=entries[first : first + _MAX_PER_REQUEST])
        if len(short) < len(values):
            long = {key: value for key, value in values.items() if key not in short}
            self._client.log_dict(run_id, long, "long_parameters.json")

    def _deliver_tags(self, run_id: str, values: Mapping[str, str]) -> None:
        tags = [self._mlflow.entities.RunTag(key, value) for key, value in values.items()]
        self._client.log_batch(run_id, tags=tags)

    def _deliver_dataset(self, run_id: str, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        entities = self._mlflow.entities
        data = entities.Dataset(
            name, digest[:_MAX_DIGEST_CHARS], "local", json.dumps({"uri": source}), profile=json.dumps(profile)
        )
        context = entities.InputTag("mlflow.data.context", "training")
        self._client.log_inputs(run_id, [entities.DatasetInput(data, [context])])

    def _deliver_file(self, run_id: str, path: str, folder: str | None) -> None:
        if not (self._run_dir / path).is_file():
            raise Rejected(f"{path} is no longer in {self._run_dir}")
        self._client.log_artifact(run_id, str(self._run_dir / path), folder)

    def _deliver_picture(self, run_id: str, key: str, step: int, file: str, time_ms: int) -> None:
        """The two files and the tag that `MlflowClient.log_image` leaves, but under names that stay the same."""
        from mlflow.tracking.multimedia import compress_image_size  # noqa: PLC0415
        from PIL import Image  # noqa: PLC0415

        plain_key = re.sub(r"[^A-Za-z0-9_\-./ ]", "_", key).replace("/", "~")
        mark = uuid.uuid5(uuid.NAMESPACE_URL, f"{key}+{step}")
        stem = f"{plain_key}+step+{step}+timestamp+{time_ms}+{mark}"
        with tempfile.TemporaryDirectory() as folder, Image.open(self._run_dir / "outbox" / file) as image:
            image.load()
            image.save(Path(folder) / f"{stem}.png")
            compress_image_size(image).save(Path(folder) / f"{stem}+compressed.webp")
            self._client.log_artifacts(run_id, folder, "images")
        self._client.set_tag(run_id, "mlflow.loggedImages", True)

    def _deliver_model(self, run_id: str, requirements: list[str]) -> None:
        """Log the generator as MLflow model `generator`: float32 clips (B, T, 3, H, W) in [0, 1] in and out."""
        mlflow, run = self._mlflow, self._client.get_run(run_id)
        logged = self._client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
        for model in logged:
            if str(model.status) == "READY":
                return
            # Begun, and cut off by an outage.
            self._client.delete_logged_model(model.model_id)
        spec = mlflow.types.Schema([mlflow.types.TensorSpec(np.dtype(np.float32), (-1, -1, 3, -1, -1))])
        status = run.info.status
        with mlflow.start_run(run_id=run_id):
            mlflow.pytorch.log_model(
                self.load_generator(self._run_dir),
                name="generator",
                signature=mlflow.models.ModelSignature(inputs=spec, outputs=spec),
                pip_requirements=requirements,
                code_paths=[str(Path(__file__).parents[2] / package) for package in ("vsr_dist", "sharding")],
                serialization_format="pickle",
            )
        if status == "RUNNING":
            self._client.update_run(run_id, status=status)

    def _deliver_status(self, run_id: str, status: Status, time_ms: int) -> None:
        """Set explicitly: MLflow's exit hook would call a crashed run FINISHED."""
        if status == "RUNNING":
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status=status, end_time=time_ms)

    @contextmanager
    def _classified(self) -> Iterator[None]:
        """Errors of MLflow, of the way to it and of its database as Unavailable or Rejected."""
        import requests  # noqa: PLC0415

        try:
            yield
        except self._mlflow.exceptions.MlflowException as error:
            code = error.get_http_status_code()
            if code in _REJECTED_STATUS:
                raise Rejected(str(error)) from error
            raise Unavailable(_explain(str(error)), refused=code in _REFUSED_STATUS) from error
        except requests.RequestException as error:
            raise Unavailable(_explain(str(error))) from error
        except SQLAlchemyError as error:
            raise Unavailable(str(error), refused=self.uri.startswith("sqlite")) from error


def _explain(message: str) -> str:
    if "Invalid Host header" not in message:
        return message
    return (
        f"{message}; the server does not know the name it is called by: start it with --allowed-hosts NAME,NAME:* "
        "(/health answers all the same)"
    )
