"""Optuna's samplers and pruners, as a study's configuration names them."""

from __future__ import annotations

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, PatientPruner
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler

from sweeps.study_config import StudyConfig
from sweeps.study_sections import PrunerConfig
from vsr_dist.core.rng import mix, purpose

_MAX_NUMPY_SEED = 2**32


def make_sampler(config: StudyConfig, number: int) -> BaseSampler:
    """The sampler of one trial. It depends on the study's seed and the trial's number, and on the trials before it."""
    seed = mix(purpose("study"), config.seed, number) % _MAX_NUMPY_SEED
    kind, startup = config.sampler.kind, config.sampler.startup_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if kind == "tpe":
            # Running trials count as bad ones, so that several workers do not try the same.
            return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
        if kind == "gp":
            return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if kind == "qmc":
            # One sequence for the whole study: its place in it is kept in the storage, its scrambling must not change.
            study_seed = mix(purpose("study"), config.seed) % _MAX_NUMPY_SEED
            return QMCSampler(seed=study_seed, scramble=True, warn_independent_sampling=False)
        return RandomSampler(seed=seed)


def make_pruner(config: PrunerConfig, *, train_steps: int, warmup_steps: int) -> BasePruner:
    """The pruner of a study. Its steps are training steps; both numbers are those of the base configuration."""
    warmup = config.warmup_steps if config.warmup_steps is not None else warmup_steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if config.kind == "none":
            return NopPruner()
        if config.kind == "hyperband":
            return HyperbandPruner(max(warmup, 1), train_steps, config.reduction_factor)
        # A trial is compared at its own validations, so every one of them is looked at (interval 1).
        median = MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=warmup)
        return median if config.kind == "median" else PatientPruner(median, config.patience)
