"""The aggregation behind `make paper-table`, on numbers whose answers are known."""

from __future__ import annotations

import cv2
import pytest
from benchmark_modules import import_benchmark

BICUBIC = {"psnr_y": 30.0, "ssim_y": 0.8, "psnr_rgb": 28.0, "ssim_rgb": 0.78, "tof": 0.3, "tdiff": 4e-4}


@pytest.fixture(scope="module")
def report():
    return import_benchmark("paper_report")


def model(report, name, psnr_y, tof):
    """A model that differs from bicubic in PSNR-Y and tOF only, a value per seed."""
    scores = {
        seed: {**BICUBIC, "psnr_y": psnr, "tof": pixels}
        for seed, (psnr, pixels) in enumerate(zip(psnr_y, tof, strict=True))
    }
    return report.Trained(name, "a.yaml", 1234, 500, 2.0, dict.fromkeys(scores, 1200.0), 12.3, scores)


def test_spread_and_gain(report):
    good = model(report, "good", (31.0, 31.5, 32.0), (0.2, 0.25, 0.15))
    assert report.metric_spread(good, "psnr_y") == report.Spread(31.5, 31.0, 32.0)
    found = report.gain(good, BICUBIC, "tof")
    # Lower tOF is better, so the gain is what it falls by.
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.05, 0.15))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.2, "better"),
        (-0.2, -0.1, "worse"),
        (-0.1, 0.3, "no clear difference"),
        (0.0, 0.0, "no clear difference"),
    ],
)
def test_only_what_every_seed_shows_is_a_verdict(report, low, high, expected):
    assert report.verdict(report.Spread((low + high) / 2, low, high)) == expected


def test_sentences_say_how_each_compares_with_bicubic(report):
    good = report.sentence(model(report, "good", (31.0, 32.0), (0.2, 0.1)), BICUBIC)
    assert good == (
        "**good** against bicubic, 2 seeds: PSNR-Y dB +1.50 (better), SSIM-Y +0.0000 (no clear difference), "
        "tOF px -0.150 (better)."
    )
    bad = report.sentence(model(report, "bad", (20.0,), (0.5,)), BICUBIC)
    assert "1 seed:" in bad and "PSNR-Y dB -10.00 (worse)" in bad and "tOF px +0.200 (worse)" in bad


def test_table_has_means_ranges_and_bicubic_first(report):
    models = [model(report, "good", (31.0, 32.0), (0.2, 0.1)), model(report, "one", (29.5,), (0.3,))]
    lines = report.table(models, BICUBIC, 3.6).splitlines()
    assert lines[0].startswith("| model | parameters | steps | ms per frame | PSNR-Y dB | SSIM-Y | PSNR-RGB dB |")
    assert lines[2] == "| bicubic | 0 | - | 4 | 30.00 | 0.8000 | 28.00 | 0.7800 | 0.300 | 4.00 |"
    assert lines[3].startswith("| good | 1,234 | 500 | 12 | 31.50 (31.00 to 32.00) |")
    assert "| one | 1,234 | 500 | 12 | 29.50 |" in lines[4]
    assert len({line.count("|") for line in lines}) == 1


def test_document_names_the_budget_and_unknown_times(report):
    models = [model(report, "good", (31.0, 32.0), (0.2, 0.1))]
    facts = {"minutes": 20.0, "calibration_s": 30.0, "width": 16, "bicubic_frame_ms": 3.6, "frame_px": "68 x 160"}
    facts["protocol"] = "All frames."
    text = report.document(models, BICUBIC, facts)
    assert "20 CPU-minutes per seed" in text and "20.0 to 20.0 CPU-minutes" in text and "All frames." in text
    models[0].cpu_s.update(dict.fromkeys(models[0].cpu_s))
    assert "an unknown number of CPU-minutes" in report.document(models, BICUBIC, facts)


def test_data_holds_every_seed(report):
    data = report.as_data([model(report, "good", (31.0, 32.0), (0.2, 0.1))], BICUBIC)["good"]
    assert data["scores"][1]["psnr_y"] == 32.0
    assert data["better_than_bicubic_by"]["psnr_y"] == {"mean": 1.5, "low": 1.0, "high": 2.0}


def test_picture_is_drawn(report, tmp_path):
    models = [model(report, "good", (31.0, 32.0), (0.2, 0.1)), model(report, "bad", (20.0,), (0.5,))]
    report.draw(models, BICUBIC, tmp_path / "folder" / "picture.png")
    picture = cv2.imread(str(tmp_path / "folder" / "picture.png"))
    assert picture.shape[1] > 1000 and picture.std() > 10
