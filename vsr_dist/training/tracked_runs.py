"""MLflow runs from outside their training: results that are added to them, what was not sent yet, their generators."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsr_dist.core.console import say
from vsr_dist.core.errors import BadCheckpointError, BadConfigError, BadInputError, UserError
from vsr_dist.core.files import exclusive
from vsr_dist.training.tracking import (
    FOLDER_NAME,
    MlflowRun,
    Rejected,
    State,
    TrackingConfig,
    Unavailable,
    check_uri,
    missing_package,
    read_state,
)

SCHEMES = ("models:/", "runs:/")


@dataclass(frozen=True)
class TrackedRun:
    """A run on a tracking server."""

    uri: str
    run_id: str


def tracked_run(folder: Path, provenance: Mapping[str, Any] | None = None) -> TrackedRun | None:
    """The MLflow run of a run directory, else that in a generator's `provenance`; None if there is none."""
    state = read_state(folder / FOLDER_NAME)
    if state is not None and state.run_id is not None:
        return TrackedRun(state.uri, state.run_id)
    noted = (provenance or {}).get("mlflow")
    return TrackedRun(noted["uri"], noted["run_id"]) if noted else None


def log_evaluation(
    run: TrackedRun,
    out: Path,
    *,
    name: str,
    step: int,
    scores: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    pictures: Mapping[str, np.ndarray],
    files: Sequence[Path],
    dataset: tuple[str, str] | None = None,
) -> None:
    """Log an evaluation to the run that trained its checkpoint.

    scores, intervals: metric -> value, and (low, high) of its interval; they become `evaluation/NAME/METRIC` with
    `METRIC_low` and `METRIC_high` at the `step` of the checkpoint, linked to its LoggedModel and to `dataset` (name,
    digest). pictures: uint8 RGB (Y, X, 3) by name, for the image grid. files: in `out`; artifacts `evaluation/NAME`.
    Raises UserError if the server does not take it all; the rest is kept for `vsr-dist track replay OUT`.
    """
    name = re.sub(r"[^A-Za-z0-9_\-. ]", "_", name)
    line = {"step": step, "time_s": round(time.time(), 3)}
    line |= {f"evaluation/{name}/{metric}": value for metric, value in scores.items()}
    for metric, (low, high) in intervals.items():
        line |= {f"evaluation/{name}/{metric}_low": low, f"evaluation/{name}/{metric}_high": high}
    tracked = _open_for(run, out)
    tracked.put("evaluation", line=line, dataset=list(dataset or ()))
    for key, picture_YXC in pictures.items():
        tracked.put_picture(f"evaluation/{name}/{key}", step, picture_YXC)
    tracked.put_files(files, f"evaluation/{name}")
    _send(tracked)


def log_report(runs: Sequence[TrackedRun], out: Path, files: Sequence[Path]) -> None:
    """Log the files of a report in `out` to every run that it compares, as artifacts `reports/NAME OF OUT`.

    Raises UserError as `log_evaluation` does.
    """
    opened = [_open_for(run, out) for run in runs]
    for tracked in opened:
        tracked.put_files(files, f"reports/{out.resolve().name}")
    for tracked in opened:
        _send(tracked)


def log_own_run(
    config: TrackingConfig,
    folder: Path,
    files: Sequence[Path],
    *,
    name: str,
    token: str,
    tags: Mapping[str, str],
    source: str,
) -> str:
    """Log files in `folder` to a run of their own, such as that of a study; returns its id.

    The run is made at the first call and found by `token` from any machine; later calls replace its files and tags.
    `source` is the command that MLflow shows as the run's. Raises UserError as `log_evaluation` does.
    """
    from mlflow.tracking.context.registry import resolve_tags  # noqa: PLC0415

    uri, experiment, _ = config.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / "report.lock"):  # Several drivers may end at the same time.
        made = State(uri, experiment, name, resolve_tags({**tags, "mlflow.source.name": source}), token=token)
        tracked = MlflowRun(folder, folder / FOLDER_NAME, made)
        tracked.save(uri=uri, experiment=experiment)
        tracked.skip_events()
        tracked.put("tags", values=dict(tags))
        tracked.put_files(files, None)
        tracked.put_status("FINISHED")
        _send(tracked)
        return str(tracked.state.run_id)


