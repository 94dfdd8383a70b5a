"""The losses of a tiny training, committed: a change keeps them, or renews them and says why in the CHANGELOG.

Renew with: VSR_DIST_RENEW_GOLDEN=1 python -m pytest tests/unit/training/test_golden_losses.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vsr_dist.training.tracking import read_metrics

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).with_name("golden_losses.json")
# Processors differ in the order of their sums; over 20 steps of a GAN that stays far below this.
RELATIVE = 2e-3


def test_losses_are_the_committed_ones(launcher):
    run_dir = launcher.run("golden")
    lines = read_metrics(run_dir / "metrics.jsonl")
    kept = ("loss_g/", "loss_d/", "d/", "val/psnr_y", "drift/normalized_loss")
    found = {f"{line['step']}:{k}": v for line in lines for k, v in line.items() if k.startswith(kept)}
    if os.environ.get("VSR_DIST_RENEW_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
        pytest.skip("golden losses renewed; say why in the CHANGELOG")
    golden = json.loads(GOLDEN.read_text())
    assert found.keys() == golden.keys()
    assert found == pytest.approx(golden, rel=RELATIVE, abs=1e-5)
