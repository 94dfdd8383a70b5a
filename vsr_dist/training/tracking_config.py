"""The `tracking` section, and which tracking URIs can be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.fields import io

SQLITE = "sqlite:///"
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is tracked.

    Attributes:
        mlflow: send parameters, metrics, pictures and the model to MLflow; `metrics.jsonl` is written in any case.
        uri: MLflow tracking URI: a server (`http://host:5000`) or a local SQLite file (`sqlite:///mlflow.db`).
        experiment: MLflow experiment name.
        tags: further tags of the run.
        extra_params: further parameters of the run, beside its configuration, by name.
        log_model: log the final generator as an MLflow model.
        system_metrics: add `system/*` of process 0's machine (CPU, memory, disk, network, GPU) to each log line.
    """

    mlflow: bool = io(True)
    uri: str = io("sqlite:///mlflow.db")
    experiment: str = io("vsr-dist")
    tags: dict[str, str] = field(default_factory=dict, metadata={"effect": "io"})
    extra_params: dict[str, str] = field(default_factory=dict, metadata={"effect": "io"})
    log_model: bool = io(True)
    system_metrics: bool = io(False)

    def __post_init__(self) -> None:
        """Refuse a password: the configuration goes to the run directory, to MLflow and into messages."""
        if urlsplit(self.uri).password:
            raise BadConfigError(
                "tracking.uri holds a password, which would be written to config.yaml and to MLflow; take it out, and "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a server, PGPASSWORD for PostgreSQL"
            )


def check_uri(uri: str) -> None:
    """Refuse a tracking URI that can never work; whether a server answers there is another question."""
    scheme = uri.partition(":")[0].partition("+")[0]
    fault = None
    if scheme not in _SCHEMES or "://" not in uri:
        fault = f"its scheme is none of {', '.join(_SCHEMES)}"
    elif scheme in {"http", "https"}:
        try:
            fault = None if urlsplit(uri).hostname and urlsplit(uri).port != 0 else "it names no host"
        except ValueError as error:
            fault = str(error)
    elif scheme == "sqlite" and not uri.removeprefix(SQLITE).strip("/"):
        fault = "it names no file"
    if fault:
        raise BadConfigError(
            f"MLflow at tracking.uri={uri} cannot be used: {fault}; give a server (http://host:5000) or a file "
            "(sqlite:///mlflow.db)"
        )
