"""The report's words and tables, as blocks. Nothing in them depends on when or where they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from optuna.trial import FrozenTrial, TrialState

from sweeps.findings import Findings
from sweeps.importance import BEST_SHARE, METHODS, Importances
from sweeps.space import Categorical, Dimension, format_value, stored
from vsr_dist.core.report_blocks import Block, Heading, Items, Paragraph, Picture, Table

_NUM_BEST, _NUM_COLUMNS = 10, 4
_STATE_NAMES = {
    TrialState.COMPLETE: "with a result",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def labels_of(paths: Sequence[str]) -> dict[str, str]:
    """Configuration path -> its shortest end of two parts or more that no other path shares.

    `discriminator_optimizer.schedule.learning_rate` -> `schedule.learning_rate`; one part alone says too little.
    """
    labels = {}
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[first:]) for first in reversed(range(max(len(parts) - 1, 1)))]
        labels[path] = next(
            end for end in ends if all(other == path or not f".{other}".endswith(f".{end}") for other in paths)
        )
    return labels


def summary_blocks(findings: Findings) -> list[Block]:
    """Title, what was searched, and the answer."""
    config = findings.config
    counts = [f"{len(found)} {name}" for state, name in _STATE_NAMES.items() if (found := findings.in_state(state))]
    goals = [f"{objective.direction} `{objective.describe()}`" for objective in config.objectives]
    text = f"{len(findings.trials)} trials of `{config.base}`: {', '.join(counts)}. Objective: {'; '.join(goals)}."
    blocks: list[Block] = [Heading(f"Study {config.name}", 1), Paragraph(text), Paragraph(answer(findings))]
    if config.set:
        blocks.append(Paragraph(f"Every trial was trained with {', '.join(f'`{item}`' for item in config.set)}."))
    return blocks


def answer(findings: Findings) -> str:
    """Which trial is best, or why there is none, in one or two sentences."""
    best, complete = findings.best, findings.searched
    if not complete:
        return "No trial has a result yet."
    if best is None:
        missed = findings.most_failed()
        assert missed is not None  # without a missed constraint every result is feasible, but for its repeats
        return (
            f"**No trial is feasible.** Of {len(complete)} settings with a result, {missed[1]} miss the constraint "
            f"`{missed[0]}`, more than any other."
        )
    feasible = (
        f"{len(findings.feasible)} of {len(complete)} settings are feasible. " if findings.config.constraints else ""
    )
    if findings.config.is_multi_objective:
        front = ", ".join(str(trial.number) for trial in findings.front)
        return f"{feasible}On the Pareto front: trials {front}."
    repeats = findings.repeats(best)
    again = f"; repeated with fresh seeds: {repeats.describe()}" if repeats else ""
    return f"{feasible}Best: **trial {best.number}**, {findings.config.objective.title} {best.values[0]:.4f}{again}."


def best_blocks(findings: Findings) -> list[Block]:
    """The best trials and the given ones, with their values; then the constraints, one by one."""
    shown = shown_trials(findings)
    if not shown:
        return []
    config = findings.config
    header = ["trial", "role", *(objective.title for objective in config.objectives)]
    is_repeated = any(findings.repeats(trial) for trial in shown)
    header += ["fresh seeds, mean +/- s.d."] if is_repeated else []
    header += ["feasible"] if config.constraints else []
    rows = []
    for trial in shown:
        row = [str(trial.number), findings.role(trial), *(f"{value:.4f}" for value in trial.values)]
        if is_repeated:
            repeats = findings.repeats(trial)
            row.append(repeats.describe() if repeats else "")
        if config.constraints:
            row.append(_feasible_word(findings, trial))
        rows.append(tuple(row))
    table = Table(tuple(header), tuple(rows))
    order = "Feasible settings first; among them those that were repeated, by the mean of their fresh seeds."
    note = [Paragraph(order)] if is_repeated else []
    return [Heading("Best trials"), *note, table, *_constraint_blocks(findings)]


def shown_trials(findings: Findings) -> list[FrozenTrial]:
    """The best settings, best first, and those that the study's file gave, which are the comparison."""
    best = findings.ranked[:_NUM_BEST]
    numbers = {trial.number for trial in best}
    return best + [trial for trial in findings.starts if trial.values and trial.number not in numbers]


def space_blocks(findings: Findings) -> list[Block]:
    """What was varied, and what the best and the given settings have."""
    columns = compared_trials(findings)
    rows = [
        (
            f"`{path}`",
            describe_dimension(dimension),
            *(format_value(trial.params.get(path, "")) for trial in columns),
        )
        for path, dimension in findings.config.space.items()
    ]
    return [Heading("Settings"), Table(("parameter", "tried", *map(_column_head(findings), columns)), tuple(rows))]


