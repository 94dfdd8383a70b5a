"""Where a run may start: what lies in its directory decides; and what it does about the other processes at its end."""

from __future__ import annotations

import errno
import fcntl
from dataclasses import replace
from pathlib import Path

import pytest

from vsr_dist import train
from vsr_dist.config import parse_config
from vsr_dist.core.errors import BadCheckpointError, BadConfigError, LostRankError
from vsr_dist.run_dir import lock_run_dir, prepare_run_dir
from vsr_dist.training.tracking import METRICS_NAME


@pytest.fixture
def begun(tmp_path):
    """The configuration of a run that died before its first checkpoint."""
    config = parse_config({"run_dir": str(tmp_path / "run")}, "test")
    lock_run_dir(config).close()
    prepare_run_dir(config, None)
    (tmp_path / "run" / METRICS_NAME).touch()
    return config


def test_a_run_without_a_checkpoint_starts_again_with_the_same_settings_only(begun):
    start = prepare_run_dir(replace(begun, train=replace(begun.train, log_every=7)), "auto")
    assert start.checkpoint is None and not start.finished
    with pytest.raises(
        BadCheckpointError, match=r"config\.yaml was saved by a run with other settings \(seed 0 -> 1\)"
    ):
        prepare_run_dir(replace(begun, seed=1), "auto")
    with pytest.raises(BadConfigError, match="already contains a run"):
        prepare_run_dir(begun, None)


def test_a_file_system_without_locks_is_not_taken_for_another_training(begun, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(BadConfigError, match="file system without locks"):
        lock_run_dir(begun)


@pytest.mark.parametrize("error", [None, RuntimeError("CUDA out of memory"), LostRankError("gone")])
@pytest.mark.usefixtures("fresh_accelerate_state")
def test_the_process_group_is_left_only_where_all_ranks_leave_it(tmp_path, monkeypatch, error):
    """NCCL waits in destroy_process_group for ranks that have met no error (pytorch/torchtitan#1342)."""
    left = []

    def end(*arguments):
        if error is not None:
            raise error
        return 0

    monkeypatch.setattr(train, "_run_in", end)
    monkeypatch.setattr(train, "shutdown", lambda: left.append(True))
    file = Path(tmp_path / "config.yaml")
    file.write_text(f"run_dir: {tmp_path}/run\n")
    arguments = ["--config", str(file)]
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError):
            train.main(arguments)
    else:
        assert train.main(arguments) == (0 if error is None else 75)
    assert len(left) == (error is None)
