from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from sharding.errors import BadInputError
from sharding.layouts import find_pairs, find_realvsr
from sharding.scan import scan_pair


def write(folder: Path, names: list[str], size: tuple[int, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        assert cv2.imwrite(str(folder / f"{name}.png"), np.zeros((*size, 3), np.uint8))


def numbers(count: int, first: int = 0) -> list[str]:
    return [f"{number:05d}" for number in range(first, first + count)]


@pytest.fixture
def realvsr(tmp_path: Path) -> Path:
    """Three training and one test sequence of 4 frames, both sides 16 x 24 px."""
    for side in ("GT", "LQ"):
        for sequence in ("000", "001", "010"):
            write(tmp_path / side / sequence, numbers(4), (16, 24))
        write(tmp_path / f"{side}_test" / "005", numbers(4), (16, 24))
    return tmp_path


def test_splits_come_from_the_folders_of_realvsr(realvsr: Path) -> None:
    sources = find_realvsr(realvsr, 4, drop_overlap=False)
    assert [(source.name, source.split) for source in sources] == [
        ("000", "train"),
        ("001", "train"),
        ("010", "train"),
        ("005", "val"),
    ]
    assert {source.low_scale for source in sources} == {1}
    assert {source.kind for source in sources} == {"paired"}
    assert scan_pair(sources[0], sources[0].low_path).shots == ((0, 4),)


def test_a_set_without_a_test_set_is_all_training(realvsr: Path) -> None:
    for side in ("GT_test", "LQ_test"):
        shutil.rmtree(realvsr / side)
    assert {source.split for source in find_realvsr(realvsr, 1, drop_overlap=False)} == {"train"}


def test_overlap_of_training_and_test_names_the_sequences_and_the_way_out(realvsr: Path) -> None:
    for side in ("GT", "LQ"):
        shutil.copytree(realvsr / f"{side}_test" / "005", realvsr / side / "005")
    with pytest.raises(BadInputError, match=r"in both the training and the test set: 005; use --drop-overlap"):
        find_realvsr(realvsr, 4, drop_overlap=False)
    sources = find_realvsr(realvsr, 4, drop_overlap=True)
    assert [source.name for source in sources if source.split == "train"] == ["000", "001", "010"]
    assert [source.path.parent.name for source in sources if source.name == "005"] == ["GT_test"]


@pytest.mark.parametrize("lost", [["LQ"], ["GT", "LQ"], ["LQ_test"], ["GT", "GT_test"]])
def test_lacking_folders_are_all_named(realvsr: Path, lost: list[str]) -> None:
    for name in lost:
        shutil.rmtree(realvsr / name)
    with pytest.raises(BadInputError, match="expected the folders or zip archives GT and LQ") as caught:
        find_realvsr(realvsr, 4, drop_overlap=False)
    assert all(name in str(caught.value).split(";")[0] for name in lost)


def test_all_faults_of_all_sequences_come_at_once(realvsr: Path) -> None:
    write(realvsr / "LQ" / "000", ["00004"], (16, 24))
    shutil.rmtree(realvsr / "GT" / "001")
    shutil.rmtree(realvsr / "LQ" / "010")
    write(realvsr / "LQ" / "010", numbers(4, first=1), (16, 24))
    shutil.rmtree(realvsr / "GT_test" / "005")
    write(realvsr / "GT_test" / "005", ["00000", "00001", "00003", "00004"], (30, 24))
    write(realvsr / "GT" / "020", ["0"], (16, 24))
    write(realvsr / "LQ" / "020", ["0"], (16, 24))
    (realvsr / "LQ" / "020" / "0.png").write_bytes(b"no image")
    with pytest.raises(BadInputError) as caught:
        find_realvsr(realvsr, 4, drop_overlap=False)
    text = str(caught.value)
    for words in (
        "(6 faults)",
        "has 5 images",
        "001 has no counterpart",
        "image '00001' of",
        "expected equal numbers",
        "image '00002' of",
        "check --scale",
        "0.png is not an image",
    ):
        assert words in text, words
    assert "\n" not in text


def test_a_gap_in_both_sides_is_a_fault_and_a_steady_step_is_none(tmp_path: Path) -> None:
    for side in ("lq", "gt"):
        write(tmp_path / side / "a", ["f0", "f2", "f4"], (8, 8))
        write(tmp_path / side / "b", ["f0", "f1", "f3"], (8, 8))
        write(tmp_path / side / "c", ["x", "y"], (8, 8))
    with pytest.raises(BadInputError, match=r"1 faults.*image numbers of .*b have gaps: 1 to 3"):
        find_pairs(tmp_path / "lq", tmp_path / "gt", 1)


def test_names_may_carry_the_scale_or_another_word(tmp_path: Path) -> None:
    write(tmp_path / "lq" / "a", ["0001x4", "0002x4"], (8, 8))
    write(tmp_path / "gt" / "a", ["0001", "0002"], (32, 32))
    write(tmp_path / "lq" / "b", ["lq_1", "lq_2"], (8, 8))
    write(tmp_path / "gt" / "b", ["gt_1", "gt_2"], (32, 32))
    sources = find_pairs(tmp_path / "lq", tmp_path / "gt", 4)
    assert [(source.name, source.low_scale, source.split) for source in sources] == [("a", 4, None), ("b", 4, None)]


def test_pairs_of_both_kinds_in_one_set_are_refused(tmp_path: Path) -> None:
    for name, size in (("a", (8, 8)), ("b", (32, 32))):
        write(tmp_path / "lq" / name, ["1", "2"], size)
        write(tmp_path / "gt" / name, ["1", "2"], (32, 32))
    with pytest.raises(BadInputError, match="LQ has the size of GT in b but not elsewhere"):
        find_pairs(tmp_path / "lq", tmp_path / "gt", 4)


def test_the_scan_names_every_image_at_fault(tmp_path: Path) -> None:
    for side, size in (("lq", (8, 8)), ("gt", (16, 16))):
        write(tmp_path / side, numbers(5), size)
    write(tmp_path / "lq", ["00002"], (9, 8))
    whole = (tmp_path / "gt" / "00003.png").read_bytes()
    (tmp_path / "gt" / "00003.png").write_bytes(whole[:-15])
    (tmp_path / "gt" / "00004.png").write_bytes(b"")
    (source,) = find_pairs(tmp_path / "lq", tmp_path / "gt", 2)
    with pytest.raises(BadInputError) as caught:
        scan_pair(source, source.low_path)
    for words in ("00002.png is 8 x 9 px, expected 8 x 8", "00003.png is a PNG truncated", "00004.png is not an"):
        assert words in str(caught.value)


def test_the_hash_of_a_pair_follows_both_sides(tmp_path: Path) -> None:
    for side, size in (("lq", (8, 8)), ("gt", (16, 16))):
        write(tmp_path / side, ["1"], size)
    (source,) = find_pairs(tmp_path / "lq", tmp_path / "gt", 2)
    first = scan_pair(source, source.low_path).xxh3
    assert scan_pair(source, source.low_path).xxh3 == first
    assert cv2.imwrite(str(tmp_path / "lq" / "1.png"), np.ones((8, 8, 3), np.uint8))
    assert scan_pair(source, source.low_path).xxh3 != first