def compared_trials(findings: Findings) -> list[FrozenTrial]:
    """Trials that tables have a column for: the given ones, then the best few."""
    shown = shown_trials(findings)
    starts = [trial for trial in shown if findings.role(trial) == "start"]
    return starts + [trial for trial in shown if trial not in starts][:_NUM_COLUMNS]


def describe_dimension(dimension: Dimension) -> str:
    """A dimension for people."""
    if isinstance(dimension, Categorical):
        return ", ".join(format_value(stored(choice)) for choice in dimension.choices)
    scale = " (logarithmic)" if dimension.log else ""
    return f"{format_value(dimension.low)} to {format_value(dimension.high)}{scale}"


def importance_blocks(
    found: Sequence[Importances], titles: Sequence[str], labels: Mapping[str, str], pictures: Sequence[str]
) -> list[Block]:
    """By objective, the shares by both methods with the number of trials, or why they are not given."""
    blocks: list[Block] = [Heading("Which parameters mattered")]
    for one, title in zip(found, titles, strict=True):
        if one.refusal is not None:
            blocks.append(Paragraph(f"`{title}`: {one.refusal}."))
            continue
        methods = list(one.shares)
        rows = sorted(labels, key=lambda path: -sum(shares.get(path, 0.0) for shares in one.shares.values()))
        cells = [(labels[path], *(f"{one.shares[m].get(path, 0.0):.2f}" for m in methods)) for path in rows]
        blocks.append(Table((f"{title} (n = {one.num_trials})", *methods), tuple(cells)))
    if any(one.shares for one in found):
        absent = (
            ""
            if all(len(one.shares) == len(METHODS) for one in found if one.shares)
            else (" fANOVA is left out: it needs the package scikit-learn.")
        )
        blocks.append(
            Paragraph(
                f"PED-ANOVA asks what the best {BEST_SHARE:.0%} of the trials have in common, fANOVA what explains the "
                "objective over all of them. Where they disagree, the trials are too few to tell; a small share does "
                f"not mean that a parameter may be dropped.{absent}"
            )
        )
    blocks += [Picture(name, "Importance of each parameter, by two methods") for name in pictures]
    return blocks


def ending_blocks(findings: Findings) -> list[Block]:
    """Trials without a result, with the reasons; then all trials."""
    blocks: list[Block] = []
    for state, title in ((TrialState.FAIL, "Failed trials"), (TrialState.PRUNED, "Pruned trials")):
        found = findings.in_state(state)
        if found:
            reasons = tuple(f"Trial {trial.number}: {' '.join(findings.why_not(trial).split())}" for trial in found)
            blocks += [Heading(title), Items(reasons)]
    return [*blocks, Heading("All trials"), _all_trials(findings), Paragraph("With every value: `report.csv`.")]


def _constraint_blocks(findings: Findings) -> list[Block]:
    """A row per constraint: how many settings keep it, and what the best and the given ones measured."""
    constraints = findings.config.constraints
    if not constraints:
        return []
    columns = compared_trials(findings)
    heads = map(_column_head(findings), columns)
    rows = []
    for constraint in constraints:
        excess = [findings.excess(trial).get(constraint.name) for trial in findings.searched]
        num_met = sum(value is not None and value <= 0 for value in excess)
        cells = []
        for trial in columns:
            value = findings.excess(trial).get(constraint.name)
            word = "met" if value is not None and value <= 0 else "missed"
            cells.append("not measured" if value is None else f"{constraint.measured(value):.4g} {word}")
        rows.append((constraint.name, f"`{constraint.describe()}`", f"{num_met} of {len(excess)}", *cells))
    return [Heading("Constraints"), Table(("constraint", "rule", "met by", *heads), tuple(rows))]


def _column_head(findings: Findings) -> Callable[[FrozenTrial], str]:
    return lambda trial: f"trial {trial.number}{' (given)' if findings.role(trial) == 'start' else ''}"


def _feasible_word(findings: Findings, trial: FrozenTrial) -> str:
    repeats = findings.repeats(trial)
    word = "yes" if findings.is_feasible(trial) else "no"
    return word if repeats is None else f"{word}; {repeats.num_feasible} of {len(repeats.values)} repeats"


def _all_trials(findings: Findings) -> Table:
    config = findings.config
    header = ("trial", "role", "state", *(objective.title for objective in config.objectives), "feasible", "seconds")
    rows = []
    for trial in findings.trials:
        values = [f"{value:.4f}" for value in trial.values] if trial.values else [""] * len(config.objectives)
        feasible = ("yes" if findings.is_feasible(trial) else "no") if trial.state == TrialState.COMPLETE else ""
        seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.0f}"
        role = findings.role(trial)
        of = trial.user_attrs.get("repeat_of")
        role = role if of is None else f"{role} of {of}"
        rows.append((str(trial.number), role, trial.state.name.lower(), *values, feasible, seconds))
    return Table(header, tuple(rows), folded=f"{len(rows)} trials")
