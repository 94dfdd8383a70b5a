"""From the best feasible trial of a study, or one picked by hand, to a training configuration of its own."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from sweeps.findings import Findings
from sweeps.report_text import answer
from sweeps.space import as_override, describe
from sweeps.storage import load_trials
from sweeps.study_config import StudyConfig
from sweeps.tracking_overrides import TRIAL_TAGS
from vsr_dist.config import config_tree, dump_config, load_config, parse_config
from vsr_dist.core.errors import UserError
from vsr_dist.run_dir import CONFIG_NAME


def promote(config: StudyConfig, out: Path | None, number: int | None = None) -> tuple[FrozenTrial, Path]:
    """Write a trial's configuration to `out` (by default `<study_dir>/best.yaml`); the trial and the path.

    Without `number` it is the best feasible one, by the mean of its repeats if it was repeated; UserError, with the
    constraint that most trials miss, if none is feasible. It is the resolved configuration that the trial saved, so a
    base file that has changed since does not matter. Name and run directory become the
    study's, the tags and parameters that bind a run to the study go.
    """
    findings = Findings(config, load_trials(config))
    chosen = best_trial(findings) if number is None else picked_trial(findings, number)
    resolved = findings.run_dirs(chosen)[0] / CONFIG_NAME
    if not resolved.is_file():
        raise UserError(
            f"trial {chosen.number} is to be promoted, but {resolved} is gone; put the folder back, or run this where "
            "the trial ran"
        )
    name = f"{config.name}-best"
    overrides = [as_override("name", name), as_override("run_dir", f"runs/{name}")]
    tree = config_tree(load_config(resolved, overrides))
    tracking = tree["tracking"]
    tracking["tags"] = {key: text for key, text in tracking["tags"].items() if key not in TRIAL_TAGS}
    logarithms = {f"log10.{path}" for path in config.space}
    tracking["extra_params"] = {key: text for key, text in tracking["extra_params"].items() if key not in logarithms}
    path = out or config.directory / "best.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_header(findings, chosen) + dump_config(parse_config(tree, str(resolved))), encoding="utf-8")
    return chosen, path


def best_trial(findings: Findings) -> FrozenTrial:
    """The best feasible trial; UserError if there is none."""
    best = findings.best
    if best is not None:
        return best
    name = findings.config.name
    if not findings.searched:
        raise UserError(f"no trial of study {name} has a result ({len(findings.trials)} trials); run the study first")
    raise UserError(
        f"study {name}: {answer(findings).replace('**', '').replace('`', '')} Loosen it, run more trials, or pick one "
        "by hand with --number"
    )


def picked_trial(findings: Findings, number: int) -> FrozenTrial:
    """The trial with this number; UserError if there is none or it has no result."""
    found = next((trial for trial in findings.trials if trial.number == number), None)
    if found is None:
        raise UserError(
            f"study {findings.config.name} has no trial {number}; its numbers are 0 to {len(findings.trials) - 1}"
        )
    if found.state != TrialState.COMPLETE:
        raise UserError(f"trial {number} has no result ({found.state.name.lower()}); pick one that has")
    return found


def outcome(findings: Findings, trial: FrozenTrial) -> str:
    """A trial's objectives, and what its repeats gave, on one line."""
    objectives = findings.config.objectives
    values = ", ".join(f"{one.title} {value:.4f}" for one, value in zip(objectives, trial.values, strict=True))
    repeats = findings.repeats(trial)
    return values if repeats is None else f"{values}, with fresh seeds {repeats.describe()}"


def _header(findings: Findings, trial: FrozenTrial) -> str:
    config = findings.config
    kind = "Best" if findings.best is not None and findings.best.number == trial.number else "Picked"
    lines = [f"# {kind} trial of study {config.name}: trial {trial.number}, {outcome(findings, trial)}."]
    lines += [f"# With {describe(trial.params)}."]
    missed = [
        f"{constraint.name} ({constraint.describe()}) is {constraint.measured(excess):.4g}"
        for constraint in config.constraints
        if (excess := findings.excess(trial).get(constraint.name, 0.0)) > 0
    ]
    if missed:
        lines.append(f"# It misses constraints: {'; '.join(missed)}.")
    if config.set:
        lines.append(f"# The study's own overrides are still in it: {', '.join(config.set)}.")
    return "".join(f"{line}\n" for line in lines)
