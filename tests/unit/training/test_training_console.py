"""What the lines of a training say."""

from __future__ import annotations

from vsr_dist.core.console import LiveView
from vsr_dist.training.console import loss_line, show_interval, show_validation, speed_line, summary_table

VALUES = {
    "loss_g/total": 0.5,
    "loss_g/image": 0.25,
    "loss_d/total": 1.386,
    "perf/clips_per_s": 12.34,
    "perf/step_ms": 80.0,
    "perf/data_wait_ms": 2.0,
    "perf/peak_memory_mb": 1234.0,
}
METRICS = {"val/psnr_y": 30.5, "val_bicubic/psnr_y": 29.25, "val/tof": 0.5, "drift/auc": 0.75}


def test_every_loss_term_is_shown_by_player():
    assert loss_line(VALUES) == "G total 0.5 image 0.25 | D total 1.386"
    assert loss_line({"loss_g/total": 1.0}) == "G total 1"


def test_speed_shows_the_wait_for_data_and_its_share():
    assert speed_line(VALUES) == "12.3 clips/s | step 80 ms | data wait 2.0 ms (2 %) | 1,234 MB"


def test_a_log_gets_one_plain_line_per_interval_and_validation(capsys):
    with LiveView(10, "step") as view:
        show_interval(view, 5, 10, VALUES)
        show_validation(view, 5, 10, METRICS)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 5/10 | loss_g/total 0.5 | loss_d/total 1.386 | 12.3 clips/s | data wait 2.0 ms | ")
    assert "held-out PSNR-Y 30.50 dB (+1.25 against bicubic)" in second


def test_the_summary_sets_each_metric_beside_bicubic():
    assert summary_table(METRICS).splitlines() == [
        "held-out metric  this run  bicubic  difference",
        "val/psnr_y        30.5000  29.2500     +1.2500",
        "drift/auc          0.7500",
    ]
