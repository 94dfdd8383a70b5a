"""Reading what a training run left."""

from __future__ import annotations

import json

import pytest

from sweeps.launch import Ending
from sweeps.verdict import judge, last_error

TORCHRUN_LOG = """\
Traceback (most recent call last):
  File "train.py", line 3, in <module>
[rank1]: Traceback (most recent call last):
[rank1]: vsr_dist.core.errors.NonFiniteError: loss_g/adversarial is nan at step 12
W1124 torch/distributed/elastic: Sending process 12 closing signal SIGTERM
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 1.
============================================================
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TORCHRUN_LOG, "vsr_dist.core.errors.NonFiniteError: loss_g/adversarial is nan at step 12"),
        (TORCHRUN_LOG + "error: data has no index\nmore\n", "error: data has no index"),
        ("step 1\nstep 2\n\n", "step 2"),
        ("torch.OutOfMemoryError: CUDA out of memory\nbye\n", "torch.OutOfMemoryError: CUDA out of memory"),
        ("KeyboardInterrupt\nbye", "KeyboardInterrupt"),
        ("", ""),
        ("x" * 200_000 + "\nValueError: late\n", "ValueError: late"),
        ("ErrorRate: 3\nlast", "last"),
    ],
)
def test_the_line_that_says_why(tmp_path, text, expected):
    (tmp_path / "output.log").write_text(text)
    assert last_error(tmp_path / "output.log") == expected


def verdict(folder, summary, ending):
    (folder / "output.log").write_text("RuntimeError: late\n")
    if summary is not None:
        (folder / "summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
    return judge(folder, "val/psnr_y", ending, folder / "output.log")


def finished(**metrics):
    return {"exit_reason": "finished", "metrics": {"val/psnr_y": 30.5, **metrics}}


def test_a_finite_objective_is_the_result_whatever_the_exit_status(tmp_path):
    for ending in (Ending(0, 5.0), Ending(1, 5.0), Ending(None, 5.0)):
        found = verdict(tmp_path, finished(**{"drift/auc": 0.6, "val/tof": 1.0}), ending)
        assert (found.value, found.reason, found.facts) == (30.5, "", {"drift/auc": 0.6})


@pytest.mark.parametrize(
    ("summary", "ending", "expected"),
    [
        (None, Ending(-9, 5.0), "RuntimeError: late (exit status -9)"),
        (None, Ending(0, 5.0), "RuntimeError: late (exit status 0)"),
        (None, Ending(None, 61.0), "stopped after 61 s, the study's trial_timeout_s"),
        ("{", Ending(0, 5.0), "summary.json is not what a training run writes"),
        ({"exit_reason": "finished"}, Ending(0, 5.0), "summary.json is not what a training run writes"),
        ([], Ending(0, 5.0), "summary.json is not what a training run writes"),
        ({"exit_reason": "stopped", "metrics": {}}, Ending(0, 5.0), "the run ended early: stopped"),
        ({"exit_reason": "finished", "metrics": {"val/psnr": 3.0}}, Ending(0, 5.0), "did you mean 'val/psnr'?"),
        (finished(**{"val/psnr_y": float("inf")}), Ending(0, 5.0), "val/psnr_y is inf; expected a finite number"),
        (finished(**{"val/psnr_y": None}), Ending(0, 5.0), "val/psnr_y is None; expected a finite number"),
    ],
)
def test_anything_else_is_a_failure_with_a_reason(tmp_path, summary, ending, expected):
    found = verdict(tmp_path, summary, ending)
    assert found.value is None
    assert expected in found.reason
