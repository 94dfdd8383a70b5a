"""Pairs: RealVSR's layout, zip archives and plain folders, from frames of real clips to shards and back."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from pack_runs import CLIPS, contents, run
from realvsr_tree import make_realvsr

from sharding.degrade import bicubic_downscale
from sharding.index import read_index, rebuild_index
from sharding.inspect import read_frame
from sharding.verify import verify


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
    assert "LR is LQ downscaled by 4 with bicubic; use --scale 1 to store the pairs" in text
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


def test_an_overlap_ends_with_2_and_can_be_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = make_realvsr(tmp_path / "published", with_overlap=True), tmp_path / "set"
    assert run("pack", "--realvsr", root, "--out", out) == 2
    error = capsys.readouterr().err
    assert "1 sequences are in both the training and the test set: 002; use --drop-overlap" in error
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
        (["--realvsr", "nowhere"], "nowhere has no LQ, GT"),
        (["clip.mp4", "--drop-overlap"], "--drop-overlap can only be used with --realvsr"),
        (["--crf", "20", str(CLIPS["bikes"])], "--crf is 20 with --degradation bicubic"),
        (["--realvsr", "REALVSR", "--scale", "1", "--crf", "20"], "no effect on pairs"),
        (["REALVSR"], "looks like paired data: use --realvsr"),
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
    clip = CLIPS["carphone_pristine"]
    assert run("pack", clip, *options, "--out", tmp_path / "one") == 0
    assert run("pack", clip, *options, "--out", tmp_path / "two", "--workers", 2) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    index = read_index(tmp_path / "one")
    assert verify(tmp_path / "one") == []
    assert (index.degradation["name"], index.degradation["crf"]) == ("video_compression", 30)
    clip = index.clips[3]
    high = read_frame(tmp_path / "one", index, clip, "hr", 5)
    low = read_frame(tmp_path / "one", index, clip, "lr", 5).astype(float)
    plain = bicubic_downscale(high, 4)
    assert 0.3 < np.abs(low - plain).mean() < 8


def write_pairs(root: Path, names: list[str], count: int, scale: int) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        for kind, size in (("lq", 12), ("gt", 12 * scale)):
            folder = root / kind / name
            folder.mkdir(parents=True)
            for number in range(count):
                cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_paired_folders_are_stored_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(tmp_path, ["000", "001"], 11, 2)
    pairs = f"lq={tmp_path / 'lq'},gt={tmp_path / 'gt'}"
    assert run("pack", "--paired", pairs, "--out", tmp_path / "set") == 2
    assert "check --scale" in capsys.readouterr().err
    argv = ["--paired", pairs, "--out", tmp_path / "set", "--scale", 2, "--holdout", "001", "--clip-frames", 4]
    assert run("pack", *argv) == 0
    index = read_index(tmp_path / "set")
    assert verify(tmp_path / "set") == []
    assert index.degradation == {"name": "paired"}
    assert list(index.sequences("train")) == ["000_s000"]
    (clips,) = index.sequences("val").values()
    assert [clip.num_frames for clip in clips] == [4, 4, 3]
    # Frame 10 comes after 9, not after 1.
    for field, kind in (("lr", "lq"), ("hr", "gt")):
        stored = read_frame(tmp_path / "set", index, clips[2], field, 2)
        reference = cv2.imread(str(tmp_path / kind / "001" / "10.png"))
        np.testing.assert_array_equal(stored, reference[..., ::-1])


def test_one_pair_of_folders_without_subfolders(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a"], 3, 4)
    pairs = f"lq={tmp_path / 'lq' / 'a'},gt={tmp_path / 'gt' / 'a'}"
    assert run("pack", "--paired", pairs, "--out", tmp_path / "set") == 0
    assert list(read_index(tmp_path / "set").sequences("train")) == ["a_s000"]
