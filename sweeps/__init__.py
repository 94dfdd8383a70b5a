"""Studies: search loss weights and other settings with Optuna, one launched training run per trial.

The driver alone touches Optuna's storage. A trial is an ordinary `vsr_dist.train` run in a process group of its
own; what it found is read from the `summary.json` that every run leaves, so training knows nothing of studies.
"""
