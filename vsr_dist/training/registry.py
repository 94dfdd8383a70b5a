"""Taking a generator out of MLflow: the files that its training left with the run, and nothing that runs code.

A registered model is a pickle; the run that it is from holds the same weights as `generator.safetensors`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vsr_dist.core.errors import BadCheckpointError, BadConfigError
from vsr_dist.training.tracking_config import check_uri

SCHEMES = ("models:/", "runs:/")
_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_FORMS = "models:/NAME/VERSION, models:/NAME@ALIAS, models:/NAME/latest, models:/m-MODEL_ID or runs:/RUN_ID"


def download_generator(uri: str, tracking_uri: str | None, names: Sequence[str], folder: Path) -> dict[str, str]:
    """Fetch the files `names` of the run behind `uri` into `folder`; returns what the run and the server are called.

    tracking_uri: of the MLflow server; None for MLFLOW_TRACKING_URI. Raises BadConfigError for a URI of another form,
    or without a server, and BadCheckpointError where the server, the model, the run or its files are missing.
    """
    import mlflow  # noqa: PLC0415
    import requests  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    server = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not server:
        raise BadConfigError(f"{uri} is in MLflow; say where, with a tracking URI or MLFLOW_TRACKING_URI")
    check_uri(server)
    for variable, value in _SETTINGS.items():
        os.environ.setdefault(variable, value)
    try:
        client = mlflow.MlflowClient(server, server)
        run_id = _run_of(client, uri)
        found = {item.path for item in client.list_artifacts(run_id)}
        missing = [name for name in names if name not in found]
        if missing:
            raise BadCheckpointError(
                f"{uri} is from run {run_id} at {server}, which holds no {' and no '.join(missing)}; expected the run "
                "of a finished training of vsr-dist"
            )
        for name in names:
            client.download_artifacts(run_id, name, str(folder))
    except (mlflow.exceptions.MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
        raise BadCheckpointError(f"{uri} cannot be taken from MLflow at {server}: {error}") from error
    return {"mlflow_run_id": run_id, "tracking_uri": server}


def _run_of(client: Any, uri: str) -> str:  # noqa: ANN401  (an MlflowClient, which has no types)
    """The run whose generator is meant."""
    if match := re.fullmatch(r"runs:/([^/]+)(/.*)?", uri):
        return match[1]
    if match := re.fullmatch(r"models:/(m-[^/@]+)", uri):
        return _run_of_logged(client, match[1], uri)
    if match := re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri):
        version = client.get_model_version_by_alias(match[1], match[2])
    elif match := re.fullmatch(r"models:/([^/@]+)/latest", uri):
        versions = client.search_model_versions(f"name = '{match[1]}'")
        if not versions:
            raise BadCheckpointError(f"{uri}: MLflow knows no version of a model of this name")
        version = max(versions, key=lambda one: int(one.version))
    elif match := re.fullmatch(r"models:/([^/@]+)/(\d+)", uri):
        version = client.get_model_version(match[1], match[2])
    else:
        raise BadConfigError(f"expected {_FORMS}, found {uri!r}")
    if version.run_id:
        return str(version.run_id)
    return _run_of_logged(client, version.model_id, uri)


def _run_of_logged(client: Any, model_id: str | None, uri: str) -> str:  # noqa: ANN401
    run_id = client.get_logged_model(model_id).source_run_id if model_id else None
    if not run_id:
        raise BadCheckpointError(f"{uri}: MLflow does not know which run the model is from; name the run, runs:/RUN_ID")
    return str(run_id)
