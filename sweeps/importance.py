"""Which parameters the objective depended on, by two methods that need not agree."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass

import optuna
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

from sweeps.findings import Findings

METHODS = ("PED-ANOVA", "fANOVA")
# PED-ANOVA: what the best quarter has in common. Its own default of a tenth is a trial or two in a small study.
BEST_SHARE = 0.25
# Below this, the two methods contradict each other at random.
_LEAST_TRIALS = 10
_LEAST_PER_PARAMETER = 2
_SEED = 0


@dataclass(frozen=True)
class Importances:
    """Method -> parameter -> share of the importance (0 to 1), over `num_trials`; or the reason why there is none.

    fANOVA is absent where scikit-learn is not installed.
    """

    shares: dict[str, dict[str, float]]
    num_trials: int
    refusal: str | None = None


def importances(findings: Findings, place: int = 0) -> Importances:
    """Importances for the objective at `place`. Deterministic. Repeats are left out: they are no new settings."""
    trials = [trial for trial in findings.searched if set(trial.params) >= set(findings.config.space)]
    least = max(_LEAST_TRIALS, _LEAST_PER_PARAMETER * len(findings.config.space))
    if len(trials) < least:
        refusal = (
            f"{len(trials)} trials with a result are too few to say which of {len(findings.config.space)} parameters "
            f"matter; from {least} on they are compared"
        )
        return Importances({}, len(trials), refusal)
    # PED-ANOVA looks at the lowest values.
    sign = -1.0 if findings.config.objectives[place].direction == "maximize" else 1.0
    values = [sign * trial.values[place] for trial in trials]
    if min(values) == max(values) or not all(map(math.isfinite, values)):
        return Importances({}, len(trials), "the objective is the same in all trials, so no parameter mattered")
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    for trial, value in zip(trials, values, strict=True):
        copied = optuna.trial.create_trial(value=value, params=trial.params, distributions=trial.distributions)
        study.add_trial(copied)
    evaluators: dict[str, BaseImportanceEvaluator] = {
        METHODS[0]: PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    }
    if importlib.util.find_spec("sklearn") is not None:
        evaluators[METHODS[1]] = FanovaImportanceEvaluator(seed=_SEED)
    shares = {
        name: optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=True)
        for name, evaluator in evaluators.items()
    }
    return Importances(shares, len(trials))
