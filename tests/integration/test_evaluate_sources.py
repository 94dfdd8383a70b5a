"""`vsr-dist evaluate` on folders, videos and finished results: numbers, presets, comparisons and mistakes."""

from __future__ import annotations

import csv
import json
from fractions import Fraction

import cv2
import numpy as np
import pytest
from realvsr_tree import make_realvsr

from vsr_dist.cli import main
from vsr_dist.inference.encode import VideoWriter
from vsr_dist.metrics.fidelity import frame_fidelity
from vsr_dist.metrics.temporal import tdiff, tof

SIZE, NUM_FRAMES = 64, 6


def _truth(seed, num_frames=NUM_FRAMES):
    noise = np.random.default_rng(seed).normal(size=(SIZE + 20, SIZE + 20, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    texture = np.interp(smooth, (smooth.min(), smooth.max()), (20, 235)).round().astype(np.uint8)
    return np.stack([texture[t : t + SIZE, t : t + SIZE] for t in range(num_frames)])


def _write(folder, frames, name="{:05d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / name.format(number)), frame[..., ::-1])
    return folder


def _spoilt(frames, sigma, seed=9):
    noise = np.random.default_rng(seed).normal(0, sigma, frames.shape)
    return np.clip(frames + noise, 0, 255).round().astype(np.uint8)


def _small(frames):
    return np.stack([cv2.resize(frame, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA) for frame in frames])


def _evaluate(out, *options):
    assert main(["evaluate", "--out", str(out), "--device", "cpu", *map(str, options)]) == 0
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture
def fails(capsys):
    def run(*options):
        assert main(["evaluate", *map(str, options)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.fixture
def pair(tmp_path):
    """(result, truth), one folder of frames each."""
    real = _truth(0)
    return _write(tmp_path / "fake", _spoilt(real, 6)), _write(tmp_path / "real", real)


def test_a_finished_result_gets_the_numbers_of_the_metrics(tmp_path, pair):
    data = _evaluate(tmp_path / "out", "--fake", pair[0], "--real", pair[1])
    real = _truth(0)
    fake = _spoilt(real, 6)
    rows = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert [int(row["frame"]) for row in rows] == list(range(NUM_FRAMES))
    # A result has no scale: no border is cut but one pixel, which is what scale 1 asks for.
    expected = [frame_fidelity(a, b, 1) for a, b in zip(fake, real, strict=True)]
    assert [float(row["psnr_y"]) for row in rows] == pytest.approx([one.psnr_y for one in expected], abs=1e-6)
    assert [float(row["ssim_rgb"]) for row in rows] == pytest.approx([one.ssim_rgb for one in expected], abs=1e-6)
    assert rows[0]["tof"] == ""
    assert data["table"]["overall"]["result"]["tof"] == pytest.approx(tof(fake, real, trim_frames=0), rel=1e-6)
    assert data["table"]["overall"]["result"]["tdiff"] == pytest.approx(tdiff(fake, real), rel=1e-9)
    assert data["methods"] == ["result"]
    assert data["sequences"][0]["num_frames"] == NUM_FRAMES
    assert data["metrics"]["tof"]["better"] == "lower"
    assert not (tmp_path / "out" / "comparison.png").exists()


def test_folders_of_sequences_beside_the_input(tmp_path):
    for name, seed in (("000", 1), ("001", 2)):
        _write(tmp_path / "GT" / name, _truth(seed))
        _write(tmp_path / "LQ" / name, _small(_truth(seed)))
        _write(tmp_path / "SR" / name, _spoilt(_truth(seed), 3), "out_{:05d}_x4.png")
    sides = ("--low", tmp_path / "LQ", "--real", tmp_path / "GT")
    bicubic = _evaluate(tmp_path / "bicubic", "--method", "bicubic", *sides)
    assert list(bicubic["table"]) == ["000", "001", "overall"]
    assert bicubic["source"]["scale"] == 4
    assert bicubic["methods"] == ["bicubic"]
    result = _evaluate(tmp_path / "result", "--fake", tmp_path / "SR", *sides, "--metrics", "psnr_y")
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


def test_named_methods_and_the_input_as_it_is(tmp_path):
    real = _truth(3)
    low = _write(tmp_path / "low", _small(real))
    truth = _write(tmp_path / "real", real)
    scores = {
        name: _evaluate(tmp_path / name, "--method", name, "--low", low, "--real", truth, "--metrics", "psnr_rgb")
        for name in ("nearest", "lanczos", "bilinear")
    }
    values = {name: data["table"]["overall"][name]["psnr_rgb"] for name, data in scores.items()}
    nearest = _small(real).repeat(4, axis=1).repeat(4, axis=2)
    assert values["nearest"] == pytest.approx(
        np.mean([frame_fidelity(a, b, 4).psnr_rgb for a, b in zip(nearest, real, strict=True)]), abs=1e-6
    )
    assert values["nearest"] < values["bilinear"] < values["lanczos"]
    same = _write(tmp_path / "same", _spoilt(real, 5))
    data = _evaluate(tmp_path / "identity", "--method", "identity", "--low", same, "--real", truth)
    assert data["methods"] == ["identity"]
    assert data["source"]["scale"] == 1


def test_realvsrs_protocol_on_its_layout(tmp_path):
    root = make_realvsr(tmp_path / "RealVSR")
    sides = ("--low", root / "LQ_test", "--real", root / "GT_test")
    data = _evaluate(tmp_path / "out", "--method", "identity", *sides, "--protocol", "realvsr", "--metrics", "psnr_y")

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


def test_tecogans_protocol_cuts_frames_and_the_edge(tmp_path, pair):
    options = ("--fake", pair[0], "--real", pair[1], "--protocol", "tecogan", "--metrics", "psnr_y,tof")
    data = _evaluate(tmp_path / "out", *options)
    inside = slice(16, 48)
    real, fake = _truth(0)[2:-2], _spoilt(_truth(0), 6)[2:-2]
    expected = [frame_fidelity(a[inside, inside], b[inside, inside], 0).psnr_y for a, b in zip(fake, real, strict=True)]
    overall = data["table"]["overall"]["result"]
    assert overall["psnr_y"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert overall["tof"] == pytest.approx(tof(fake, real, trim_frames=0), rel=1e-6)
    assert data["sequences"][0]["num_frames"] == NUM_FRAMES - 4


def test_the_papers_protocol_says_what_it_assumes(tmp_path, pair):
    data = _evaluate(tmp_path / "out", "--fake", pair[0], "--real", pair[1], "--protocol", "paper")
    assert "ASSUMPTION" in data["protocol"]
    assert "ASSUMPTION" in (tmp_path / "out" / "report.md").read_text()
    assert set(data["metrics"]) == {"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"}


def test_videos_and_a_limit_of_frames(tmp_path):
    real = _truth(4, 20)
    for name, frames in (("real", real), ("low", _small(real))):
        with VideoWriter(tmp_path / f"{name}.mp4", Fraction(10), crf=4) as video:
            for frame in frames:
                video.write(frame)
    sides = ("--low", tmp_path / "low.mp4", "--real", tmp_path / "real.mp4", "--metrics", "psnr_y")
    whole = _evaluate(tmp_path / "whole", "--method", "bicubic", *sides)
    assert whole["sequences"][0]["num_frames"] == 20, "more than one piece of 16 frames"
    part = _evaluate(tmp_path / "part", "--method", "bicubic", *sides, "--frames", 3)
    assert part["sequences"][0]["num_frames"] == 3
    assert part["source"]["max_frames"] == 3
    rows = [list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("whole", "part")]
    assert rows[0][:3] == rows[1]


def test_results_are_compared_with_one_another(tmp_path, capsys):
    names = [f"{number:03d}" for number in range(7)]
    for number, name in enumerate(names):
        _write(tmp_path / "GT" / name, _truth(number, 2))
        _write(tmp_path / "good" / name, _spoilt(_truth(number, 2), 4))
        _write(tmp_path / "bad" / name, _spoilt(_truth(number, 2), 7))
    for side in ("good", "bad"):
        options = ("--fake", tmp_path / side, "--real", tmp_path / "GT", "--metrics", "psnr_y,tdiff")
        _evaluate(tmp_path / f"e_{side}", *options)
    against = ("--against", tmp_path / "e_bad" / "metrics.csv")
    assert (
        main(["evaluate", "--results", str(tmp_path / "e_good"), *map(str, against), "--out", str(tmp_path / "c")]) == 0
    )
    found = json.loads((tmp_path / "c" / "comparison.json").read_text())["metrics"]
    assert {name: one["verdict"] for name, one in found.items()} == {"psnr_y": "better", "tdiff": "better"}
    assert found["psnr_y"]["p"] == pytest.approx(2 / 2**7)
    assert found["psnr_y"]["difference"] == pytest.approx(20 * np.log10(7 / 4), abs=0.3)
    assert "better" in capsys.readouterr().out
    data = _evaluate(tmp_path / "again", *options, *("--against", tmp_path / "e_good"))
    assert data["comparisons"][0]["metrics"]["psnr_y"]["verdict"] == "worse"
    itself = _evaluate(tmp_path / "itself", *options, "--against", tmp_path / "e_bad")
    assert {one["verdict"] for one in itself["comparisons"][0]["metrics"].values()} == {"within noise"}


def test_what_was_not_measured_alike_is_not_compared(fails, tmp_path, pair):
    sides = ("--fake", pair[0], "--real", pair[1], "--metrics", "psnr_y")
    _evaluate(tmp_path / "a", *sides)
    _evaluate(tmp_path / "b", *sides, "--protocol", "realvsr")
    _evaluate(tmp_path / "c", *sides, "--frames", 4)
    compare = ("--out", tmp_path / "out", "--results", tmp_path / "a", "--against")
    assert "protocol default and realvsr" in fails(*compare, tmp_path / "b")
    assert "2 frames are in one only, first frame 4 of real" in fails(*compare, tmp_path / "c")
    assert "is not a finished evaluation" in fails(*compare, pair[0])
    assert not (tmp_path / "out").exists()


def test_sides_that_do_not_fit_are_both_named(fails, tmp_path, pair):
    _, real = pair
    longer = _write(tmp_path / "longer", _truth(0, 8))
    message = fails("--fake", longer, "--real", real, "--out", tmp_path / "out")
    assert f"{longer} has 8 frames, {real} 6" in message
    wide = _write(tmp_path / "wide", _truth(0)[:, :, :60])
    assert f"{wide} is 60 x 64 px, {real} 64 x 64 px" in fails("--fake", wide, "--real", real, "--out", tmp_path / "o")
    odd = _write(tmp_path / "odd", _truth(0)[:, :24, :24])
    message = fails("--method", "bicubic", "--low", odd, "--real", real, "--out", tmp_path / "out")
    assert f"{odd} is 24 x 24 px, {real} 64 x 64 px; expected the truth to be the same whole number" in message
    shifted = _write(tmp_path / "shifted", np.concatenate([_truth(0), _truth(0)[:1]]))
    (shifted / "00000.png").unlink()
    message = fails("--fake", shifted, "--real", real, "--out", tmp_path / "out")
    assert "'00001.png'" in message and "'00000.png'" in message
    _write(tmp_path / "GT" / "000", _truth(1))
    _write(tmp_path / "GT" / "001", _truth(2))
    _write(tmp_path / "SR" / "000", _truth(1))
    message = fails("--fake", tmp_path / "SR", "--real", tmp_path / "GT", "--out", tmp_path / "out")
    assert f"001 of --real {tmp_path / 'GT'} is not in --fake {tmp_path / 'SR'}" in message
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_go_together(fails, tmp_path, pair):
    fake, real, out = *pair, ("--out", tmp_path / "out")
    assert "either --data" in fails("--method", "bicubic", *out)
    assert "either --data" in fails("--method", "bicubic", "--data", "x", "--real", real, *out)
    assert "need --low" in fails("--method", "bicubic", "--real", real, *out)
    assert "--low needs --real" in fails("--method", "bicubic", "--data", "x", "--low", fake, *out)
    assert "--fake needs --real" in fails("--fake", fake, "--data", "x", *out)
    assert "--frames is 1" in fails("--fake", fake, "--real", real, "--frames", "1", *out)
    assert "unknown metric 'psnr' (did you mean" in fails("--fake", fake, "--real", real, "--metrics", "psnr", *out)
    assert "give --against" in fails("--results", out[1], *out)
    assert "does not exist" in fails("--fake", tmp_path / "no", "--real", real, *out)
    small = _write(tmp_path / "small", _small(_truth(0)))
    message = fails("--method", "identity", "--low", small, "--real", real, *out)
    assert "truth is x4 as large" in message
    message = fails("--fake", small, "--real", small, "--metrics", "tof", *out)
    assert "at least 48 pixels, found 16" in message and "--metrics" in message
    few = _write(tmp_path / "few", _truth(0, 4))
    message = fails("--fake", few, "--real", few, "--protocol", "tecogan", *out)
    assert "has 4 frames, but protocol tecogan cuts 2" in message


def test_all_measures_what_it_can_and_names_the_rest(tmp_path, pair, monkeypatch, fails):
    from vsr_dist.evaluation import scoring

    def missing():
        raise scoring.MissingExtraError("VMAF needs torchmetrics; run pip")

    monkeypatch.setitem(scoring.NETWORKS, "vmaf", missing)
    monkeypatch.setitem(scoring.NETWORKS, "lpips", missing)
    monkeypatch.setitem(scoring.NETWORKS, "dists", missing)
    data = _evaluate(tmp_path / "out", "--fake", pair[0], "--real", pair[1], "--metrics", "all", "--frames", 3)
    assert set(data["left_out"]) >= {"vmaf", "lpips", "tlp", "dists"}
    assert set(data["metrics"]) | set(data["left_out"]) == set(scoring.METRICS)
    assert "was left out: VMAF needs" in (tmp_path / "out" / "report.md").read_text()
    if "stlpips" in data["metrics"]:
        _against_st_lpips(tmp_path, data)


def _against_st_lpips(tmp_path, data):
    """tLP is 100 |D(g, g') - D(b, b')|, with the network asked directly."""
    import torch

    from vsr_dist.metrics.perceptual import ShiftTolerantLpips

    network = ShiftTolerantLpips()
    real = torch.from_numpy(_truth(0)[:3]).permute(0, 3, 1, 2) / 255
    fake = torch.from_numpy(_spoilt(_truth(0), 6)[:3]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        steps = 100 * (network(real[:-1], real[1:]) - network(fake[:-1], fake[1:])).abs()
        plain = network(fake, real)
    overall = data["table"]["overall"]["result"]
    assert overall["tlp_st"] == pytest.approx(float(steps.mean()), abs=1e-4)
    assert overall["stlpips"] == pytest.approx(float(plain.mean()), abs=1e-5)


def test_a_metric_whose_package_is_missing_says_what_to_install(tmp_path, pair, monkeypatch, capsys):
    import importlib

    def nothing(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", nothing)
    from vsr_dist.evaluate import main as evaluate

    options = ["--fake", str(pair[0]), "--real", str(pair[1]), "--metrics", "vmaf", "--out", str(tmp_path / "out")]
    assert evaluate(options) == 2
    assert "No module named 'vmaf_torch'" in (text := capsys.readouterr().err)
    assert 'pip install "vsr-dist[vmaf]"' in text
