"""From the best feasible trial of a study, or one chosen by number, to a training configuration of its own."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from sweeps.config import StudyConfig
from sweeps.findings import Findings, load_findings
from sweeps.space import as_override, describe
from sweeps.trial import TRIAL_TAGS
from vsr_dist.config import config_tree, dump_config, load_config, parse_config
from vsr_dist.core.errors import UserError
from vsr_dist.run_dir import CONFIG_NAME


def promote(config: StudyConfig, out: Path | None, number: int | None = None) -> tuple[FrozenTrial, Path]:
    """Write a trial's configuration to `out` (by default `<study_dir>/best.yaml`); the trial and the path.

    Without `number` it is the best feasible one, by the mean of its repeats if it was repeated; UserError, with the
    constraint that most trials violate, if none is feasible. It is the resolved configuration that the trial saved, so
    later changes of the base file do not matter. Name and run directory become the study's; tags and parameters that
    link a run to the study are removed.
    """
    findings = load_findings(config)
    chosen = best_trial(findings) if number is None else picked_trial(findings, number)
    resolved = findings.run_dirs(chosen)[0] / CONFIG_NAME
    if not resolved.is_file():
        raise UserError(
            f"trial {chosen.number} cannot be promoted: {resolved} is missing; restore the folder, or run this on the "
            "machine that ran the trial"
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
        raise UserError(f"study {name} has no complete trial ({len(findings.trials)} trials); run the study first")
    raise UserError(
        f"study {name}: {findings.answer.replace('**', '').replace('`', '')} Relax it, run more trials, or choose one "
        "with --number"
    )


def picked_trial(findings: Findings, number: int) -> FrozenTrial:
    """The trial with this number; UserError if there is none or it is not complete."""
    found = next((trial for trial in findings.trials if trial.number == number), None)
    if found is None:
        last = max((trial.number for trial in findings.trials), default=-1)
        raise UserError(
            f"study {findings.config.name} has no trial {number}, or it was retried under another number; the last "
            f"number is {last}, see vsr-dist study report"
        )
    if found.state != TrialState.COMPLETE:
        raise UserError(f"trial {number} is not complete ({found.state.name.lower()}); choose one that is")
    return found


def outcome(findings: Findings, trial: FrozenTrial) -> str:
    """A trial's objectives, and the results of its repeats, on one line."""
    objectives = findings.config.objectives
    values = ", ".join(f"{one.title} {value:.4f}" for one, value in zip(objectives, trial.values, strict=True))
    repeats = findings.repeats(trial)
    return values if repeats is None else f"{values}, with new seeds {repeats.describe()}"


def _header(findings: Findings, trial: FrozenTrial) -> str:
    config = findings.config
    kind = "Best" if findings.best is not None and findings.best.number == trial.number else "Chosen"
    lines = [f"# {kind} trial of study {config.name}: trial {trial.number}, {outcome(findings, trial)}."]
    lines += [f"# With {describe(trial.params)}."]
    missed = [
        f"{constraint.name} ({constraint.describe()}) is {constraint.measured(excess):.4g}"
        for constraint in config.constraints
        if (excess := findings.excess(trial).get(constraint.name, 0.0)) > 0
    ]
    if missed:
        lines.append(f"# It violates constraints: {'; '.join(missed)}.")
    if config.set:
        lines.append(f"# The study's `set` is still in it: {', '.join(config.set)}.")
    return "".join(f"{line}\n" for line in lines)
