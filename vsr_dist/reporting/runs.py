"""What a report knows of a folder: a training run, finished or not, or an evaluation."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vsr_dist.config import Config, parse_config
from vsr_dist.core.config_io import effects, flatten, read_yaml
from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.run_dir import CONFIG_NAME, ENDED_NAME, SUMMARY_NAME, read_ended
from vsr_dist.training.samples import SAMPLES_NAME, Samples, read_samples
from vsr_dist.training.tracking import FOLDER_NAME, METRICS_NAME, Line, read_metrics

SCORES_NAME = "metrics.json"
Document = dict[str, Any]
# What an evaluation measures everything beside: the second where input and truth are of one size.
_BASELINES = ("bicubic", "identity")


@dataclass(frozen=True)
class TrainingRun:
    """A run directory.

    Attributes:
        folder: as it was given.
        label: the configured name, made unique among the runs of a report.
        config: the resolved configuration, flattened; `io` and `speed`: its keys that cannot change what is computed.
        lines: `metrics.jsonl`, oldest first.
        summary: `summary.json`, or None if the run has not finished.
        state: in words: `finished`, or how far it is from that.
        environment: `environment.json`, or empty.
        mlflow_run_id: of its tracked run, if there is one.
        samples: pictures of the last validation, if there are any.
        missing: what the folder lacks, in sentences without an end.
    """

    folder: Path
    label: str
    config: Document
    io: frozenset[str]
    lines: list[Line]
    summary: Document | None
    state: str
    environment: Document
    mlflow_run_id: str | None
    samples: Samples | None
    missing: tuple[str, ...]

    def last(self, prefix: str) -> tuple[int, dict[str, float]]:
        """Step and values of the newest line that holds a metric with this prefix; (0, nothing) if none does."""
        for line in reversed(self.lines):
            if any(name.startswith(prefix) for name in line):
                return int(line["step"]), {name: value for name, value in line.items() if name.startswith(prefix)}
        return 0, {}

    @property
    def steps_done(self) -> int:
        """The last step that `metrics.jsonl` tells of."""
        return int(self.lines[-1]["step"]) if self.lines else 0


@dataclass(frozen=True)
class Evaluation:
    """An output folder of `vsr-dist evaluate`. `scores`: `metrics.json`; `subject`: the column of the network."""

    folder: Path
    label: str
    scores: Document
    missing: tuple[str, ...]

    @property
    def subject(self) -> str:
        """The method that was evaluated: the baseline if there is no other."""
        return self._methods[-1]

    @property
    def baseline(self) -> str | None:
        """The method beside which it was measured, usually bicubic; None if there is none."""
        return self._methods[0] if self._methods[0] in _BASELINES else None

    @property
    def _methods(self) -> list[str]:
        return list(self.scores.get("methods") or self.table["overall"])

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Ends of the 95 % interval of the subject's `overall`, where the evaluation has one."""
        found = self.scores.get("intervals", {}).get(self.subject, {}).get(metric)
        return (float(found["low"]), float(found["high"])) if found else None

    @property
    def origin(self) -> Document:
        """Run, seed and steps of the evaluated generator; empty for a method that needs no training."""
        provenance: Document = self.scores.get("subject", {}).get("provenance", {})
        return provenance

    @property
    def table(self) -> dict[str, dict[str, dict[str, float]]]:
        """Scope (a video, or `overall`) -> method -> metric."""
        table: dict[str, dict[str, dict[str, float]]] = self.scores["table"]
        return table


