"""RealVSR's layout and other pairs, from frames of real clips to shards and back."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from realvsr_tree import make_realvsr

from sharding.cli import main
from sharding.degrade import bicubic_downscale
from sharding.errors import run_cli
from sharding.index import read_index, rebuild_index
from sharding.inspect import read_frame
from sharding.samples import find_samples
from sharding.verify import verify

CLIPS = {path.stem: path for path in find_samples()}


def run(*argv: object) -> int:
    return run_cli(main, [str(word) for word in argv])


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def realvsr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_realvsr(tmp_path_factory.mktemp("realvsr"))


@pytest.fixture
def zipped(realvsr: Path, tmp_path: Path) -> Path:
    """The same as four archives; GT.zip holds the folder GT, the others begin with the sequences."""
    root = tmp_path / "zipped"
    root.mkdir()
    for name in ("GT", "LQ", "GT_test", "LQ_test"):
        with zipfile.ZipFile(root / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((realvsr / name).rglob("*.png")):
                archive.write(path, path.relative_to(realvsr if name == "GT" else realvsr / name))
    return root


def image(realvsr: Path, place: str, number: int) -> np.ndarray:
    return cv2.imread(str(realvsr / place / f"{number:05d}.png"))[..., ::-1]


def test_scale_1_keeps_the_pairs_and_the_test_set_is_val(realvsr: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert run("pack", "--realvsr", realvsr, "--out", out, "--scale", 1, "--clip-frames", 4) == 0
    index = read_index(out)
    assert verify(out) == []
    assert index.degradation == {"name": "paired"}
    assert list(index.sequences("train")) == ["000_s000", "001_s000"]
    (clips,) = index.sequences("val").values()
    assert [clip.num_frames for clip in clips] == [4, 4, 2]
    np.testing.assert_array_equal(read_frame(out, index, clips[2], "hr", 1), image(realvsr, "GT_test/002", 9))
    np.testing.assert_array_equal(read_frame(out, index, clips[2], "lr", 1), image(realvsr, "LQ_test/002", 9))


def test_scale_4_shrinks_lq_by_the_recipe_of_the_index(
    realvsr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    assert run("pack", "--realvsr", realvsr, "--out", out, "--clip-frames", 4) == 0
    text = capsys.readouterr().out
    assert "LR is LQ made 4 times smaller by bicubic; --scale 1 keeps the pairs" in text
    assert "degradation paired (shrink=bicubic, a=-0.5, antialias=True, centres=half-pixel)" in text
    index = read_index(out)
    assert verify(out) == []
    assert rebuild_index(out) == index
    shrink = {"name": "bicubic", "a": -0.5, "antialias": True, "centres": "half-pixel"}
    assert index.degradation == {"name": "paired", "shrink": shrink}
    clip = index.sequences("train")["001_s000"][1]
    assert clip.frame_shape("hr") == (140, 176, 3)
    assert clip.frame_shape("lr") == (35, 44, 3)
    low = np.ascontiguousarray(image(realvsr, "LQ/001", 6)[:140])
    np.testing.assert_array_equal(read_frame(out, index, clip, "lr", 2), bicubic_downscale(low, 4))
    np.testing.assert_array_equal(read_frame(out, index, clip, "hr", 2), image(realvsr, "GT/001", 6)[:140])


def test_archives_are_read_in_place_and_give_the_same_bytes(realvsr: Path, zipped: Path, tmp_path: Path) -> None:
    options = ["--shard-mb", 0.5, "--holdout-tail", 0.3]
    assert run("pack", "--realvsr", realvsr, "--out", tmp_path / "one", *options) == 0
    assert run("pack", "--realvsr", zipped, "--out", tmp_path / "two", *options, "--workers", 2) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(path.name for path in zipped.iterdir()) == ["GT.zip", "GT_test.zip", "LQ.zip", "LQ_test.zip"]
    pair = f"lq={zipped / 'LQ_test.zip'},gt={zipped / 'GT_test.zip'}"
    assert run("pack", "--paired", pair, "--out", tmp_path / "three", "--scale", 1) == 0
    assert list(read_index(tmp_path / "three").sequences("train")) == ["002_s000"]


def test_an_overlap_ends_with_2_and_can_be_dropped(
    realvsr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "overlapping", tmp_path / "set"
    shutil.copytree(realvsr, root)
    for side in ("GT", "LQ"):
        shutil.copytree(root / f"{side}_test" / "002", root / side / "002")
    assert run("pack", "--realvsr", root, "--out", out) == 2
    error = capsys.readouterr().err
    assert "1 sequences are both in the training and in the test set: 002; give --drop-overlap" in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert run("pack", "--realvsr", root, "--out", out, "--drop-overlap") == 0
    index = read_index(out)
    assert list(index.sequences("train")) == ["000_s000", "001_s000"]
    assert list(index.sequences("val")) == ["002_s000"]


def test_a_held_out_tail_of_pairs_keeps_both_sides_in_step(realvsr: Path, tmp_path: Path) -> None:
    pair = f"lq={realvsr / 'LQ'},gt={realvsr / 'GT'}"
    assert run("pack", "--paired", pair, "--out", tmp_path, "--scale", 1, "--holdout-tail", 0.4) == 0
    index = read_index(tmp_path)
    (clip,) = index.sequences("val")["001_s001"]
    assert (clip.first_frame, clip.num_frames) == (6, 4)
    np.testing.assert_array_equal(read_frame(tmp_path, index, clip, "lr", 1), image(realvsr, "LQ/001", 7))
    np.testing.assert_array_equal(read_frame(tmp_path, index, clip, "hr", 1), image(realvsr, "GT/001", 7))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--realvsr", "x", "--paired", "lq=a,gt=b"], "got --paired and --realvsr"),
        (["clip.mp4", "--realvsr", "x"], "got SOURCE and --realvsr"),
        (["--realvsr", "nowhere"], "nowhere lacks LQ, GT"),
        (["clip.mp4", "--drop-overlap"], "--drop-overlap is for --realvsr"),
        (["--crf", "20", str(CLIPS["bikes"])], "--crf is 20 with --degradation bicubic"),
        (["--realvsr", "REALVSR", "--scale", "1", "--crf", "20"], "no recipe is at work on pairs"),
        (["REALVSR"], "give it as --realvsr"),
    ],
)
def test_mistakes_are_one_line(
    realvsr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    words = [str(realvsr) if word == "REALVSR" else word for word in argv]
    assert run("pack", *words, "--out", tmp_path / "set") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_compressed_low_resolution_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    options = ["--degradation", "video_compression", "--crf", 30, "--shard-mb", 5, "--holdout-tail", 0.3]
    names = (CLIPS["carphone_pristine"], CLIPS["carphone_distorted"])
    assert run("pack", *names, *options, "--out", tmp_path / "one") == 0
    assert run("pack", *names, *options, "--out", tmp_path / "two", "--workers", 2) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    index = read_index(tmp_path / "one")
    assert verify(tmp_path / "one") == []
    assert (index.degradation["name"], index.degradation["crf"]) == ("video_compression", 30)
    clip = index.clips[3]
    high = read_frame(tmp_path / "one", index, clip, "hr", 5)
    low = read_frame(tmp_path / "one", index, clip, "lr", 5).astype(float)
    plain = bicubic_downscale(high, 4)
    assert 0.3 < np.abs(low - plain).mean() < 8
