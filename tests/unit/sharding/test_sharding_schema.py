from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.schema import (
    Clip,
    Index,
    Member,
    Shard,
    canonical_json,
    format_key,
    format_sequence,
    format_shard,
    is_valid_key,
    make_slug,
    member_names,
    parse_key,
    parse_sequence,
    parse_shard,
)


def make_index(**changes: object) -> Index:
    def clip(sequence: str, first: int) -> Clip:
        member = Member(f"{sequence}.hr.npy", 512, 100, (2, 4, 4, 3), "uint8", "ab", 640)
        key = format_key(sequence, first)
        return Clip(key, sequence, "train", "train-000000.tar", first, 2, {"hr": (member,), "lr": (member,)})

    index = Index(
        version=1,
        scale=4,
        codec="npy",
        clip_frames=2,
        degradation={"name": "bicubic"},
        sources=[{"name": "a", "num_frames": 4}],
        source_hash="cd",
        flow="none",
        shards=(Shard("train-000000.tar", "train", 2048, "ef"),),
        clips=(clip("b_s000", 2), clip("b_s000", 0), clip("a_s001", 0)),
    )
    return dataclasses.replace(index, **changes)  # type: ignore[arg-type]


@given(st.text())
def test_every_text_makes_a_slug_that_builds_a_valid_key(text: str) -> None:
    sequence = format_sequence(make_slug(text), 3)
    key = format_key(sequence, 17)
    assert is_valid_key(key)
    assert "." not in key
    assert parse_key(key) == (sequence, 17)
    assert len(f"{key}.flow.npy") <= 100


@given(st.from_regex(r"[a-z0-9_]{1,40}", fullmatch=True), st.integers(0, 5000), st.integers(0, 99_999_999))
def test_key_round_trip(slug: str, shot: int, frame: int) -> None:
    sequence, first = parse_key(format_key(format_sequence(slug, shot), frame))
    assert (parse_sequence(sequence), first) == ((slug, shot), frame)


@pytest.mark.parametrize("key", ["bikes-00000001", "bikes_s000-1", "Bikes_s000-00000001", "b.x_s000-00000001", ""])
def test_foreign_keys_are_refused(key: str) -> None:
    assert not is_valid_key(key)
    with pytest.raises(ValueError, match="bikes_s000-00000016"):
        parse_key(key)


def test_foreign_slugs_are_refused() -> None:
    with pytest.raises(ValueError, match="slug"):
        format_sequence("a.b", 0)


def test_text_order_of_keys_is_time_order() -> None:
    keys = [format_key("a_s000", frame) for frame in (0, 9, 10, 99, 100, 12345)]
    assert keys == sorted(keys)


def test_shard_names() -> None:
    assert format_shard("train", 7) == "train-000007.tar"
    assert parse_shard("train-000007.tar") == ("train", 7)
    assert parse_shard("train-7.tar") is None
    assert parse_shard("../train-000007.tar") is None


def test_member_names() -> None:
    assert member_names("k", "hr", "npy", 2) == ["k.hr.npy"]
    assert member_names("k", "hr", "png", 2) == ["k.hr.000.png", "k.hr.001.png"]
    assert member_names("k", "flow", "png", 2) == ["k.flow.npy"]


def test_index_survives_json_and_keeps_its_digest() -> None:
    index = make_index()
    again = Index.from_dict(json.loads(canonical_json(index.to_dict())))
    assert again == index
    assert again.digest == index.digest
    assert len(index.digest) <= 36
    assert int(index.digest, 16) >= 0


def test_digest_follows_every_field() -> None:
    index = make_index()
    digests = {index.digest, make_index(scale=2).digest, make_index(clips=index.clips[:1]).digest}
    assert len(digests) == 3


def test_sequences_are_in_time_order_and_of_one_split() -> None:
    index = make_index()
    found = index.sequences("train")
    assert list(found) == ["b_s000", "a_s001"]
    assert [clip.first_frame for clip in found["b_s000"]] == [0, 2]
    assert index.sequences("val") == {}
    assert index.splits == ("train",)
    assert index.clips[0].frame_shape("hr") == (4, 4, 3)


def test_a_shard_name_that_leaves_the_folder_is_refused() -> None:
    data = make_index().to_dict()
    data["shards"][0]["name"] = "../../train-000000.tar"
    with pytest.raises(ValueError, match="invalid shard names"):
        Index.from_dict(data)
