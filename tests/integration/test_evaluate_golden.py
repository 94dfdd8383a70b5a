"""The numbers of `vsr-dist evaluate` on a fixed film, committed: a change keeps them, or renews them and says why.

Renew with: VSR_DIST_RENEW_GOLDEN=1 python -m pytest tests/integration/test_evaluate_golden.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from evaluate_films import evaluate, small, truth, write_frames

GOLDEN = Path(__file__).with_name("golden_metrics.json")
NAMES = "psnr_y,ssim_y,psnr_rgb,ssim_rgb,tof,tdiff,warp,flicker"


@pytest.mark.parametrize("protocol", ["default", "realvsr", "tecogan", "paper"])
def test_the_scores_are_the_committed_ones(tmp_path, protocol):
    real = truth(5, 8)
    real[:, :20] = real[0, :20]  # What stands still has flicker.
    sides = ("--low", write_frames(tmp_path / "low", small(real)), "--real", write_frames(tmp_path / "real", real))
    options = ("--method", "lanczos", *sides, "--protocol", protocol, "--metrics", NAMES, "--no-pictures")
    found = evaluate(tmp_path / "out", *options)["table"]["overall"]
    golden = json.loads(GOLDEN.read_text())
    if os.environ.get("VSR_DIST_RENEW_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden | {protocol: found}, indent=1) + "\n")
        pytest.skip("golden scores renewed; say why in the CHANGELOG")
    assert set(found["lanczos"]) == set(NAMES.split(","))
    for method, scores in golden[protocol].items():
        # Processors differ in the last digits of float32.
        assert found[method] == pytest.approx(scores, rel=1e-5)
