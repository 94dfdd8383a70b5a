"""A shard set behind an HTTP server that fails at times: fetched whole, once, or not at all."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from flaky_server import FlakyServer

from sharding.index import read_index
from vsr_dist.core.collectives import World
from vsr_dist.core.errors import BadConfigError, BadShardError, MissingExtraError
from vsr_dist.data.config import DataConfig
from vsr_dist.data.loader import TrainLoader, validation_batch
from vsr_dist.data.remote import Expected, Fetcher, HttpStore, make_store
from vsr_dist.data.shards import check_cache_size, num_shards_in_use, open_shard_set

SHARD = "train-000000.tar"


@pytest.fixture
def root(pack_films, tmp_path):
    """A set of its own, which a test may change. npy: two shards for training, one held out."""
    return shutil.copytree(pack_films("npy"), tmp_path / "set")


@pytest.fixture
def server(root):
    with FlakyServer(root).running() as running:
        yield running


@pytest.fixture
def config(server, tmp_path):
    return DataConfig(
        root=f"{server.address}/sets/films/",
        clip_frames=3,
        crop_px=10,
        val_crop_px=16,
        batch_clips=4,
        block_shards=1,
        cache_dir=str(tmp_path / "cache"),
        fetch_backoff_s=0.001,
        fetch_tries=3,
    )


def read_batches(config, num_steps=8, rank=0, world_size=1):
    loader = TrainLoader(config, open_shard_set(config), 5, World(rank, world_size), 1)
    batches = loader.batches(0)
    found = [(batch.names, batch.low_BTCHW.clone(), batch.real_BTCYX.clone()) for batch in islice(batches, num_steps)]
    batches.close()
    return found


def assert_equal(found, expected):
    assert [names for names, *_ in found] == [names for names, *_ in expected]
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one[1], two[1])
        assert torch.equal(one[2], two[2])


@pytest.mark.parametrize("order", ["shuffle", "block", "ordered"])
def test_a_remote_set_gives_the_batches_of_a_local_one_and_is_fetched_once(server, config, root, order):
    config = replace(config, order=order, reader_threads=3)
    expected = read_batches(replace(config, root=str(root)))
    assert_equal(read_batches(config), expected)
    assert_equal(read_batches(config), expected)
    shards = {shard.name for shard in read_index(root).shards if shard.split == "train"}
    assert len(shards) > 1
    assert server.num_gets == Counter(dict.fromkeys(shards, 1)) + Counter({"index.json": 2})


def test_validation_reads_remote_windows_too(server, config, root):
    remote = validation_batch(config, open_shard_set(config), 3)
    local = validation_batch(config, open_shard_set(replace(config, root=str(root))), 3)
    assert remote.names == local.names
    assert torch.equal(remote.real_BTCYX, local.real_BTCYX)


@pytest.mark.parametrize("fault", [500, 503, 429, "cut", "short", "flip"])
def test_a_fault_that_passes_is_tried_again(server, config, root, fault):
    server.faults = {SHARD: [fault, fault], "index.json": [500, "cut"]}
    assert_equal(read_batches(config), read_batches(replace(config, root=str(root))))
    assert server.num_gets[SHARD] == server.num_gets["index.json"] == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (500, "HTTP status 500"),
        ("cut", r"it ended \d+ bytes early"),
        ("short", r"it has \d+ bytes, expected \d+"),
        ("flip", r"its hash is [0-9a-f]{16}, expected [0-9a-f]{16}"),
    ],
)
def test_a_fault_that_stays_is_an_error_that_names_the_shard(server, config, tmp_path, fault, reason):
    server.faults = {SHARD: [fault] * 100}
    expected = rf"{SHARD} of {server.address}/sets/films cannot be fetched: {reason} .attempt 3 of 3"
    with pytest.raises(BadShardError, match=expected):
        read_batches(config)
    assert server.num_gets[SHARD] % 3 == 0
    assert not [path for path in (tmp_path / "cache/shards").iterdir() if SHARD in path.name]


def test_a_server_that_sends_more_than_the_index_says_is_cut_off(server, config, root):
    with (root / SHARD).open("ab") as shard:
        shard.truncate((root / SHARD).stat().st_size + (64 << 20))
    with pytest.raises(BadShardError, match=f"{SHARD} of .* cannot be fetched: it has more than the expected"):
        read_batches(config)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("name", "../../train-000000.tar", "invalid shard names"),
        ("name", "/etc/passwd", "invalid shard names"),
        ("xxh3", "../../../tmp/0123456", "has the hash '../../../tmp/0123456', expected 16 hex digits"),
        ("num_bytes", 10, "has members that are not inside"),
    ],
)
def test_an_index_that_leaves_its_folder_or_its_shards_is_refused(server, config, root, tmp_path, field, value, reason):
    index = json.loads((root / "index.json").read_text())
    old = index["shards"][0][field]
    index["shards"][0][field] = value
    if field == "name":
        for clip in index["clips"]:
            clip["shard"] = value if clip["shard"] == old else clip["shard"]
    (root / "index.json").write_text(json.dumps(index))
    for place in (config.root, str(root)):
        with pytest.raises(BadShardError, match=reason):
            open_shard_set(replace(config, root=place))
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_a_truncated_shard_is_no_bad_sample(server, config):
    """`replace` is for damaged clips; a shard that cannot be had stops the run."""
    server.faults = {SHARD: ["short"] * 100}
    with pytest.raises(BadShardError, match=f"{SHARD} of .* cannot be fetched"):
        read_batches(replace(config, on_bad_sample="replace"))


@pytest.mark.parametrize("status", [403, 404])
def test_a_fault_that_does_not_pass_ends_at_once(server, config, status):
    server.faults = {"index.json": [status]}
    with pytest.raises(BadShardError, match=rf"index.json of .*: HTTP status {status} \(attempt 1 of 3\)"):
        open_shard_set(config)
    assert server.num_gets["index.json"] == 1


def test_nobody_at_the_address_is_an_error_after_the_attempts(config):
    with pytest.raises(BadShardError, match=r"index.json of http://127.0.0.1:9 .*refused.*\(attempt 3 of 3\)"):
        open_shard_set(replace(config, root="http://127.0.0.1:9"))


def test_pauses_double_up_to_a_limit_and_are_shortened_at_random(server, tmp_path):
    pauses = []
    fetcher = Fetcher(server.address, HttpStore(server.address), 12, 0.5, pauses.append)
    server.faults = {SHARD: [503] * 11}
    with (tmp_path / "sink").open("w+b") as sink:
        fetcher.fetch(SHARD, sink)
        assert sink.seek(0, 2) == (server.folder / SHARD).stat().st_size
    assert len(pauses) == 11
    for number, pause_s in enumerate(pauses):
        whole_s = min(0.5 * 2**number, 30)
        assert whole_s / 2 <= pause_s <= whole_s
    assert len(set(pauses)) == 11


def test_a_cache_that_cannot_be_written_is_not_taken_for_a_fault_of_the_network(server):
    fetcher = Fetcher(server.address, HttpStore(server.address), 3, 0)
    with (
        open("/dev/full", "r+b", buffering=0) as sink,
        pytest.raises(BadShardError, match=r"writing to the cache failed"),
    ):
        fetcher.fetch(SHARD, sink, Expected(1 << 30, ""))
    assert server.num_gets[SHARD] == 1


def test_the_next_block_is_fetched_while_this_one_is_read(server, config):
    """The second shard is asked for although every batch delivered so far lies in the first."""
    config = replace(config, order="block", read_ahead_batches=1, batch_clips=1)
    loader = TrainLoader(config, open_shard_set(config), 5, World(), 1)
    first, second = (
        {loader.windows_of.index.shards[number].name for number in loader.order.shards_ahead(position)}
        for position in (-1, 0)
    )
    assert first.isdisjoint(second)
    batches = loader.batches(0)
    next(batches)
    for _ in range(200):
        if all(server.num_gets[name] for name in second):
            break
        next(batches)
    batches.close()
    assert all(server.num_gets[name] == 1 for name in first | second)


@pytest.mark.parametrize(
    ("change", "at_once", "advice"),
    [
        ({"order": "shuffle"}, 2, "use data.order=block"),
        ({"order": "block", "block_shards": 1}, 1, "lower data.block_shards"),
        ({"order": "ordered"}, 2, "lower data.batch_clips"),
    ],
)
def test_a_cache_too_small_for_the_order_is_refused(config, root, change, at_once, advice):
    index = read_index(root)
    config = replace(config, **change)
    assert num_shards_in_use(config, index) == at_once
    need_gb = sum(shard.num_bytes for shard in index.shards if shard.split == "train") / 1e9
    check_cache_size(replace(config, cache_gb=need_gb), index)
    with pytest.raises(BadConfigError, match=rf"data.cache_gb is .*, expected at least .*{advice}, or raise"):
        open_shard_set(replace(config, cache_gb=need_gb * 0.99))


def test_other_schemes_and_a_missing_extra_are_explained(monkeypatch):
    with pytest.raises(BadConfigError, match=r"data.root is gs://x/y; expected a folder or a URL with one of s3, http"):
        open_shard_set(DataConfig(root="gs://x/y"))
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtraError, match=r"data.root s3://bucket/set needs the extra 's3' .*boto3"):
        make_store("s3://bucket/set", "")


@pytest.mark.parametrize("root", ["s3://", "http://", "https:///sets/films"])
def test_an_address_without_a_place_is_explained(root):
    with pytest.raises(BadConfigError, match="has no bucket or host"):
        make_store(root, "")
