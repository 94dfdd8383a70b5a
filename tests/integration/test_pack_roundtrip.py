from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset as wds
from pack_runs import CLIPS, contents

from sharding.degrade import RECIPES, crop_to_multiple
from sharding.errors import BadShardError
from sharding.flow import clip_flow
from sharding.index import load_index, read_index, rebuild_index
from sharding.inspect import read_frame
from sharding.pack import PackJob, merge, pack
from sharding.plan import PackOptions
from sharding.schema import Index
from sharding.verify import verify
from sharding.video import iter_frames


def make(out: Path, *names: str, num_workers: int = 1, **options: object) -> Index:
    sources = tuple(CLIPS.get(name, Path(name)) for name in names)
    job = PackJob(out, sources, options=PackOptions(**options), num_workers=num_workers)  # type: ignore[arg-type]
    index = pack(job).index
    assert index is not None
    return index


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    out = tmp_path_factory.mktemp("demo") / "set"
    return out, make(out, "bikes", "carphone_pristine", holdout_tail=0.2, shard_bytes=40_000_000)


def test_every_frame_is_there_once_in_order_and_exact(demo: tuple[Path, Index]) -> None:
    root, index = demo
    assert read_index(root) == index
    assert index.splits == ("train", "val")
    for name in ("bikes", "carphone_pristine"):
        seen = {}
        for split in index.splits:
            for sequence, clips in index.sequences(split).items():
                if not sequence.startswith(name):
                    continue
                for clip in clips:
                    for number in range(clip.num_frames):
                        seen[clip.first_frame + number] = (clip, number, split)
        frames = list(iter_frames(CLIPS[name]))
        assert sorted(seen) == list(range(len(frames)))
        for number, frame in enumerate(frames):
            clip, place, split = seen[number]
            assert split == ("val" if number >= len(frames) - round(len(frames) * 0.2) else "train")
            if number % 23 and number not in (29, 30, 199, 200):
                continue
            high = crop_to_multiple(frame, 4)
            np.testing.assert_array_equal(read_frame(root, index, clip, "hr", place), high)
            expected = RECIPES["bicubic"].apply(np.ascontiguousarray(high), 4)
            np.testing.assert_array_equal(read_frame(root, index, clip, "lr", place), expected)


def test_no_sequence_crosses_a_cut_or_a_shard(demo: tuple[Path, Index]) -> None:
    _, index = demo
    for split in index.splits:
        for clips in index.sequences(split).values():
            assert len({clip.shard for clip in clips}) == 1
            first, last = clips[0].first_frame, clips[-1].first_frame + clips[-1].num_frames
            if clips[0].sequence.startswith("bikes"):
                assert not any(first < cut < last for cut in (30, 76, 137, 187, 242))


def test_a_member_can_be_mapped_at_its_data_offset(demo: tuple[Path, Index]) -> None:
    root, index = demo
    clip = index.sequences("val")["carphone_pristine_s001"][0]
    (member,) = clip.members["lr"]
    mapped = np.memmap(root / clip.shard, np.uint8, "r", member.data_offset, member.shape)
    assert mapped.shape == (16, 36, 44, 3)
    np.testing.assert_array_equal(mapped[5], read_frame(root, index, clip, "lr", 5))


def test_plain_webdataset_reads_the_clips_in_order(demo: tuple[Path, Index]) -> None:
    root, index = demo
    urls = [str(root / shard.name) for shard in index.shards if shard.split == "train"]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    clips = [clip for clip in index.clips if clip.split == "train"]
    assert [sample["__key__"] for sample in samples] == [clip.key for clip in clips]
    for sample, clip in zip(samples, clips, strict=True):
        assert sample["hr.npy"].dtype == np.uint8
        assert sample["hr.npy"].shape == clip.members["hr"][0].shape
        assert sample["lr.npy"].shape == clip.members["lr"][0].shape
        assert sample["json"]["frames"] == list(range(clip.first_frame, clip.first_frame + clip.num_frames))
        assert clip.sequence.startswith(sample["json"]["source"])
    np.testing.assert_array_equal(samples[3]["lr.npy"][2], read_frame(root, index, clips[3], "lr", 2))
    times = [time for sample in samples[:2] for time in sample["json"]["times_s"]]
    np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=1e-6)


def test_the_index_can_be_rebuilt_from_the_shards(demo: tuple[Path, Index]) -> None:
    root, index = demo
    assert rebuild_index(root) == index
    assert rebuild_index(root).digest == index.digest
    with pytest.raises(BadShardError, match="has no shards"):
        rebuild_index(root / "nowhere")


