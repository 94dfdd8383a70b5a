"""An MLflow run that holds documents and no training: files and tags of something that several runs belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from vsr_dist.core.console import say
from vsr_dist.core.locks import exclusive
from vsr_dist.training.metrics_file import METRICS_NAME, MetricsFile
from vsr_dist.training.outbox import FOLDER_NAME, Outbox, Target, now_ms
from vsr_dist.training.shipping import Delivery, Rejected, Unavailable, legal_name
from vsr_dist.training.tracking import MlflowDestination, make_target
from vsr_dist.training.tracking_config import TrackingConfig

_LOCK_NAME = "report.lock"


def publish_files(
    config: TrackingConfig,
    folder: Path,
    files: Sequence[Path],
    *,
    name: str,
    token: str,
    tags: Mapping[str, str],
    source: str,
) -> str | None:
    """Bring files in `folder` to the run `name`, which is made at the first call; its id, or None with a warning.

    The run is found by `token`, from any machine, so later calls replace its files and tags. `source` is the command
    that MLflow shows as the run's. A server that is away is no error: what it did not take lies in `FOLDER/outbox`,
    and goes with the next call or with `track replay`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / _LOCK_NAME):  # Several drivers may end at the same time.
        outbox = Outbox(folder)
        made = make_target(config, name, tags)
        # A run's own source, and not that of the trainings.
        made_tags = {**made.tags, "mlflow.source.name": source}
        outbox.aim(Target(made.uri, made.experiment, made.name, made_tags, token))
        for job in outbox.jobs():
            job.path.unlink(missing_ok=True)  # An older state of the same things.
        outbox.put("tags", values={legal_name(key): value for key, value in tags.items()})
        for path in files:
            outbox.put("file", path=str(path.resolve().relative_to(folder.resolve())), folder=None)
        outbox.put("status", status="FINISHED", time_ms=now_ms())
        destination = MlflowDestination(config.uri, _no_generator)
        try:
            Delivery(MetricsFile(folder / METRICS_NAME, None), outbox, destination).run()
        except (Unavailable, Rejected) as error:
            say(
                f"warning: MLflow at tracking.uri={config.uri} did not take the report: {error}; it is kept in "
                f"{folder / FOLDER_NAME}: vsr-dist track replay {folder}"
            )
            return None
        return outbox.state.run_id


def _no_generator(run_dir: Path) -> NoReturn:
    raise NotImplementedError(f"{run_dir} is of a report, which has no generator")
