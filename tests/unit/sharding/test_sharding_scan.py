from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import sharding.scan
from sharding.errors import BadInputError
from sharding.parallel import Workers
from sharding.scan import ScanStore, scan_sources
from sharding.sources import ScannedSource, Source, find_samples, find_sources

CLIPS = {path.stem: path for path in find_samples()}
NAMES = ("bikes", "carphone_pristine", "carphone_distorted")


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return find_sources([CLIPS[name] for name in NAMES])


def scan(sources: list[Source], store: ScanStore, part: tuple[int, int] | None = None) -> list[ScannedSource]:
    with Workers(1) as workers:
        return scan_sources(sources, workers, store, part)


def refuse(*args: object) -> None:
    raise AssertionError("decoded again")


def test_a_kept_scan_stands_in_for_decoding(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ScanStore(tmp_path / "scans", eager=False)
    first = scan(sources, store)
    assert not store.folder.exists()
    store.sync(first)
    assert sorted(path.stem for path in store.folder.iterdir()) == sorted(scanned.xxh3 for scanned in first)
    monkeypatch.setattr(sharding.scan, "scan_frames", refuse)
    assert scan(sources, store) == first
    moved = [
        replace(source, path=source.path.parent / ".." / source.path.parent.name / source.path.name)
        for source in sources
    ]
    assert [scanned.xxh3 for scanned in scan(moved, store)] == [scanned.xxh3 for scanned in first]


def test_scans_of_other_content_or_detector_are_not_used(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ScanStore(tmp_path / "scans", eager=False)
    store.sync(scan(sources[1:2], store))
    (path,) = store.folder.iterdir()
    monkeypatch.setattr(sharding.scan, "scan_frames", refuse)
    with pytest.raises(AssertionError):
        scan(sources[2:], store)
    monkeypatch.setattr(sharding.scan, "DETECTOR", [0])
    with pytest.raises(AssertionError):
        scan(sources[1:2], store)
    monkeypatch.undo()
    path.write_text("{")
    again = scan(sources[2:], store)
    store.sync(again)
    assert [path.stem for path in store.folder.iterdir()] == [again[0].xxh3]


@pytest.mark.parametrize("part", [(0, 3), (1, 3), (2, 3), (3, 5)])
def test_every_part_gets_all_scans_in_order_and_keeps_them_at_once(
    sources: list[Source], tmp_path: Path, part: tuple[int, int]
) -> None:
    store = ScanStore(tmp_path / "scans", eager=True)
    scans = scan(sources, store, part)
    assert [scanned.source.name for scanned in scans] == list(NAMES)
    assert len(list(store.folder.iterdir())) == 3
    assert scan(sources, store) == scans


def test_the_decoders_threads_change_nothing(sources: list[Source], tmp_path: Path) -> None:
    store = ScanStore(tmp_path, eager=False)
    with Workers(3) as workers:
        (one,) = scan_sources(sources[:1], workers, store)
    assert [one] == scan(sources[:1], store)


def test_faults_of_all_sources_come_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number, size in ((0, 8), (1, 9)):
            assert cv2.imwrite(str(tmp_path / name / f"{number}.png"), np.zeros((size, 8, 3), np.uint8))
    sources = find_sources([tmp_path / "a", tmp_path / "b", CLIPS["carphone_pristine"]])
    with pytest.raises(BadInputError) as caught:
        scan(sources, ScanStore(tmp_path / "scans", eager=False))
    assert str(caught.value).count("expected images of one size") == 2
