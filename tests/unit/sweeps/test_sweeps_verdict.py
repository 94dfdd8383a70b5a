"""Reading what a training run left."""

from __future__ import annotations

import json

import pytest
from sweeps_stub import make_study

from sweeps.verdict import Ending, Verdict, combine, judge, last_error, why_no_summary

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


def verdict(folder, summary, ending, rows=None, **changes):
    (folder / "output.log").write_text("RuntimeError: late\n")
    if summary is not None:
        (folder / "summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
    rows = [(10, {"val/psnr_y": 30.5})] if rows is None else rows
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "time_s": 0, **r}) + "\n" for s, r in rows))
    return judge(make_study(folder, **changes), folder, ending, folder / "output.log")


def finished(**metrics):
    return {"exit_reason": "finished", "metrics": {"val/psnr_y": 30.5, **metrics}}


def test_a_finite_objective_is_the_result_whatever_the_exit_status(tmp_path):
    for ending in (Ending(0, 5.0), Ending(1, 5.0), Ending(None, 5.0, "time_limit")):
        found = verdict(tmp_path, finished(**{"drift/auc": 0.6, "val/tof": float("nan"), "perf/step_ms": 3.0}), ending)
        assert (found.outcome, found.values, found.reason) == ("complete", (30.5,), "")
        assert found.facts == {"val/psnr_y": 30.5, "drift/auc": 0.6}


@pytest.mark.parametrize(
    ("summary", "ending", "expected"),
    [
        (None, Ending(-9, 5.0), "the training was killed (exit status -9)"),
        (None, Ending(-6, 5.0), "the training was ended by SIGABRT (exit status -6)"),
        (None, Ending(0, 5.0), "RuntimeError: late (exit status 0)"),
        (None, Ending(None, 5.0), "RuntimeError: late (exit status unknown)"),
        (None, Ending(None, 61.0, "time_limit"), "stopped after 61 s by the study's trial_timeout_s"),
        (None, Ending(-15, 61.0, "stall"), "no new metrics or output for stall_timeout_s"),
        ("{", Ending(0, 5.0), "summary.json is not what a training run writes"),
        ({"exit_reason": "finished"}, Ending(0, 5.0), "summary.json is not what a training run writes"),
        ([], Ending(0, 5.0), "summary.json is not what a training run writes"),
        ({"exit_reason": "stopped", "metrics": {}}, Ending(0, 5.0), "the run ended early: stopped"),
    ],
)
def test_anything_else_is_a_failure_with_a_reason(tmp_path, summary, ending, expected):
    found = verdict(tmp_path, summary, ending)
    assert (found.outcome, found.values) == ("failed", ())
    assert expected in found.reason


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"val/psnr": 3.0}, "did you mean 'val/psnr'?"),
        ({"val/psnr_y": float("inf")}, "inf; expected a finite number"),
    ],
)
def test_an_objective_that_is_missing_or_not_finite_is_a_failure(tmp_path, row, expected):
    found = verdict(tmp_path, finished(), Ending(0, 5.0), [(10, row)])
    assert found.outcome == "failed"
    assert expected in found.reason


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            "out of memory: torch.OutOfMemoryError",
        ),
        (
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes",
            "out of memory: ",
        ),
        ("MemoryError", "out of memory: MemoryError"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 1. GiB for an array", "out of memory: numpy"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "out of memory: terminate"),
    ],
)
def test_running_out_of_memory_is_recognised(tmp_path, line, expected):
    (tmp_path / "output.log").write_text(f"step 3\n[rank1]: {line}\nChildFailedError\n")
    assert why_no_summary(tmp_path, Ending(1, 2.0), tmp_path / "output.log").startswith(expected)


def test_torchruns_report_tells_which_rank_died_first(tmp_path):
    report = (
        "Root Cause (first observed failure):\n[0]:\n  time      : now\n  rank      : 1 (local_rank: 1)\n"
        "  exitcode  : -9 (pid: 77)\n  traceback : Signal 9 (SIGKILL) received by PID 77\n"
    )
    (tmp_path / "output.log").write_text("error: rank 0: another process is gone\n" + report)
    (tmp_path / "ended.json").write_text(json.dumps({"exit_reason": "lost_rank", "message": "gone"}))
    assert why_no_summary(tmp_path, Ending(1, 2.0), tmp_path / "output.log").startswith("rank 1 was killed")


def test_seeds_are_combined_to_mean_values_and_worst_constraints():
    first = Verdict("complete", (1.0, 4.0), {"a": -1.0, "b": 0.5}, facts={"val/x": 1.0, "mlflow_run_id": "p"})
    second = Verdict("complete", (2.0, 8.0), {"a": 0.25, "b": 0.0}, facts={"val/x": 2.0, "mlflow_run_id": "q"})
    both = combine([first, second])
    assert (both.outcome, both.values, both.constraints) == ("complete", (1.5, 6.0), {"a": 0.25, "b": 0.5})
    assert both.facts == {"val/x": 1.5, "mlflow_run_ids": ["p", "q"]}
    broken = combine([first, Verdict("failed", reason="no")])
    assert (broken.outcome, broken.values, broken.reason) == ("failed", (), "training 2: no")
