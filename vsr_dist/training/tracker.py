"""What training calls: scalars, pictures and files, kept on disk first and brought to MLflow in the background."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsr_dist.core.config_io import flatten
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError
from vsr_dist.training.metrics_file import MetricsFile
from vsr_dist.training.outbox import Outbox, now_ms
from vsr_dist.training.shipping import Shipper, legal_name
from vsr_dist.training.tracking import MlflowDestination, Status, SystemSampler

_FIRST_ANSWER_S = 30.0
# A run that was told to stop has seconds until it is killed; what is left then is replayed.
_CLOSE_S: dict[Status, float] = {"FINISHED": 300.0, "FAILED": 10.0, "KILLED": 10.0}
_MAX_TAG_CHARS = 5000


@dataclass(frozen=True)
class MlflowSide:
    """What a run has that is tracked in MLflow."""

    outbox: Outbox
    shipper: Shipper
    destination: MlflowDestination
    sampler: SystemSampler | None = None


class Tracker:
    """The file and, if configured, MLflow. On ranks other than 0, which have neither, every call does nothing.

    No call waits for the server, and none fails because of it. What it did not take lies in `RUN_DIR/outbox` and in
    `metrics.jsonl`, and is sent by a thread when the server is back, by the resumed run, or by `track replay`.
    """

    def __init__(self, file: MetricsFile | None = None, mlflow: MlflowSide | None = None) -> None:
        self.file, self.mlflow = file, mlflow

    @property
    def run_id(self) -> str | None:
        """MLflow's id of this run; None without MLflow, or as long as its server was never reached."""
        return self.mlflow.outbox.state.run_id if self.mlflow else None

    @property
    def is_described(self) -> bool:
        """True if the run has its parameters from an earlier start; they cannot change any more."""
        return self.mlflow is not None and self.mlflow.outbox.state.described

    def start(self) -> None:
        """Make contact. A server that says no is a BadConfigError; one that is away is a warning."""
        if not self.mlflow:
            return
        shipper = self.mlflow.shipper
        if shipper.start(_FIRST_ANSWER_S):
            return
        uri = self.mlflow.destination.uri
        if shipper.refusal is not None:
            raise BadConfigError(f"MLflow at tracking.uri={uri} cannot be used: {shipper.refusal}")
        say(f"warning: MLflow at tracking.uri={uri} has not answered yet; training starts without it")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars at a step."""
        if self.file:
            self.file.write(step, values)
        self._wake()

    def system(self) -> dict[str, float]:
        """`system/*` of this machine now; empty unless configured."""
        return self.mlflow.sampler.read() if self.mlflow and self.mlflow.sampler else {}

    def picture(self, key: str, step: int, picture_YXC: np.ndarray) -> None:
        """Log a picture under a stable key, which gives a step slider in the UI.

        uint8 RGB, or float RGB of which what is outside [0, 1] is cut off.
        """
        if self.mlflow:
            self.mlflow.outbox.put_picture(key, step, picture_YXC)
            self._wake()

    def parameters(self, tree: Mapping[str, Any]) -> None:
        """Log a nested mapping as flat parameters; texts over MLflow's limit go to `long_parameters.json`."""
        if self.mlflow:
            flat = {legal_name(key): str(value) for key, value in flatten(tree).items()}
            self.mlflow.outbox.put("parameters", values=flat)
            self.mlflow.outbox.state.described = True
            self.mlflow.outbox.save()
            self._wake()

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        if self.mlflow and values:
            legal = {legal_name(key): value[:_MAX_TAG_CHARS] for key, value in values.items()}
            self.mlflow.outbox.put("tags", values=legal)
            self._wake()

    def dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Name the data set that the run reads; `profile` is any JSON mapping that describes it."""
        if self.mlflow:
            self.mlflow.outbox.put("dataset", name=name, digest=digest, source=source, profile=dict(profile))
            self._wake()

    def files(self, *paths: Path, folder: str | None = None) -> None:
        """Log files of the run directory as artifacts, with the content that they have when they are sent."""
        if self.mlflow:
            for path in paths:
                inside = path.resolve().relative_to(self.mlflow.outbox.run_dir.resolve())
                self.mlflow.outbox.put("file", path=str(inside), folder=folder)
            self._wake()

    def document(self, path: Path, content: Mapping[str, Any], folder: str | None = None) -> None:
        """Write a mapping as JSON into the run directory, and log that file."""
        if self.file:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=1, default=str))
            self.files(path, folder=folder)

    def model(self, requirements: list[str]) -> None:
        """Log the generator that lies in the run directory as an MLflow model."""
        if self.mlflow:
            self.mlflow.outbox.put("model", requirements=requirements)
            self._wake()

    def rewind(self, step: int) -> None:
        """Forget the scalars after `step` in `metrics.jsonl`, for a run that goes back to a checkpoint.

        What MLflow has of the steps in between stays, and is not sent a second time.
        """
        if not self.file:
            return
        if not self.mlflow:
            self.file.rewind(step)
            return
        with self.mlflow.outbox.position_lock:
            length = self.file.rewind(step)
            state = self.mlflow.outbox.state
            state.acknowledged_bytes = min(state.acknowledged_bytes, length)

    def end(self, status: Status) -> None:
        """Set the final status and send what is left, as far as that is soon done; what is not is said."""
        if not self.mlflow:
            return
        outbox, shipper = self.mlflow.outbox, self.mlflow.shipper
        outbox.put("status", status=status, time_ms=now_ms())
        if not shipper.close(_CLOSE_S[status]):
            num_scalars, num_things = shipper.delivery.outstanding()
            say(
                f"warning: MLflow has not taken {num_scalars:,} scalars and {num_things:,} other things of this run; "
                f"they are kept: vsr-dist track replay {outbox.run_dir}"
            )

    def _wake(self) -> None:
        if self.mlflow:
            self.mlflow.shipper.wake()