@dataclass(frozen=True)
class Compared:
    """Everything that a report puts side by side, in the order given."""

    runs: tuple[TrainingRun, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def labels(self) -> list[str]:
        """Labels of all, runs first."""
        return [one.label for one in self.all]

    def run_of(self, evaluation: Evaluation) -> TrainingRun | None:
        """The run whose generator was evaluated, if it is among these and no other could be meant."""
        origin = evaluation.origin
        found = [r for r in self.runs if (r.config.get("name"), r.config.get("seed")) == _name_and_seed(origin)]
        return found[0] if len(found) == 1 else None

    @property
    def all(self) -> list[TrainingRun | Evaluation]:
        """All of them, runs first."""
        return [*self.runs, *self.evaluations]


def open_compared(folders: Sequence[Path]) -> Compared:
    """Read every folder; one that is given twice, or that holds neither a run nor an evaluation, is an error."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        real = folder.resolve()
        if real in seen:
            same = "" if folder == seen[real] else f", also as {seen[real]}"
            raise BadInputError(f"--runs names {folder} twice{same}; name each folder once")
        seen[real] = folder
    opened = [_open(folder) for folder in folders]
    runs = [one for one in opened if isinstance(one, TrainingRun)]
    evaluations = [one for one in opened if isinstance(one, Evaluation)]
    taken = [one.label for one in opened]
    return Compared(
        tuple(replace(run, label=_unique(run, taken)) for run in runs),
        tuple(replace(evaluation, label=_unique(evaluation, taken)) for evaluation in evaluations),
    )


def _name_and_seed(origin: Document) -> tuple[Any, Any]:
    return origin.get("run"), origin.get("seed")


def _unique(one: TrainingRun | Evaluation, taken: Sequence[str]) -> str:
    return one.label if taken.count(one.label) == 1 else f"{one.label} ({one.folder})"


def _open(folder: Path) -> TrainingRun | Evaluation:
    if (folder / CONFIG_NAME).is_file():
        return _open_run(folder)
    if (folder / SCORES_NAME).is_file():
        return _open_evaluation(folder)
    found = "is not a folder" if not folder.is_dir() else f"contains neither {CONFIG_NAME} nor {SCORES_NAME}"
    raise BadInputError(
        f"{folder} {found}; --runs takes run directories (vsr-dist train) and output folders of vsr-dist evaluate"
    )


def _open_run(folder: Path) -> TrainingRun:
    tree = read_yaml(folder / CONFIG_NAME)
    lines = read_metrics(folder / METRICS_NAME)
    summary, samples = _read_json(folder / SUMMARY_NAME), read_samples(folder)
    environment = _read_json(folder / "environment.json") or {}
    lacks = {
        f"{METRICS_NAME} has no line: the run has not logged anything": not lines,
        "no validation was logged": bool(lines) and not any(_is_validation(line) for line in lines),
        "no environment.json: command, machine and commit are not known": not environment,
        f"no pictures in {SAMPLES_NAME}/": samples is None,
    }
    state = _state(folder, summary)
    missing = [f"not finished: {state}"] if summary is None else []
    tracked = _read_json(folder / FOLDER_NAME / "state.json") or {}
    return TrainingRun(
        folder=folder,
        label=str(tree.get("name", folder.name)),
        config=flatten(tree),
        io=_io_keys(tree),
        lines=lines,
        summary=summary,
        state=state,
        environment=environment,
        mlflow_run_id=(summary or {}).get("mlflow_run_id") or tracked.get("run_id"),
        samples=samples,
        missing=(*missing, *(text for text, is_so in lacks.items() if is_so)),
    )


def _is_validation(line: Line) -> bool:
    return any(name.startswith("val/") for name in line)


def _state(folder: Path, summary: Document | None) -> str:
    if summary is not None:
        return str(summary.get("exit_reason", "finished"))
    ended = read_ended(folder)
    if ended is not None:
        error = f" ({ended['error']}: {ended.get('message', '')})" if "error" in ended else ""
        return f"{ended['exit_reason']}{error}"
    if _is_locked(folder / "run.lock"):
        return "still running"
    return f"killed, or running on another machine (neither {SUMMARY_NAME} nor {ENDED_NAME})"


def _is_locked(path: Path) -> bool:
    """True if a training on this machine holds the run directory."""
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _io_keys(tree: Document) -> frozenset[str]:
    """Keys that say where and how fast; a configuration of another version is taken to have none."""
    try:
        config: Config = parse_config(tree, CONFIG_NAME)
    except BadConfigError:
        return frozenset({"name", "run_dir"})
    return frozenset(key for key, effect in effects(config).items() if effect != "result")


def _open_evaluation(folder: Path) -> Evaluation:
    scores = _read_json(folder / SCORES_NAME)
    if scores is None or not isinstance(scores.get("table"), dict) or "overall" not in scores["table"]:
        raise BadInputError(
            f"{folder / SCORES_NAME} is not a result of vsr-dist evaluate (no overall table); evaluate again"
        )
    missing = () if (folder / "comparison.png").is_file() else ("no comparison.png",)
    return Evaluation(folder, folder.resolve().name, scores, missing)


def _read_json(path: Path) -> Document | None:
    """A JSON object, or None if there is no file; one that is damaged is an error."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"{path} cannot be read as JSON ({error}); write it again or remove this folder from --runs"
        ) from None
    if not isinstance(content, dict):
        raise BadInputError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content
