"""Open, read and check shards: memory-mapped files of a local data set, or of a remote one in the node's cache.

The kernel's readahead is meant for sequential reading; for a crop it would read several times the bytes that are
needed. It is switched off here: the byte ranges of a crop are requested in parallel before it is copied.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from sharding.index import read_index
from sharding.schema import Clip, Index, Member, Shard
from sharding.verify import layout_faults
from vsr_dist.core.errors import BadConfigError, BadShardError
from vsr_dist.data.config import DataConfig
from vsr_dist.data.remote import Fetcher, ShardCache, is_remote, make_store

Bytes = npt.NDArray[np.uint8]
# Limited by the open files of a process (usually 1024); each shard needs two.
MAX_SHARDS_OPEN = 256
_HASH_BYTES = 1 << 20
_PAGE_BYTES = mmap.PAGESIZE


class OpenShard:
    """One shard, mapped read-only. With `locked`, a shared lock until it is closed prevents its deletion."""

    def __init__(self, path: Path, *, locked: bool = False) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._file)
        if locked:
            fcntl.flock(self._file, fcntl.LOCK_SH)
        self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
        self.data: Bytes = np.frombuffer(self._map, dtype=np.uint8)
        self._address = self.data.ctypes.data
        self.arrays: dict[str, npt.NDArray[np.generic]] = {}

    def close(self) -> None:
        """Close the file; the map, and with it the lock, is released when no array refers to it any more."""
        self.arrays.clear()
        self._close()

    def is_published(self) -> bool:
        """False if the file was deleted or replaced since it was opened."""
        try:
            on_disk = self.path.stat()
        except FileNotFoundError:
            return False
        opened = os.fstat(self._file)
        return (opened.st_dev, opened.st_ino) == (on_disk.st_dev, on_disk.st_ino)

    def array(self, member: Member) -> npt.NDArray[np.generic]:
        """An npy member as a view of the map, with shape and dtype from the index."""
        if member.name not in self.arrays:
            dtype = np.dtype(member.dtype)
            end = member.data_offset + int(np.prod(member.shape)) * dtype.itemsize
            self.arrays[member.name] = self.data[member.data_offset : end].view(dtype).reshape(member.shape)
        return self.arrays[member.name]

    def payload(self, member: Member) -> bytes:
        """All bytes of a member. Raises BadShardError if the file ends before it."""
        data = os.pread(self._file, member.num_bytes, member.offset)
        if len(data) != member.num_bytes:
            raise BadShardError(f"{self.path} ends inside {member.name}; it was truncated while in use")
        return data

    def hexdigest(self, member: Member) -> str:
        """xxh3_64 of a member's bytes, in hex."""
        state = xxhash.xxh3_64()
        end = member.offset + member.num_bytes
        for offset in range(member.offset, end, _HASH_BYTES):
            state.update(os.pread(self._file, min(_HASH_BYTES, end - offset), offset))
        return str(state.hexdigest())

    def is_resident(self, offset: int, num_bytes: int) -> bool:
        """True if all pages of a range are in memory."""
        first = offset // _PAGE_BYTES * _PAGE_BYTES
        pages = (ctypes.c_ubyte * ((offset + num_bytes - first + _PAGE_BYTES - 1) // _PAGE_BYTES))()
        if _mincore(self._address + first, offset + num_bytes - first, pages):
            return True  # unknown on this system: the copy then reads what is missing, page by page
        return 0 not in bytes(pages)

    def will_need(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Request (offset, number of bytes) ranges from the disk, all at once, without waiting."""
        for offset, num_bytes in ranges:
            os.posix_fadvise(self._file, offset, num_bytes, os.POSIX_FADV_WILLNEED)


def _load_mincore() -> Callable[[int, int, ctypes.Array[ctypes.c_ubyte]], int]:
    """The system call `mincore`, which Python does not have; it takes 1 us, so the interpreter's lock is kept."""
    function = ctypes.PyDLL(None).mincore
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)

    def call(address: int, num_bytes: int, pages: ctypes.Array[ctypes.c_ubyte]) -> int:
        return int(function(address, num_bytes, pages))

    return call


_mincore = _load_mincore()


class ShardSet:
    """The shards of one data set, opened at first use. Thread-safe.

    `opener` opens a shard by its name. If more than `max_open` are open, the least recently used are closed.
    """

    def __init__(
        self, root: str, index: Index, opener: Callable[[str], OpenShard], max_open: int = MAX_SHARDS_OPEN
    ) -> None:
        self.root, self.index, self.max_open = root, index, max_open
        self._opener = opener
        self._open: OrderedDict[str, OpenShard] = OrderedDict()
        self._users: dict[str, int] = {}
        self._opening: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def fetch(self, name: str) -> None:
        """Make sure that a shard is on this machine; local shards always are."""

    def close_idle(self, keep: int = 0) -> None:
        """Close shards that no thread uses, least recently used first, until `keep` are open."""
        with self._lock:
            idle = [name for name in self._open if not self._users.get(name)]
            for name in idle[: max(0, len(self._open) - keep)]:
                self._open.pop(name).close()

    def acquire(self, name: str) -> OpenShard:
        """An open shard, which stays open at least until it is released."""
        with self._lock:
            self._users[name] = self._users.get(name, 0) + 1
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
            opening = self._opening.setdefault(name, threading.Lock())
        try:
            with opening:
                with self._lock:
                    if name in self._open:
                        return self._open[name]
                shard = self._opener(name)
                with self._lock:
                    self._open[name] = shard
        except BaseException:
            self.release(name)
            raise
        return shard

    def release(self, name: str) -> None:
        """The caller of `acquire` no longer uses the shard."""
        with self._lock:
            self._users[name] -= 1
        if len(self._open) > self.max_open:
            self.close_idle(self.max_open)


class BadSampleError(BadShardError):
    """The content of one clip is damaged; `data.on_bad_sample` decides whether the run stops."""


class FirstUseChecks:
    """Compares what this process reads with the index, so that damage is never trained on. Thread-safe.

    At the first use of a shard: its tar headers, the frame numbers and times of its clips, and its description of the
    data set. At the first use of a clip: the hashes of its memory-mapped fields (codec npy, flow). Images: the hash,
    each time one is decoded.
    """

    def __init__(self, root: str, index: Index) -> None:
        self.root, self.index = root, index
        self._clips = index.clips_by_shard()
        self._shards: set[str] = set()
        self._is_intact: dict[str, bool] = {}
        # Keys of checked clips, without and with flow.
        self._checked: tuple[set[str], set[str]] = (set(), set())

    def check_clip(self, clip: Clip, with_flow: bool, shard: OpenShard) -> None:
        """Raise BadShardError if the shard does not match the index, BadSampleError if a field of the clip is damaged.

        Of an image codec only the flow is memory-mapped and checked here.
        """
        checked = self._checked[with_flow]
        if clip.key in checked:
            return
        if clip.shard not in self._shards:
            self._check_layout(clip.shard, shard)
            self._shards.add(clip.shard)
        mapped = ("lr", "hr") if self.index.codec == "npy" else ()
        for field in (*mapped, "flow") if with_flow else mapped:
            (member,) = clip.members[field]
            is_intact = self._is_intact.get(member.name)
            if is_intact is None:
                is_intact = self._is_intact[member.name] = shard.hexdigest(member) == member.xxh3
            if not is_intact:
                raise self._damage(clip, member)
        checked.add(clip.key)

    def check_image(self, clip: Clip, member: Member, payload: bytes) -> None:
        """Raise BadSampleError if the bytes of an image differ from the index."""
        if xxhash.xxh3_64_hexdigest(payload) != member.xxh3:
            raise self._damage(clip, member)

    def _damage(self, clip: Clip, member: Member) -> BadSampleError:
        return BadSampleError(
            f"clip {clip.key} in {self.root}/{clip.shard}: the bytes of {member.name} differ from the index; run "
            "'vsr-dist verify' on the data set and pack the shard again"
        )

    def _check_layout(self, name: str, shard: OpenShard) -> None:
        with shard.path.open("rb", buffering=0) as file:
            faults = list(layout_faults(file, len(shard.data), self.index, self._clips[name]))
        if faults:
            raise BadShardError(
                f"{self.root}/{name} {'; '.join(faults)}; run 'vsr-dist verify' and pack the shard again"
            )


class RemoteShardSet(ShardSet):
    """The shards of a remote data set, fetched into the cache of the node."""

    def __init__(self, cache: ShardCache, index: Index, max_open: int) -> None:
        self._cache = cache
        self._shards = {shard.name: shard for shard in index.shards}
        super().__init__(cache.fetcher.root, index, lambda name: open_cached(cache, self._shards[name]), max_open)
        cache.close_idle = self.close_idle

    def fetch(self, name: str) -> None:
        """See `ShardSet`."""
        self._cache.fetch(self._shards[name])


def open_cached(cache: ShardCache, shard: Shard) -> OpenShard:
    """A shard from the cache, fetched first if needed. It holds a shared lock until it is closed."""
    path = cache.path(shard)
    while True:
        try:
            opened = OpenShard(path, locked=True)
        except FileNotFoundError:
            cache.fetch(shard)
            continue
        if opened.is_published():
            os.utime(path)
            return opened
        # Another process deleted it between our opening and our locking it.
        opened.close()


def open_shard_set(config: DataConfig) -> ShardSet:
    """The data set at `data.root`. Local shards are checked for their size now, remote ones when they are fetched.

    Raises BadShardError for an incomplete data set, BadConfigError for a cache that is too small for the order.
    """
    if not is_remote(config.root):
        root = Path(config.root)
        index = read_index(root)
        return ShardSet(str(root), index, lambda name: OpenShard(root / name))
    store = make_store(config.root, config.s3_endpoint)
    fetcher = Fetcher(config.root.rstrip("/"), store, config.fetch_tries, config.fetch_backoff_s)
    cache = ShardCache(Path(config.cache_dir).expanduser(), int(config.cache_gb * 1e9), fetcher)
    index = cache.fetch_index()
    check_cache_size(config, index)
    return RemoteShardSet(cache, index, min(MAX_SHARDS_OPEN, num_shards_in_use(config, index)))


def num_shards_in_use(config: DataConfig, index: Index) -> int:
    """The maximum number of training shards that the order reads from at the same time."""
    num_shards = sum(shard.split == config.train_split for shard in index.shards)
    wanted = {"shuffle": num_shards, "block": config.block_shards, "ordered": config.batch_clips}[config.order]
    return max(1, min(wanted, num_shards))


def check_cache_size(config: DataConfig, index: Index) -> None:
    """Raise BadConfigError if the shards in use, those just used and those needed next do not fit into the cache."""
    sizes = sorted((shard.num_bytes for shard in index.shards if shard.split == config.train_split), reverse=True)
    need_gb = sum(sizes[: 3 * num_shards_in_use(config, index)]) / 1e9
    if need_gb <= config.cache_gb:
        return
    advice = {
        "shuffle": "order=shuffle reads from all shards all the time: use data.order=block",
        "block": f"three blocks of {config.block_shards} shards must fit: lower data.block_shards",
        "ordered": f"up to {config.batch_clips} shards are read at once, and the next must fit: lower data.batch_clips",
    }[config.order]
    raise BadConfigError(
        f"data.cache_gb is {config.cache_gb:g}, expected at least {need_gb:.3g}; {advice}, or raise data.cache_gb"
    )
