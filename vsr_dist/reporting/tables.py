"""The report's words and tables. A column is a run; the same run has the same colour in tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vsr_dist.core.console import format_duration
from vsr_dist.core.report_blocks import Block, Heading, Items, Paragraph, Table
from vsr_dist.metrics.drift import VERDICTS
from vsr_dist.metrics.registry import best_places, find_metric
from vsr_dist.reporting.cells import ABSENT, marks_of, score_cell
from vsr_dist.reporting.runs import Compared, TrainingRun

_MAX_CELL_CHARS = 80
_OURS, _BICUBIC = "val/", "val_bicubic/"


def head_blocks(compared: Compared) -> list[Block]:
    """Title, what is compared, and everything that is missing."""
    counts = [
        f"{len(group)} {noun}{'s' if len(group) != 1 else ''}"
        for group, noun in ((compared.runs, "training run"), (compared.evaluations, "evaluation"))
        if group
    ]
    text = f"{' and '.join(counts)} side by side: {', '.join(f'`{label}`' for label in compared.labels)}."
    blocks: list[Block] = [Heading("Runs side by side", 1), Paragraph(text)]
    missing = [f"`{one.label}`: {fault}" for one in compared.all for fault in one.missing]
    if missing:
        blocks += [Heading("What is missing"), Items(tuple(missing))]
    return blocks


def validation_blocks(runs: Sequence[TrainingRun], colours: Mapping[str, str]) -> list[Block]:
    """The last validation of each run during training, with the distance from bicubic."""
    found = [run.last(_OURS) for run in runs]
    names = list(dict.fromkeys(name.removeprefix(_OURS) for _, values in found for name in values))
    if not names:
        return []
    bicubic = [run.last(_BICUBIC)[1] for run in runs]
    same = _same_windows(bicubic, names)
    rows = [("step", ABSENT, *(str(step) if values else ABSENT for step, values in found))]
    for name in names:
        metric = find_metric(name)
        values = [values.get(_OURS + name) for _, values in found]
        best = best_places(values, metric.direction if same else 0)
        cells = [
            score_cell(name, value, baseline.get(_BICUBIC + name), place in best)
            for place, (value, baseline) in enumerate(zip(values, bicubic, strict=True))
        ]
        rows.append((metric.heading, metric.better, *cells))
    text = (
        "On the fixed held-out windows of the training, by the averaged generator; in brackets the difference from "
        "bicubic on the same windows. Bold is the best value of a line."
    )
    blocks: list[Block] = [Heading("Last validation"), Paragraph(text + _one_seed(runs))]
    if len({step for step, values in found if values}) > 1:
        blocks.append(Paragraph("**The steps differ:** the values are after different amounts of training."))
    if not same:
        blocks.append(
            Paragraph(
                "**Not comparable:** bicubic scores differ, so the runs were validated on different windows. Nothing "
                "is marked; compare the differences from bicubic at most."
            )
        )
    header = ("metric", "better", *(run.label for run in runs))
    blocks.append(Table(header, tuple(rows), colours=marks_of(header, len(runs), colours)))
    return blocks


def settings_blocks(runs: Sequence[TrainingRun], colours: Mapping[str, str]) -> list[Block]:
    """Settings that are not the same in all runs: those that change what is computed, then the others, folded."""
    if len(runs) < 2:
        return []
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    io = frozenset().union(*(run.io for run in runs))
    different = [key for key in keys if len({_plain(run.config.get(key, ABSENT)) for run in runs}) > 1]
    blocks: list[Block] = [Heading("Settings that differ")]
    result = [key for key in different if key not in io]
    if result:
        blocks.append(_settings_table(runs, result, colours))
    else:
        blocks.append(Paragraph("No setting that changes what is computed differs."))
    if len(different) > len(result):
        others = [key for key in different if key in io]
        blocks.append(
            _settings_table(runs, others, colours, folded=f"Names, places, speed and reporting ({len(others)})")
        )
    return blocks


def facts_blocks(runs: Sequence[TrainingRun], colours: Mapping[str, str]) -> list[Block]:
    """How each run went, and where it comes from."""
    if not runs:
        return []
    rows = [(title, *(_short(read(run)) for run in runs)) for title, read in _FACTS.items()]
    rows += _version_rows(runs)
    header = ("fact", *(run.label for run in runs))
    commands = [f"`{run.label}`: `{run.environment['command']}`" for run in runs if "command" in run.environment]
    blocks: list[Block] = [
        Heading("The runs"),
        Table(header, tuple(rows), colours=marks_of(header, len(runs), colours)),
    ]
    return [*blocks, Items(tuple(commands), folded="Commands")] if commands else blocks


def verdict_words(run: TrainingRun) -> str:
    """The last verdict on the discriminator, in a word."""
    code = run.last("drift/verdict_code")[1].get("drift/verdict_code")
    return VERDICTS[int(code)] if code is not None else "not judged"


def _same_windows(bicubic: Sequence[dict[str, float]], names: Sequence[str]) -> bool:
    """True if bicubic scored the same in all runs that have a validation: the windows are the same then."""
    known = [scores for scores in bicubic if scores]
    keys = [_BICUBIC + name for name in names]
    return all(
        abs(scores[key] - known[0][key]) <= 1e-4 * max(abs(known[0][key]), 1e-6)
        for scores in known[1:]
        for key in keys
        if key in scores and key in known[0]
    )


def _one_seed(runs: Sequence[TrainingRun]) -> str:
    if len(runs) < 2:
        return ""
    return " A difference between two runs holds the chance of their seeds, too: repeat with other seeds to know it."


def _settings_table(
    runs: Sequence[TrainingRun], keys: Sequence[str], colours: Mapping[str, str], folded: str | None = None
) -> Table:
    rows = tuple((f"`{key}`", *(_short(_plain(run.config.get(key, ABSENT))) for run in runs)) for key in keys)
    header = ("setting", *(run.label for run in runs))
    return Table(header, rows, folded=folded, colours=marks_of(header, len(runs), colours))


def _plain(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CELL_CHARS else f"{text[: _MAX_CELL_CHARS - 3]}..."


def _steps(run: TrainingRun) -> str:
    return f"{run.steps_done:,} of {run.config.get('train.steps', 0):,}"


def _duration(run: TrainingRun) -> str:
    if run.summary is not None and "seconds" in run.summary:
        return format_duration(float(run.summary["seconds"]))
    if len(run.lines) < 2:
        return ABSENT
    return f"{format_duration(run.lines[-1]['time_s'] - run.lines[0]['time_s'])} between its first and last line"


def _speed(run: TrainingRun) -> str:
    if run.summary is not None and "clips_per_s" in run.summary:
        return f"{run.summary['clips_per_s']:.1f} clips/s"
    speed = run.last("perf/clips_per_s")[1].get("perf/clips_per_s")
    return ABSENT if speed is None else f"{speed:.1f} clips/s at the last line"


def _machine(run: TrainingRun) -> str:
    summary, machine = run.summary or {}, run.environment.get("machine", {})
    processes = summary.get("processes", run.environment.get("launch", {}).get("WORLD_SIZE"))
    gpus = sorted(set(machine.get("gpus", [])))
    device = ", ".join(gpus) if gpus and summary.get("device") != "cpu" else summary.get("device", ABSENT)
    return f"{processes or '?'} x {device}" if summary or processes else ABSENT


def _commit(run: TrainingRun) -> str:
    git = run.environment.get("git", {})
    if "commit" not in git:
        return "no checkout" if run.environment else ABSENT
    changed = {"true": ", files changed", "unknown": ", changes unknown"}.get(git.get("changed", ""), "")
    return f"{git['commit'][:12]}{changed}"


_FACTS: dict[str, Callable[[TrainingRun], str]] = {
    "state": lambda run: run.state,
    "discriminator": verdict_words,
    "steps": _steps,
    "duration": _duration,
    "speed": _speed,
    "processes x device": _machine,
    "seed": lambda run: str(run.config.get("seed", ABSENT)),
    "data digest": lambda run: str((run.summary or {}).get("data_digest", ABSENT))[:12],
    "commit": _commit,
    "MLflow run": lambda run: run.mlflow_run_id or ABSENT,
    "folder": lambda run: str(run.folder),
}


def _version_rows(runs: Sequence[TrainingRun]) -> list[tuple[str, ...]]:
    """Versions: torch in any case, others where they differ."""
    versions = [(run.summary or run.environment).get("versions", {}) for run in runs]
    names = list(dict.fromkeys(name for found in versions for name in found))
    shown = [n for n in names if n == "torch" or len({found[n] for found in versions if n in found}) > 1]
    return [(f"version of {name}", *(str(found.get(name, ABSENT)) for found in versions)) for name in shown]
