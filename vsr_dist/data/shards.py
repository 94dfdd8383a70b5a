"""Open shards: mapped files that are read by exact ranges, and the set of them that a process holds.

The kernel's readahead is made for files that are read from end to end; around a crop it fetches several times what
is needed. It is switched off here, and what a crop needs is asked for by range, in parallel, before it is copied.
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

from sharding.schema import Index, Member
from vsr_dist.core.errors import BadShardError

Bytes = npt.NDArray[np.uint8]
# Bounded by the files that a process may have open (usually 1024); a map takes two.
MAX_SHARDS_OPEN = 256
_HASH_BYTES = 1 << 20
_PAGE_BYTES = mmap.PAGESIZE


class OpenShard:
    """One shard, mapped read-only. With `locked`, a shared lock says "in use" to the cache until it is closed."""

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
        """Let go of the file; the map, and with it the lock, goes when no array refers to it any more."""
        self.arrays.clear()
        self._close()

    def is_published(self) -> bool:
        """False if the file has been removed from its folder, or replaced, since it was opened."""
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return False
        mine = os.fstat(self._file)
        return (mine.st_dev, mine.st_ino) == (now.st_dev, now.st_ino)

    def array(self, member: Member) -> npt.NDArray[np.generic]:
        """An npy member as a view of the map, shape and dtype as the index says."""
        if member.name not in self.arrays:
            dtype = np.dtype(member.dtype)
            end = member.data_offset + int(np.prod(member.shape)) * dtype.itemsize
            self.arrays[member.name] = self.data[member.data_offset : end].view(dtype).reshape(member.shape)
        return self.arrays[member.name]

    def payload(self, member: Member) -> bytes:
        """All bytes of a member. Raises BadShardError where the file ends before them."""
        data = os.pread(self._file, member.num_bytes, member.offset)
        if len(data) != member.num_bytes:
            raise BadShardError(f"{self.path} ends inside {member.name}; it was cut off while in use")
        return data

    def hexdigest(self, member: Member) -> str:
        """Hex of the xxh3_64 of a member's bytes."""
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
            return True  # not to be told on this system: the copy reads what is missing, page by page
        return 0 not in bytes(pages)

    def will_need(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask for (offset, number of bytes) ranges to be read, all at once, without waiting."""
        for offset, num_bytes in ranges:
            os.posix_fadvise(self._file, offset, num_bytes, os.POSIX_FADV_WILLNEED)


def _load_mincore() -> Callable[[int, int, ctypes.Array[ctypes.c_ubyte]], int]:
    """The system call `mincore`, which Python does not offer; it takes a microsecond, so the interpreter waits."""
    function = ctypes.PyDLL(None).mincore
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)

    def call(address: int, num_bytes: int, pages: ctypes.Array[ctypes.c_ubyte]) -> int:
        return int(function(address, num_bytes, pages))

    return call


_mincore = _load_mincore()


class ShardSet:
    """The shards of one set, opened as they are needed. Safe to use from several threads.

    `opener` opens a shard by its name. The least recently used are closed beyond `max_open`.
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
        """Make sure that a shard is on this machine; a set in a folder always is."""

    def close_idle(self, keep: int = 0) -> None:
        """Close shards that no thread is using, least recently used first, until `keep` are open."""
        with self._lock:
            idle = [name for name in self._open if not self._users.get(name)]
            for name in idle[: max(0, len(self._open) - keep)]:
                self._open.pop(name).close()

    def acquire(self, name: str) -> OpenShard:
        """A shard, which stays open at least until it is released."""
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
        """Say that a shard got from `acquire` is no longer looked at."""
        with self._lock:
            self._users[name] -= 1
        if len(self._open) > self.max_open:
            self.close_idle(self.max_open)
