"""From the best trial of a study to a training configuration of its own."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from sweeps.report import rank
from sweeps.space import as_override, describe
from sweeps.storage import load_trials
from sweeps.study_config import StudyConfig
from vsr_dist.config import config_tree, dump_config, load_config, parse_config
from vsr_dist.core.errors import UserError

STUDY_TAGS = ("study", "trial")
_RESOLVED_NAME = "config.yaml"


def promote(config: StudyConfig, out: Path | None) -> tuple[FrozenTrial, Path]:
    """Write the best trial's configuration to `out` (by default `<study_dir>/best.yaml`); the trial and the path.

    It is the resolved configuration that the trial saved, so a base file that has changed since does not matter.
    Name and run directory become the study's, the tags that bind a run to the study go.
    """
    best = best_trial(config)
    resolved = config.trial_dir(best.number) / _RESOLVED_NAME
    if not resolved.is_file():
        raise UserError(
            f"the best trial is {best.number}, but {resolved} is gone; put the folder back or rerun the study"
        )
    name = f"{config.name}-best"
    overrides = [as_override("name", name), as_override("run_dir", f"runs/{name}")]
    tree = config_tree(load_config(resolved, overrides))
    tree["tracking"]["tags"] = {key: text for key, text in tree["tracking"]["tags"].items() if key not in STUDY_TAGS}
    path = out or config.directory / "best.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_header(config, best) + dump_config(parse_config(tree, str(resolved))), encoding="utf-8")
    return best, path


def best_trial(config: StudyConfig) -> FrozenTrial:
    """The trial with the best objective; UserError if no trial has a result."""
    trials = load_trials(config)
    ranked = rank(config, trials)
    if not ranked or ranked[0].state != TrialState.COMPLETE:
        raise UserError(f"no trial of study {config.name} has a result ({len(trials)} trials); run the study first")
    return ranked[0]


def _header(config: StudyConfig, best: FrozenTrial) -> str:
    lines = [
        f"# Best trial of study {config.name}: trial {best.number}, {config.objective.metric} {best.value:.4f} with "
        f"{describe(best.params)}.",
    ]
    if config.set:
        lines.append(f"# The study's own overrides are still in it: {', '.join(config.set)}.")
    return "".join(f"{line}\n" for line in lines)