def write_images(folder: Path, frames: Iterable[np.ndarray]) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        assert cv2.imwrite(str(folder / f"{number}.png"), frame[..., ::-1])
    return folder


def test_the_bytes_are_the_same_for_any_number_of_workers_and_of_parts(
    tmp_path: Path, films: dict[str, np.ndarray]
) -> None:
    options = {"holdout_tail": 0.25, "shard_bytes": 1, "flow": "dis", "scale": 2}
    # A video, whose second shard starts by seeking, and a folder with a cut.
    names = ("carphone_distorted", str(write_images(tmp_path / "walk", films["walk"])))
    first = make(tmp_path / "one", *names, num_workers=1, **options)
    make(tmp_path / "two", *names, num_workers=2, **options)
    expected = contents(tmp_path / "one")
    assert len(first.shards) == 5
    assert contents(tmp_path / "two") == expected
    job = PackJob(
        tmp_path / "parts",
        (CLIPS[names[0]], Path(names[1])),
        options=PackOptions(**options),  # type: ignore[arg-type]
    )
    assert pack(dataclasses.replace(job, part=(1, 2))).index is None
    with pytest.raises(BadShardError, match=r"train-000000\.tar, train-000002\.tar"):
        merge(tmp_path / "parts")
    with pytest.raises(BadShardError, match=r"has no index\.json"):
        read_index(tmp_path / "parts")
    pack(dataclasses.replace(job, part=(0, 2)))
    assert merge(tmp_path / "parts").digest == first.digest
    assert contents(tmp_path / "parts") == expected


@pytest.mark.parametrize("codec", ["png", "webp", "jpg"])
def test_image_codecs_keep_one_member_per_frame(tmp_path: Path, codec: str) -> None:
    frames = list(islice(iter_frames(CLIPS["carphone_distorted"]), 24))
    root = tmp_path / "set"
    index = make(root, str(write_images(tmp_path / "f", frames)), codec=codec, clip_frames=10, flow="farneback")
    assert verify(root) == []
    assert rebuild_index(root) == index
    clip = index.clips[1]
    assert [len(clip.members[field]) for field in ("hr", "lr", "flow")] == [10, 10, 1]
    assert clip.members["hr"][7].name == f"{clip.key}.hr.007.{codec}"
    got = read_frame(root, index, clip, "hr", 7).astype(int)
    if codec == "jpg":
        assert np.abs(got - frames[17]).mean() < 4
    else:
        np.testing.assert_array_equal(got, frames[17])
    (sample, *_) = wds.WebDataset(str(root / clip.shard), shardshuffle=False).decode("rgb8")
    assert sample["hr.009." + codec].shape == (144, 176, 3)


def test_flow_is_that_of_the_stored_lr_frames(tmp_path: Path) -> None:
    index = make(tmp_path, "carphone_pristine", flow="dis", clip_frames=7)
    clip = index.clips[-1]
    assert clip.num_frames == 1
    assert clip.members["flow"][0].shape == (0, 2, 36, 44, 2)
    clip = index.clips[4]
    (member,) = clip.members["flow"]
    stored = np.memmap(tmp_path / clip.shard, np.int16, "r", member.data_offset, member.shape)
    low = [read_frame(tmp_path, index, clip, "lr", number) for number in range(clip.num_frames)]
    np.testing.assert_array_equal(stored, clip_flow(low, "dis"))
    assert verify(tmp_path) == []


def test_sizes_that_are_no_multiple_are_cropped_at_the_right_and_bottom(tmp_path: Path) -> None:
    index = make(tmp_path, "carphone_distorted", scale=3)
    clip = index.clips[0]
    assert clip.frame_shape("hr") == (144, 174, 3)
    assert clip.frame_shape("lr") == (48, 58, 3)
    first = next(iter(iter_frames(CLIPS["carphone_distorted"])))
    np.testing.assert_array_equal(read_frame(tmp_path, index, clip, "hr", 0), first[:, :174])


def test_the_index_names_recipe_and_sources(demo: tuple[Path, Index]) -> None:
    root, _ = demo
    index = load_index(root)
    assert index.degradation == {"name": "bicubic", "a": -0.5, "antialias": True, "centres": "half-pixel"}
    assert [source["name"] for source in index.sources] == ["bikes", "carphone_pristine"]
    assert index.sources[1]["fps"] == "30000/1001"
    assert index.sources[0]["size"] == [272, 640]
    assert [shot[0] for shot in index.sources[0]["shots"]] == [0, 30, 76, 137, 187, 242]
    assert not any(str(root) in str(value) for value in index.sources)
