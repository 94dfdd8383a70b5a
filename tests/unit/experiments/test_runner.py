"""`experiments/runner.py`: what it measures, writes, skips and stops."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time

import pytest
from benchmark_modules import import_experiment

runner_module = import_experiment("runner")
Run, Runner, Stopped = runner_module.Run, runner_module.Runner, runner_module.Stopped


def experiment_in(tmp_path, **options):
    return runner_module.Experiment("small", tmp_path / "work", tmp_path / "results", **options)


@pytest.fixture
def fake_training(monkeypatch):
    """`vsr-dist train` as a short script: uses CPU time, writes three validations; a run named bad* fails."""
    script = """
import json, pathlib, sys, time
settings = dict(part.split("=", 1) for part in sys.argv[1:])
while time.process_time() < 0.2: pass
if settings["name"].startswith("bad"): sys.exit("no luck")
folder = pathlib.Path(settings["run_dir"])
folder.mkdir(parents=True)
lines = [{"step": step, "val/psnr_y": 20 + step / 3, "d/loss": 1.0} for step in (10, 20, 30)]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines) + '{"step": 4')
(folder / "summary.json").write_text("{}")
"""
    monkeypatch.setattr(
        runner_module, "train_command", lambda config, settings: [sys.executable, "-c", script, *settings]
    )


def test_a_finished_run_leaves_one_result_and_is_not_repeated(fake_training, tmp_path):
    here, runner = experiment_in(tmp_path), Runner()
    run = Run("arm-seed3", "configs/small.yaml", ("loss.tv=0",), seed=3, columns=("val/psnr_y", "val/absent"))
    assert runner_module.do_run(run, here, runner) > 0.15
    result = json.loads(here.result_path("arm-seed3").read_text())
    assert result["curve"] == {
        "every": 1,
        "columns": ["step", "val/psnr_y"],
        "rows": [[10, 23.333], [20, 26.667], [30, 30.0]],
    }
    assert result["steps"] == 30 and result["seed"] == 3 and 0.15 < result["cpu_s"] < 10
    assert "seed=3" in result["settings"] and "loss.tv=0" in result["settings"]
    assert "torch" in result["versions"] and result["machine"]["cores"] > 0 and len(result["commit"]) >= 7
    assert runner_module.do_run(run, here, runner) == 0.0


def test_one_failure_does_not_stop_the_others(fake_training, tmp_path, capsys):
    here = experiment_in(tmp_path, only="*-seed0")
    runs = [Run(f"{name}-seed{seed}", "c.yaml", seed=seed) for seed in (0, 1) for name in ("bad", "good")]
    failures = runner_module.do_runs(runs, here, Runner())
    assert failures == ["bad-seed0: no luck"]
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["good-seed0.json"]
    assert "1 of 2 runs are finished" in capsys.readouterr().out


def test_no_run_starts_after_the_limit(fake_training, tmp_path, capsys):
    runs = [Run(f"good-seed{seed}", "c.yaml", seed=seed) for seed in (0, 1)]
    here = experiment_in(tmp_path, limit_hours=0.1 / 3600)
    assert runner_module.do_runs(runs, here, Runner()) == []
    assert "not started or not finished: good-seed1" in capsys.readouterr().out
    # A later call goes on with what is missing.
    runner_module.do_runs(runs, dataclasses.replace(here, limit_hours=1.0), Runner())
    assert len(here.load(runs)) == 2


def test_a_run_that_has_enough_is_ended_and_counts_as_finished(monkeypatch, tmp_path):
    script = """
import json, pathlib, signal, sys, time
settings = dict(part.split("=", 1) for part in sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder = pathlib.Path(settings["run_dir"])
folder.mkdir(parents=True)
(folder / "metrics.jsonl").write_text(json.dumps({"step": 7, "val/psnr_y": 21.0}) + "\\n")
time.sleep(60)
"""
    monkeypatch.setattr(
        runner_module, "train_command", lambda config, settings: [sys.executable, "-c", script, *settings]
    )
    here = experiment_in(tmp_path)
    run = Run("arm", "c.yaml", stop_when=lambda rows, cpu_s: bool(rows) and rows[-1]["step"] >= 7 and cpu_s > 0)
    begin_s = time.monotonic()
    runner_module.do_run(run, here, Runner())
    assert time.monotonic() - begin_s < 30
    result = json.loads(here.result_path("arm").read_text())
    assert result["ended_early"] and result["steps"] == 7


def test_runs_with_a_point_in_their_names_keep_their_own_files(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "train_command", lambda config, settings: [sys.executable, "-c", "pass"])
    runner = Runner()
    for name in ("cure_0.03-seed1", "cure_0.3-seed1"):
        runner.train("c.yaml", (), tmp_path / name)
        assert runner.cpu_s(tmp_path / name) == float((tmp_path / f"{name}.cpu").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in ("cure_0.03-seed1", "cure_0.3-seed1") for kind in ("cpu", "log")
    }


def test_a_long_curve_is_thinned_and_says_so():
    rows = [{"step": step, "val/psnr_y": step / 7} for step in range(1, 1001)]
    curve = runner_module.curve_of(rows, ("val/psnr_y",))
    assert curve["every"] == 5 and len(curve["rows"]) == 200 and curve["rows"][-1] == [1000, 142.86]
    assert runner_module.curve_of([], ("val/psnr_y",)) == {"every": 1, "columns": ["step"], "rows": []}


def test_commands_are_measured_in_cpu_time_and_failures_show_the_log(tmp_path):
    runner = Runner()
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    begin_s = time.monotonic()
    spent = runner.run([sys.executable, "-c", busy], tmp_path / "log")
    assert 0.29 < spent < 0.3 + time.monotonic() - begin_s
    assert runner.cpu_s(tmp_path / "other") is None
    with pytest.raises(RuntimeError, match=r"status 3; the end of .*log2:\nno luck"):
        runner.run([sys.executable, "-c", "print('no luck'); raise SystemExit(3)"], tmp_path / "log2")


def test_stopping_ends_what_runs_and_starts_nothing(tmp_path):
    runner = Runner()
    threading.Timer(0.3, runner.stop).start()
    begin_s = time.monotonic()
    with pytest.raises(Stopped):
        runner.run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    assert time.monotonic() - begin_s < 10
    with pytest.raises(Stopped):
        runner.run([sys.executable, "-c", "pass"], tmp_path / "log")


def test_a_second_call_in_the_same_folder_is_refused(tmp_path):
    def inside(runner):
        with pytest.raises(runner_module.BadConfigError, match=r"in use by another second\.py"):
            runner_module.run_alone(tmp_path, "second.py", lambda _: None)

    assert runner_module.run_alone(tmp_path, "first.py", inside) == 0
