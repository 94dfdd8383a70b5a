"""Studies: search loss weights and other settings with Optuna, one launched training run per trial.

Only the driver uses Optuna's storage. A trial is an ordinary `vsr_dist.train` run; its metrics and its result are read
from the `metrics.jsonl` and `summary.json` that every run writes, so training does not depend on studies.
"""