def replay(folder: Path, *, finished: bool) -> None:
    """Send what waits in a run directory, or in the folder of an evaluation, a report or a study.

    finished: status of a training whose process died without setting one. Raises UserError if the server does not take
    it all.
    """
    states = sorted((folder / FOLDER_NAME).rglob("state.json"))
    if not states:
        raise BadInputError(f"{folder} contains nothing that is tracked in MLflow; give the run_dir of a tracked run")
    for path in states:
        tracked = MlflowRun(folder, path.parent)
        check_uri(tracked.state.uri, str(path))
        if tracked.state.status == "RUNNING":
            tracked.put_status("FINISHED" if finished else "FAILED")
        num_scalars, num_events = tracked.num_waiting()
        _send(tracked)
        say(
            f"uploaded {num_scalars:,} scalars and {num_events:,} other events; MLflow has all of {folder} in run "
            f"{tracked.state.run_id}"
        )


def _open_for(run: TrackedRun, out: Path) -> MlflowRun:
    """Files in OUT/tracking for an existing run; what waited there is older than what is added now."""
    tracked = MlflowRun(out, out / FOLDER_NAME / run.run_id, State(run.uri, run_id=run.run_id))
    tracked.skip_events()
    return tracked


def _send(tracked: MlflowRun) -> None:
    try:
        tracked.send_all()
    except (Unavailable, Rejected) as error:
        num_scalars, num_events = tracked.num_waiting()
        raise UserError(
            f"MLflow at {tracked.state.uri} did not accept everything: {error}; {num_scalars:,} scalars and "
            f"{num_events:,} other events are kept; upload them with: vsr-dist track replay {tracked.run_dir}"
        ) from error


def download_generator(uri: str, tracking_uri: str | None, names: Sequence[str], folder: Path) -> dict[str, str]:
    """Fetch the files `names` of a generator in MLflow into `folder`; returns where the server is. No pickle is read.

    uri: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `models:/NAME/latest`, `models:/m-MODEL_ID` or `runs:/RUN_ID`;
    tracking_uri: of the server; None for MLFLOW_TRACKING_URI. Raises BadConfigError for a URI of another form or
    without a server, BadCheckpointError where the server, the model, the run or a file is missing.
    """
    import mlflow  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    server = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not server:
        raise BadConfigError(f"{uri} needs an MLflow server; set a tracking URI or MLFLOW_TRACKING_URI")
    check_uri(server, "the tracking URI")
    found = re.fullmatch(r"runs:/[^/]+|models:/(?P<name>[^/@]+)(?:/(?P<version>\d+|latest)|@(?P<alias>[^/@]+))?", uri)
    if not found or (found["name"] and not uri.startswith("models:/m-") and not (found["version"] or found["alias"])):
        forms = "models:/NAME/VERSION, models:/NAME@ALIAS, models:/NAME/latest, models:/m-MODEL_ID or runs:/RUN_ID"
        raise BadConfigError(f"expected {forms}, found {uri!r}")
    for variable, value in (("MAX_RETRIES", "2"), ("TIMEOUT", "20")):
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{variable}", value)
    try:
        client, name, version = mlflow.MlflowClient(server, server), found["name"], found["version"]
        if found["alias"]:
            version = client.get_model_version_by_alias(name, found["alias"]).version
        elif version == "latest":
            version = max((int(one.version) for one in client.search_model_versions(f"name = '{name}'")), default=0)
        source = client.get_model_version_download_uri(name, str(version)) if version is not None else uri
        if source.startswith("models:/m-"):
            # By its place: MLflow would look the model up at the process's own tracking URI, which may be another.
            source = client.get_logged_model(source.removeprefix("models:/").partition("/")[0]).artifact_location
        # A model is one folder; of a run, which may hold thousands of pictures, only these files are read.
        for part in [f"{source}/{name}" for name in names] if source.startswith("runs:/") else [source]:
            mlflow.artifacts.download_artifacts(part, dst_path=str(folder), tracking_uri=server, registry_uri=server)
    except (mlflow.exceptions.MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        reason = missing_package(error) if isinstance(error, ImportError) else error
        raise BadCheckpointError(f"{uri} cannot be downloaded from MLflow at {server}: {reason}") from error
    missing = []
    for name in names:
        path = next(folder.rglob(name), None)
        if path is None:
            missing.append(name)
        else:
            path.rename(folder / name)
    if missing:
        raise BadCheckpointError(
            f"{uri} at {server} has no {' and no '.join(missing)}; expected a model or run that vsr-dist trained"
        )
    return {"tracking_uri": server}
