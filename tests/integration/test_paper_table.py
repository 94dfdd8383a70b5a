"""`make paper-table` on a tiny set: two models for a second of CPU time each, then again with nothing left to do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from forked import run_forked

ROOT = Path(__file__).parents[2]
SMALL = {
    "data.crop_px": 16,
    "data.val_crop_px": 16,
    "data.batch_clips": 2,
    "data.clip_frames": 4,
    "data.val_clips": 1,
    "loss.perceptual": 0,
    "loss.tv": 0,
    "generator.channels": 8,
}


@pytest.mark.slow
def test_two_models_are_trained_measured_and_compared(pack_films, tmp_path):
    command = ["--work", str(tmp_path / "work")]
    command += ["--data", str(pack_films("npy")), "--models", "espcn", "recurrent", "--seeds", "0", "--jobs", "2"]
    command += [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    targets = {name: tmp_path / "out" / name for name in ("table.md", "picture.png", "result.json")}
    command += [part for path in targets.values() for part in (f"--{path.stem}", str(path))]

    def run(*options: str) -> subprocess.CompletedProcess:
        full = [*command, "--calibration-s", "0.2", *options]
        return run_forked(ROOT / "tests/helpers/paper_table_forking.py", full, tmp_path)

    first = run("--minutes", "0.01")
    assert first.returncode == 0, first.stdout + first.stderr
    result = json.loads(targets["result.json"].read_text())
    planned = json.loads((tmp_path / "work/plan.json").read_text())["models"]
    for title, name in (("ESPCN", "espcn"), ("recurrent (ours)", "recurrent")):
        entry = result["models"][title]
        assert entry["steps"] == planned[name]["steps"] == max(2, round(0.6 / planned[name]["step_cpu_s"]))
        assert entry["cpu_s"]["0"] > 0.5 and entry["frame_ms"] > 0
        summary = json.loads((tmp_path / f"work/runs/{name}-seed0/summary.json").read_text())
        assert summary["steps"] == entry["steps"] and summary["exit_reason"] == "finished"
        assert set(result["videos"][name]["0"]) == {"walk", "steps", "overall"}
    assert first.stdout.count("CPU-minutes") == 2
    text = targets["table.md"].read_text()
    assert "| ESPCN |" in text and "**recurrent (ours)** against bicubic, 1 seed" in text
    assert targets["picture.png"].stat().st_size > 5000

    targets["table.md"].unlink()
    again = run("--minutes", "0.01")
    assert again.returncode == 0 and "CPU-minutes" not in again.stdout, again.stdout + again.stderr
    assert "| ESPCN |" in targets["table.md"].read_text()
    other = run("--minutes", "5")
    assert other.returncode == 2 and "use --work" in other.stderr and other.stderr.count("\n") == 1
