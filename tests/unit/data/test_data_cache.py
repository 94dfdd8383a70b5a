"""The cache of remote shards, seen from several processes: one fetch, a bound, nothing thrown away that is in use."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xxhash
from flaky_server import FlakyServer

from sharding.schema import Shard
from vsr_dist.core.errors import BadConfigError
from vsr_dist.data.remote import Fetcher, HttpStore, ShardCache
from vsr_dist.data.shards import open_cached

SHARD_BYTES = 100_000
# A reader of its own process: opens shards and says what it read.
READER = """
import sys, pathlib
from sharding.schema import Shard
from vsr_dist.data.remote import Fetcher, HttpStore, ShardCache
from vsr_dist.data.shards import open_cached
address, folder, max_bytes, *shards = sys.argv[1:]
cache = ShardCache(pathlib.Path(folder), int(max_bytes), Fetcher(address, HttpStore(address), 1, 0))
for text in shards:
    name, num_bytes, xxh3 = text.split(",")
    shard = open_cached(cache, Shard(name, "train", int(num_bytes), xxh3))
    print(name, int(shard.data[0]), int(shard.data.sum(dtype="u8")), flush=True)
    shard.close()  # the map, and with it the lock, stays until the next shard takes its place
"""


@pytest.fixture
def shards(tmp_path):
    """Six files of random bytes, and what an index would say of them."""
    (tmp_path / "remote").mkdir()
    found = []
    for number in range(6):
        data = np.random.default_rng(number).bytes(SHARD_BYTES)
        name = f"train-{number:06d}.tar"
        (tmp_path / "remote" / name).write_bytes(data)
        found.append(Shard(name, "train", SHARD_BYTES, xxhash.xxh3_64_hexdigest(data)))
    return found


@pytest.fixture
def server(shards, tmp_path):
    with FlakyServer(tmp_path / "remote").running() as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def make_cache(server, folder, num_shards):
    fetcher = Fetcher(server.address, HttpStore(server.address), 1, 0)
    return ShardCache(folder, num_shards * SHARD_BYTES, fetcher)


def start_reader(server, folder, num_shards, shards, last_words=""):
    texts = [f"{shard.name},{shard.num_bytes},{shard.xxh3}" for shard in shards]
    command = [sys.executable, "-c", READER + last_words, server.address, str(folder), str(num_shards * SHARD_BYTES)]
    return subprocess.Popen([*command, *texts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def size_of(folder):
    """Bytes of all files in a folder that others change at the same time."""
    total = 0
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            total += os.stat(folder / name).st_size
    return total


def kept(folder):
    return sorted(int(path.name.split("-")[-1].partition(".")[0]) for path in (folder / "shards").iterdir())


def use(cache, shard):
    """Open a shard and let it go; its time stamp is a moment of its own."""
    time.sleep(0.005)
    open_cached(cache, shard).close()


def test_processes_that_come_together_fetch_once(server, folder, shards):
    server.delay_s = 0.3
    readers = [start_reader(server, folder, 6, shards[:3]) for _ in range(3)]
    outputs = [reader.communicate(timeout=60)[0] for reader in readers]
    assert all(reader.returncode == 0 for reader in readers)
    assert len(set(outputs)) == 1
    assert outputs[0].count("\n") == 3
    assert server.num_gets == {shard.name: 1 for shard in shards[:3]}


def test_what_was_used_longest_ago_goes_first(server, folder, shards):
    cache = make_cache(server, folder, 3)
    for number in (0, 1, 2, 0, 3):
        use(cache, shards[number])
    assert kept(folder) == [0, 2, 3]
    use(cache, shards[1])
    assert kept(folder) == [0, 1, 3]
    assert server.num_gets == {shards[0].name: 1, shards[1].name: 2, shards[2].name: 1, shards[3].name: 1}


def test_a_shard_in_use_is_kept_and_stays_readable(server, folder, shards):
    cache = make_cache(server, folder, 3)
    held = open_cached(cache, shards[0])
    for number in (1, 2, 3, 4):
        use(cache, shards[number])
    assert kept(folder) == [0, 3, 4]
    assert xxhash.xxh3_64_hexdigest(held.data) == shards[0].xxh3
    held.close()
    del held
    use(cache, shards[5])
    assert kept(folder) == [3, 4, 5]


def test_a_shard_in_use_by_another_process_is_kept(server, folder, shards):
    reader = start_reader(server, folder, 3, shards[:1], "sys.stdin.read()")
    assert reader.stdout.readline().startswith(shards[0].name)
    cache = make_cache(server, folder, 3)
    for number in (1, 2, 3, 4):
        use(cache, shards[number])
    assert 0 in kept(folder)
    reader.communicate(timeout=30)
    use(cache, shards[5])
    assert 0 not in kept(folder)


def test_a_full_cache_asks_this_process_to_let_go_and_then_says_what_to_do(server, folder, shards):
    cache = make_cache(server, folder, 2)
    held = [open_cached(cache, shard) for shard in shards[:2]]
    with pytest.raises(BadConfigError, match=r"train-000002.tar .* in use and data.cache_gb is 0.0002;"):
        open_cached(cache, shards[2])

    def let_go():
        while held:
            held.pop().close()

    cache.close_idle = let_go
    use(cache, shards[2])
    assert kept(folder) == [1, 2]


def test_the_bound_holds_at_every_moment(server, folder, shards):
    """Two processes fetch six shards through a cache of four, each in its own order, while the size is watched.

    Each has one shard open while it fetches the next, so four must do.
    """
    server.delay_s = 0.02
    readers = [start_reader(server, folder, 4, order) for order in (shards, shards[::-1])]
    largest = 0
    while any(reader.poll() is None for reader in readers):
        if (folder / "shards").is_dir():
            largest = max(largest, size_of(folder / "shards"))
    assert [reader.returncode for reader in readers] == [0, 0]
    assert SHARD_BYTES < largest <= 4 * SHARD_BYTES
    sums = [sorted(reader.communicate()[0].splitlines()) for reader in readers]
    assert sums[0] == sums[1]
    assert len(sums[0]) == 6


def test_a_fetch_that_was_killed_leaves_nothing_that_passes_for_whole(server, folder, shards):
    server.delay_s = 5
    reader = start_reader(server, folder, 3, shards[:1])
    part = folder / "shards" / f"{shards[0].xxh3}-{shards[0].name}"
    part = part.with_suffix(".part")
    for _ in range(1000):
        if part.exists():
            break
        time.sleep(0.01)
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    assert [path.name for path in (folder / "shards").iterdir()] == [part.name]
    server.delay_s = 0
    cache = make_cache(server, folder, 3)
    for number in (1, 2, 3):
        use(cache, shards[number])
    assert kept(folder) == [1, 2, 3]
    opened = open_cached(cache, shards[0])
    assert xxhash.xxh3_64_hexdigest(opened.data) == shards[0].xxh3


def test_a_set_that_has_changed_under_its_address_is_fetched_anew(server, folder, shards):
    cache = make_cache(server, folder, 3)
    use(cache, shards[0])
    data = np.random.default_rng(99).bytes(SHARD_BYTES)
    (server.folder / shards[0].name).write_bytes(data)
    changed = Shard(shards[0].name, "train", SHARD_BYTES, xxhash.xxh3_64_hexdigest(data))
    assert bytes(open_cached(cache, changed).data) == data
    assert server.num_gets[shards[0].name] == 2
