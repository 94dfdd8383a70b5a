"""`experiments/drift.py` from packing to the page: two arms, four steps each, then again with nothing left to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILM = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
# ST-LPIPS of whole frames takes most of the time: 2 of each sequence are enough here.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import drift, runner
drift.EVALUATION = (*drift.EVALUATION[:-1], "6")
options = {"prepare": drift.prepare, "report": drift.report, "extra_options": drift.add_options}
sys.exit(runner.main("drift", drift.__doc__, drift.all_runs(), **options))
"""
SMALL = ("train.steps=4", "train.validate_every=1", "train.log_every=1", "data.val_clips=4", "data.crop_px=8")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not FILM.exists(), reason="needs Debian's opencv-doc")
def test_two_arms_are_trained_measured_and_shown(tmp_path):
    options = ["--work", "work", "--results", "results", "--page", "drift.md", "--pictures", "images"]
    command = [sys.executable, "-c", SCRIPT, str(ROOT / "experiments"), *options, "--only", "[nc]*e-seed100"]
    command += [part for setting in SMALL for part in ("--set", setting)]

    def run(*more: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    first = run()
    assert first.returncode == 0, first.stdout + first.stderr
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert set(results) == {"none-seed100", "cure-seed100"}
    for name, result in results.items():
        assert result["steps"] == 4 and result["cpu_s"] > 1 and result["seed"] == 100
        table = result["evaluations"]["unseen"]["table"]
        assert set(table) > {"carphone_unseen", "vtest_unseen", "overall"}
        assert set(table["overall"]["ours"]) == {"psnr_y", "ssim_y", "tof", "stlpips"}
        assert ("drift/paper_loss" in result["curve"]["columns"]) == (name == "cure-seed100")
        assert "val/high_frequency_gap" in result["curve"]["columns"]
        assert (tmp_path / f"results/{name}.json").stat().st_size < 20_000
    assert len({result["init_generator_sha256"] for result in results.values()}) == 1
    text = (tmp_path / "drift.md").read_text()
    assert "So far: 2 of" in text and "| cure, ratio 0.1 | 1 |" in text
    assert (tmp_path / "images/drift_curves.png").exists()

    again = run()
    assert again.returncode == 0 and "trained" not in again.stdout, again.stdout + again.stderr
    assert "2 of 2 runs are finished" in again.stdout
