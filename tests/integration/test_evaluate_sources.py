"""`vsr-dist evaluate` on folders, videos and finished results: numbers, presets, comparisons and mistakes."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from evaluate_films import NUM_FRAMES, evaluate, small, spoilt, truth, write_frames
from metric_references import scikit_fidelity
from realvsr_tree import make_realvsr
from upscale_media import moving, write_video

from sharding.video import IS_TAKEN_FOR_BT709
from vsr_dist.cli import main
from vsr_dist.core.errors import MissingExtraError
from vsr_dist.inference.pictures import VideoWriter
from vsr_dist.metrics.registry import EVALUATED, METRICS, centre_crop
from vsr_dist.metrics.temporal import TruthMotion, tdiff, tof


def test_how_files_are_read_is_said_once_for_all_of_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for side in ("fake", "real"):
        for name in ("a:b", "c"):
            (tmp_path / side).mkdir(exist_ok=True)
            write_video(tmp_path / side / f"{name}.mkv", moving(2, 584, 32))
    evaluate(Path("out:1"), "--fake", "fake", "--real", "real", "--metrics", "psnr_y")
    lines = [line for line in capsys.readouterr().out.splitlines() if IS_TAKEN_FOR_BT709 in line]
    assert lines == [f"note: fake/a:b.mkv, real/a:b.mkv, fake/c.mkv and 1 more: {IS_TAKEN_FOR_BT709}"]


def test_a_finished_result_gets_the_numbers_of_the_metrics(tmp_path, film_pair):
    data = evaluate(tmp_path / "out", "--fake", film_pair[0], "--real", film_pair[1])
    real = truth(0)
    fake = spoilt(real, 6)
    rows = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert [int(row["frame"]) for row in rows] == list(range(NUM_FRAMES))
    # A result has no scale: no border is cut but one pixel, which is what scale 1 asks for.
    inside = (slice(1, -1), slice(1, -1))
    expected = [scikit_fidelity(a[inside], b[inside], False) for a, b in zip(fake, real, strict=True)]
    assert [float(row["psnr_y"]) for row in rows] == pytest.approx([one["psnr_y"] for one in expected], abs=1e-6)
    assert [float(row["ssim_rgb"]) for row in rows] == pytest.approx([one["ssim_rgb"] for one in expected], abs=1e-6)
    assert rows[0]["tof"] == ""
    assert data["table"]["overall"]["result"]["tof"] == pytest.approx(
        tof(fake, TruthMotion(real), centre_crop(64, 64)), rel=1e-6
    )
    assert data["table"]["overall"]["result"]["tdiff"] == pytest.approx(tdiff(fake, real), rel=1e-9)
    assert data["methods"] == ["result"]
    assert data["sequences"][0]["num_frames"] == NUM_FRAMES
    assert data["metrics"]["tof"].items() >= {"better": "lower", "reducer": "mean"}.items()
    assert not (tmp_path / "out" / "comparison.png").exists()


def test_folders_of_sequences_beside_the_input(tmp_path):
    for name, seed in (("000", 1), ("001", 2)):
        write_frames(tmp_path / "GT" / name, truth(seed))
        write_frames(tmp_path / "LQ" / name, small(truth(seed)))
        write_frames(tmp_path / "SR" / name, spoilt(truth(seed), 3), "out_{:05d}_x4.png")
    sides = ("--low", tmp_path / "LQ", "--real", tmp_path / "GT")
    bicubic = evaluate(tmp_path / "bicubic", "--method", "bicubic", *sides)
    assert list(bicubic["table"]) == ["000", "001", "overall"]
    assert bicubic["source"]["scale"] == 4
    assert bicubic["methods"] == ["bicubic"]
    result = evaluate(tmp_path / "result", "--fake", tmp_path / "SR", *sides, "--metrics", "psnr_y")
    assert result["methods"] == ["bicubic", "result"]
    overall = result["table"]["overall"]
    assert overall["bicubic"]["psnr_y"] == bicubic["table"]["overall"]["bicubic"]["psnr_y"]
    assert overall["result"]["psnr_y"] > overall["bicubic"]["psnr_y"] + 3
    assert overall["result"]["psnr_y"] == pytest.approx(
        np.mean([result["table"][name]["result"]["psnr_y"] for name in ("000", "001")])
    )
    (found,) = result["comparisons"]
    assert (found["this"], found["other"]) == ("result", "bicubic")
    assert found["metrics"]["psnr_y"]["verdict"] == "too few sequences"
    assert (tmp_path / "result" / "comparison.png").exists()
    assert "ASSUMPTION" not in (tmp_path / "result" / "report.md").read_text()
    numbers = evaluate(tmp_path / "result", "--fake", tmp_path / "SR", *sides, "--metrics", "psnr_y", "--no-pictures")
    assert numbers["table"] == result["table"]
    left = {path.name for path in (tmp_path / "result").iterdir()}
    assert left == {"metrics.json", "metrics.csv", "sequences.csv", "table.txt", "report.md"}


def test_named_methods_and_the_input_as_it_is(tmp_path):
    real = truth(3)
    low = write_frames(tmp_path / "low", small(real))
    truth_dir = write_frames(tmp_path / "real", real)
    scores = {
        name: evaluate(tmp_path / name, "--method", name, "--low", low, "--real", truth_dir, "--metrics", "psnr_rgb")
        for name in ("nearest", "lanczos", "bilinear")
    }
    values = {name: data["table"]["overall"][name]["psnr_rgb"] for name, data in scores.items()}
    cut = (slice(4, -4), slice(4, -4))
    nearest = small(real).repeat(4, axis=1).repeat(4, axis=2)
    assert values["nearest"] == pytest.approx(
        np.mean([scikit_fidelity(a[cut], b[cut], False)["psnr_rgb"] for a, b in zip(nearest, real, strict=True)]),
        abs=1e-6,
    )
    assert values["nearest"] < values["bilinear"] < values["lanczos"]
    same = write_frames(tmp_path / "same", spoilt(real, 5))
    data = evaluate(tmp_path / "identity", "--method", "identity", "--low", same, "--real", truth_dir)
    assert data["methods"] == ["identity"]
    assert data["source"]["scale"] == 1


def test_realvsrs_protocol_on_its_layout(tmp_path):
    root = make_realvsr(tmp_path / "RealVSR")
    sides = ("--low", root / "LQ_test", "--real", root / "GT_test")
    data = evaluate(tmp_path / "out", "--method", "identity", *sides, "--protocol", "realvsr", "--metrics", "psnr_y")

    def luma(path):
        return np.rint(cv2.imread(str(path))[..., ::-1] @ np.array([65.481, 128.553, 24.966]) / 255 + 16)

    names = [path.name for path in sorted((root / "GT_test" / "002").iterdir())]
    expected = [
        10 * np.log10(255**2 / np.mean((luma(root / "LQ_test/002" / n) - luma(root / "GT_test/002" / n)) ** 2))
        for n in names
    ]
    assert data["table"]["overall"]["identity"]["psnr_y"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert data["protocol_name"] == "realvsr"
    assert "rounded to 8 bits" in data["protocol"]


def test_tecogans_protocol_cuts_frames_and_the_edge(tmp_path, film_pair):
    options = ("--fake", film_pair[0], "--real", film_pair[1], "--protocol", "tecogan", "--metrics", "psnr_y,tof")
    data = evaluate(tmp_path / "out", *options)
    inside = slice(16, 48)
    real, fake = truth(0)[2:-2], spoilt(truth(0), 6)[2:-2]
    both = zip(fake, real, strict=True)
    expected = [scikit_fidelity(a[inside, inside], b[inside, inside], False)["psnr_y"] for a, b in both]
    overall = data["table"]["overall"]["result"]
    assert overall["psnr_y"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert overall["tof"] == pytest.approx(tof(fake, TruthMotion(real), centre_crop(64, 64)), rel=1e-6)
    assert data["sequences"][0]["num_frames"] == NUM_FRAMES - 4


def test_the_papers_protocol_says_what_it_assumes(tmp_path, film_pair):
    data = evaluate(tmp_path / "out", "--fake", film_pair[0], "--real", film_pair[1], "--protocol", "paper")
    assert "ASSUMPTION" in data["protocol"]
    assert "ASSUMPTION" in (tmp_path / "out" / "report.md").read_text()
    assert set(data["metrics"]) == {"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"}


def test_videos_and_a_limit_of_frames(tmp_path):
    real = truth(4, 20)
    for name, frames in (("real", real), ("low", small(real))):
        with VideoWriter(tmp_path / f"{name}.mp4", Fraction(10), crf=4) as video:
            for frame in frames:
                video.write(frame)
    sides = ("--low", tmp_path / "low.mp4", "--real", tmp_path / "real.mp4", "--metrics", "psnr_y")
    whole = evaluate(tmp_path / "whole", "--method", "bicubic", *sides)
    assert whole["sequences"][0]["num_frames"] == 20, "more than one piece of 16 frames"
    part = evaluate(tmp_path / "part", "--method", "bicubic", *sides, "--frames", 3)
    assert part["sequences"][0]["num_frames"] == 3
    assert part["source"]["max_frames"] == 3
    rows = [list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("whole", "part")]
    assert rows[0][:3] == rows[1]


def test_results_are_compared_with_one_another(tmp_path, capsys):
    names = [f"{number:03d}" for number in range(7)]
    for number, name in enumerate(names):
        write_frames(tmp_path / "GT" / name, truth(number, 2))
        write_frames(tmp_path / "good" / name, spoilt(truth(number, 2), 4))
        write_frames(tmp_path / "bad" / name, spoilt(truth(number, 2), 7))
    for side in ("good", "bad"):
        options = ("--fake", tmp_path / side, "--real", tmp_path / "GT", "--metrics", "psnr_y,tdiff")
        evaluate(tmp_path / f"e_{side}", *options)
    against = ("--against", tmp_path / "e_bad" / "metrics.csv")
    assert (
        main(["evaluate", "--results", str(tmp_path / "e_good"), *map(str, against), "--out", str(tmp_path / "c")]) == 0
    )
    found = json.loads((tmp_path / "c" / "comparison.json").read_text())["metrics"]
    assert {name: one["verdict"] for name, one in found.items()} == {"psnr_y": "better", "tdiff": "better"}
    assert found["psnr_y"]["p"] == pytest.approx(2 / 2**7)
    assert found["psnr_y"]["difference"] == pytest.approx(20 * np.log10(7 / 4), abs=0.3)
    assert "better" in capsys.readouterr().out
    data = evaluate(tmp_path / "again", *options, *("--against", tmp_path / "e_good"))
    assert data["comparisons"][0]["metrics"]["psnr_y"]["verdict"] == "worse"
    itself = evaluate(tmp_path / "itself", *options, "--against", tmp_path / "e_bad")
    assert {one["verdict"] for one in itself["comparisons"][0]["metrics"].values()} == {"within noise"}


def test_what_was_not_measured_alike_is_not_compared(evaluation_fails, tmp_path, film_pair):
    sides = ("--fake", film_pair[0], "--real", film_pair[1], "--metrics", "psnr_y")
    evaluate(tmp_path / "a", *sides)
    evaluate(tmp_path / "b", *sides, "--protocol", "realvsr")
    evaluate(tmp_path / "c", *sides, "--frames", 4)
    compare = ("--out", tmp_path / "out", "--results", tmp_path / "a", "--against")
    assert "protocol default and realvsr" in evaluation_fails(*compare, tmp_path / "b")
    evaluate(tmp_path / "d", *sides, "--scale", 4)
    assert "scale 1 and 4" in evaluation_fails(*compare, tmp_path / "d"), "another border"
    other = write_frames(tmp_path / "other" / "real", truth(3))
    evaluate(tmp_path / "e", "--fake", film_pair[0], "--real", other, "--metrics", "psnr_y")
    assert "data set" in evaluation_fails(*compare, tmp_path / "e"), "another truth of the same name and length"
    before = ("--out", tmp_path / "out", *sides, "--against", tmp_path / "b")
    assert "this evaluation and" in evaluation_fails(*before), "said before anything is measured"
    assert "2 frames are in one only, first frame 4 of real" in evaluation_fails(*compare, tmp_path / "c")
    assert "is not a finished evaluation" in evaluation_fails(*compare, film_pair[0])
    assert not (tmp_path / "out").exists()


def test_all_measures_what_it_can_and_names_the_rest(tmp_path, film_pair, monkeypatch, evaluation_fails):
    def missing():
        raise MissingExtraError("VMAF needs torchmetrics; run pip")

    for name in ("vmaf", "lpips", "tlp", "dists"):
        monkeypatch.setitem(METRICS, name, replace(METRICS[name], function=missing))
    data = evaluate(tmp_path / "out", "--fake", film_pair[0], "--real", film_pair[1], "--metrics", "all", "--frames", 3)
    assert set(data["left_out"]) >= {"vmaf", "lpips", "tlp", "dists"}
    assert set(data["metrics"]) | set(data["left_out"]) == set(EVALUATED)
    assert "was not measured: VMAF needs" in (tmp_path / "out" / "report.md").read_text()
    if "stlpips" in data["metrics"]:
        _against_st_lpips(tmp_path, data)


def _against_st_lpips(tmp_path, data):
    """tLP is 100 |D(g, g') - D(b, b')|, with the network asked directly."""
    import torch

    from vsr_dist.metrics.perceptual import ShiftTolerantLpips

    network = ShiftTolerantLpips()
    real = torch.from_numpy(truth(0)[:3]).permute(0, 3, 1, 2) / 255
    fake = torch.from_numpy(spoilt(truth(0), 6)[:3]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        steps = 100 * (network(real[:-1], real[1:]) - network(fake[:-1], fake[1:])).abs()
        plain = network(fake, real)
    overall = data["table"]["overall"]["result"]
    assert overall["tlp_st"] == pytest.approx(float(steps.mean()), abs=1e-4)
    assert overall["stlpips"] == pytest.approx(float(plain.mean()), abs=1e-5)


def test_a_metric_whose_package_is_missing_says_what_to_install(tmp_path, film_pair, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vmaf_torch", None)
    from vsr_dist.evaluate import main as evaluate_main

    options = [
        "--fake",
        str(film_pair[0]),
        "--real",
        str(film_pair[1]),
        "--metrics",
        "vmaf",
        "--out",
        str(tmp_path / "out"),
    ]
    assert evaluate_main(options) == 2
    assert "import of vmaf_torch halted" in (text := capsys.readouterr().err)
    assert "pip install 'vsr-dist[metrics]'; or leave vmaf out" in text
