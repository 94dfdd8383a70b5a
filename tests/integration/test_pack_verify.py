"""Every kind of damage, one at a time, and several at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pack_runs import CLIPS

from sharding.errors import BadShardError
from sharding.index import load_index, read_index, rebuild_index
from sharding.pack import PackJob, pack
from sharding.plan import PackOptions
from sharding.verify import verify
from vsr_dist.core.collectives import World
from vsr_dist.data.config import DataConfig
from vsr_dist.data.loader import TrainLoader, validation_batch
from vsr_dist.data.shards import open_shard_set

TRAIN, VAL = "train-000000.tar", "val-000000.tar"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clean") / "set"
    pack(PackJob(out, (CLIPS["carphone_distorted"],), options=PackOptions(holdout_tail=0.5, flow="dis")))
    return out


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "set"))


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((root / "index.json").read_bytes())
    change(data)
    (root / "index.json").write_text(json.dumps(data))


def flip_in_frame(root: Path) -> None:
    member = load_index(root).clips[1].members["hr"][0]
    flip(root / TRAIN, member.data_offset + 12345)


def flip_in_header(root: Path) -> None:
    flip(root / TRAIN, load_index(root).clips[2].members["lr"][0].offset - 400)


def flip_in_padding(root: Path) -> None:
    flip(root / VAL, (root / VAL).stat().st_size - 1)


def truncate_between_members(root: Path) -> None:
    member = load_index(root).clips[2].members["lr"][0]
    data = (root / TRAIN).read_bytes()
    (root / TRAIN).write_bytes(data[: member.offset - 512])


def truncate_in_member(root: Path) -> None:
    (root / VAL).write_bytes((root / VAL).read_bytes()[:100_000])


def reorder_frames(root: Path) -> None:
    """Swap two frame numbers inside a json member; same length, so only the content tells."""
    data = (root / TRAIN).read_bytes()
    assert data.count(b"[16,17,18,") == 1
    (root / TRAIN).write_bytes(data.replace(b"[16,17,18,", b"[17,16,18,"))


def reorder_clips(root: Path) -> None:
    def swap(data: dict[str, Any]) -> None:
        clips = data["clips"]
        clips[0], clips[1] = clips[1], clips[0]

    edit(root, swap)


def append_bytes(root: Path) -> None:
    with (root / VAL).open("ab") as file:
        file.write(bytes(512))


def wrong_shape(root: Path) -> None:
    edit(root, lambda data: data["clips"][0]["members"]["hr"][0].update(shape=[16, 144, 172, 3]))


def wrong_offset(root: Path) -> None:
    edit(root, lambda data: data["clips"][3]["members"]["lr"][0].update(data_offset=7))


def drop_clip(root: Path) -> None:
    edit(root, lambda data: data["clips"].pop(1))


def drop_field(root: Path) -> None:
    edit(root, lambda data: data["clips"][1]["members"].pop("flow"))


def drop_shard(root: Path) -> None:
    edit(root, lambda data: data["shards"].pop(1))


def add_a_stranger(root: Path) -> None:
    shutil.copy(root / TRAIN, root / "train-000001.tar")


MATRIX: list[tuple[Callable[[Path], Any], list[str]]] = [
    (flip_in_frame, [f"{TRAIN}: its hash", "00000016.hr.npy' is damaged"]),
    (flip_in_header, [f"{TRAIN}: its hash", "has a damaged tar header"]),
    (flip_in_padding, [f"{VAL}: its hash", "damaged end-of-archive marker"]),
    (truncate_between_members, [f"{TRAIN}: has", "truncated", "00000032.lr.npy' is damaged"]),
    (truncate_in_member, [f"{VAL}: has", "truncated"]),
    (append_bytes, [f"{VAL}: has", "bytes, expected "]),
    (lambda root: (root / TRAIN).unlink(), [f"{TRAIN}: is missing"]),
    (add_a_stranger, ["train-000001.tar: is in the folder"]),
    (lambda root: shutil.copy(root / TRAIN, root / VAL), [f"{VAL}: its hash", "where the index expects"]),
    (reorder_frames, [f"{TRAIN}: its hash", "frames out of order"]),
    (reorder_clips, ["is out of order: expected frame"]),
    (wrong_shape, ["does not match its clip", "the index says uint8 (16, 144, 172, 3)"]),
    (wrong_offset, ["data offset that is not the end of its header"]),
    (drop_clip, ["out of order", "where the index expects"]),
    (drop_field, ["has the fields ['hr', 'lr']"]),
    (drop_shard, ["which is not listed", f"{VAL}: is in the folder but not in the index"]),
    (lambda root: (root / "index.json").unlink(), ["no index.json"]),
    (lambda root: (root / "index.json").write_text("{"), ["is not valid JSON"]),
    (lambda root: (root / "index.json").write_text("[]"), ["format version None"]),
    (lambda root: edit(root, lambda data: data.update(version=2)), ["format version 2"]),
    (lambda root: edit(root, lambda data: data.pop("scale")), ["does not have the expected fields"]),
]


def test_a_clean_set_has_no_fault(clean: Path) -> None:
    assert verify(clean) == []


@pytest.mark.parametrize(("damage", "expected"), MATRIX, ids=[f"{number}" for number in range(len(MATRIX))])
def test_each_damage_is_found_and_named(root: Path, damage: Callable[[Path], Any], expected: list[str]) -> None:
    damage(root)
    faults = verify(root)
    for words in expected:
        assert any(words in fault for fault in faults), faults


def read_an_epoch(root: Path) -> None:
    """What training reads of a set: every window, and the held-out ones."""
    config = DataConfig(root=str(root), clip_frames=5, crop_px=16, val_crop_px=16, batch_clips=4, flow=True)
    shards = open_shard_set(config)
    loader = TrainLoader(config, shards, 0, World(), 1)
    validation_batch(config, shards, config.clip_frames)
    with closing(loader.batches(0)) as batches:
        for _ in range(len(loader.windows) // config.batch_clips + 1):
            next(batches)


def test_training_reads_a_clean_set_and_minds_no_stranger_beside_it(clean: Path, root: Path) -> None:
    read_an_epoch(clean)
    add_a_stranger(root)
    read_an_epoch(root)


@pytest.mark.parametrize(
    "damage", [damage for damage, _ in MATRIX if damage is not add_a_stranger], ids=[f"{n}" for n in range(20)]
)
def test_training_on_a_damaged_set_stops_with_shard_or_sample_named(root: Path, damage: Callable[[Path], Any]) -> None:
    damage(root)
    with pytest.raises(BadShardError, match=r"(train|val)-000000\.tar|_s00[01]-\d{8}|index\.json"):
        read_an_epoch(root)


def test_all_faults_come_at_once(root: Path) -> None:
    flip_in_frame(root)
    wrong_offset(root)
    truncate_in_member(root)
    faults = verify(root)
    assert {fault.partition(":")[0] for fault in faults} == {"index", TRAIN, VAL}
    assert len(faults) >= 4


def test_an_index_of_another_set_is_told(clean: Path, root: Path, tmp_path: Path) -> None:
    """Same clip, same layout, same sizes of shards: only the recipe differs."""
    options = PackOptions(holdout_tail=0.5, flow="dis", degradation="blur_decimate")
    pack(PackJob(tmp_path / "other", (CLIPS["carphone_distorted"],), options=options))
    shutil.copy(tmp_path / "other" / "index.json", root / "index.json")
    faults = verify(root)
    for shard in (TRAIN, VAL):
        assert f"{shard}: belongs to another data set than the index: they differ in degradation" in faults
        assert any(fault.startswith(f"{shard}: its hash") for fault in faults)


def test_every_flipped_byte_is_found(root: Path) -> None:
    size = (root / VAL).stat().st_size
    for position in range(0, size, size // 9):
        flip(root / VAL, position)
        assert verify(root), position
        flip(root / VAL, position)
    assert verify(root) == []


def test_read_index_names_all_faulty_shards_in_one_line(root: Path) -> None:
    (root / TRAIN).unlink()
    append_bytes(root)
    with pytest.raises(BadShardError) as caught:
        read_index(root)
    text = str(caught.value)
    assert f"{TRAIN} is missing" in text
    assert f"{VAL} has" in text
    assert "rerun pack" in text
    assert "\n" not in text


@pytest.mark.parametrize("damage", [flip_in_header, truncate_in_member, append_bytes])
def test_rebuild_refuses_a_damaged_shard(root: Path, damage: Callable[[Path], Any]) -> None:
    damage(root)
    with pytest.raises(BadShardError, match="cannot be read"):
        rebuild_index(root)
