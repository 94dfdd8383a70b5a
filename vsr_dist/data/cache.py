"""Shards of remote sets on the local disk: fetched once per node, bounded, least recently used thrown away first.

Several processes share a folder without talking to each other, by file locks, which the system takes back from a
process that dies. A shard's own lock makes one process fetch while the others wait. A shared lock on a shard says
that somebody has it mapped: it is not thrown away. Names hold the hash of the content, so a changed set is fetched
anew and an unchanged one is shared.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from sharding.index import check_index, load_index
from sharding.schema import INDEX_NAME, Index, Shard
from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.locks import exclusive
from vsr_dist.data.remote import Expected, Fetcher
from vsr_dist.data.shards import OpenShard


class ShardCache:
    """The cache folder, seen from one process and one set.

    `make_way` is called when there is no room: it lets go of shards that this process has open and does not use.
    """

    def __init__(self, folder: Path, max_bytes: int, fetcher: Fetcher) -> None:
        self.folder, self.max_bytes, self.fetcher = folder, max_bytes, fetcher
        self.make_way: Callable[[], None] = lambda: None
        for name in ("shards", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def fetch_index(self) -> Index:
        """The set's index, fetched anew. Raises BadShardError if it is missing or not of this format."""
        folder = self.folder / "indexes" / str(xxhash.xxh3_64_hexdigest(self.fetcher.root.encode()))
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{INDEX_NAME}.tmp.{os.getpid()}"
        try:
            with temporary.open("wb") as file:
                self.fetcher.fetch(INDEX_NAME, file)
            temporary.replace(folder / INDEX_NAME)
        finally:
            temporary.unlink(missing_ok=True)
        index = load_index(folder)
        check_index(self.fetcher.root, index)
        return index

    def open(self, shard: Shard) -> OpenShard:
        """A shard, fetched if it is not here yet. It carries a shared lock until it is closed."""
        path = self._path(shard)
        while True:
            try:
                opened = OpenShard(path, locked=True)
            except FileNotFoundError:
                self.fetch(shard)
                continue
            if opened.is_published():
                os.utime(path)
                return opened
            # Thrown away between its opening and its locking.
            opened.close()

    def fetch(self, shard: Shard) -> None:
        """Make sure that a shard is in the folder; waits if another process is fetching it."""
        path = self._path(shard)
        with exclusive(self.folder / "locks" / path.name):
            if path.exists():
                return
            with self._room_for(shard, path.with_suffix(".part")) as part:
                with part.open("r+b") as file:
                    self.fetcher.fetch(shard.name, file, Expected(shard.num_bytes, shard.xxh3))
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)

    def _path(self, shard: Shard) -> Path:
        return self.folder / "shards" / f"{shard.xxh3}-{shard.name}"

    @contextmanager
    def _room_for(self, shard: Shard, part: Path) -> Iterator[Path]:
        """An empty file of the shard's size that counts towards the bound; removed if it is not renamed."""
        try:
            with exclusive(self.folder / "locks" / "room"):
                part.unlink(missing_ok=True)
                if not self._make_room(shard.num_bytes):
                    self.make_way()
                    if not self._make_room(shard.num_bytes):
                        raise BadConfigError(
                            f"{shard.name} with {shard.num_bytes / 1e9:.3g} GB finds no room in {self.folder}: "
                            f"data.cache_gb is {self.max_bytes / 1e9:.3g} and all that is there is in use; raise it"
                        )
                with part.open("wb") as file:
                    file.truncate(shard.num_bytes)
                # Kept until the rename, so that nobody takes this file for one that a dead process left.
                held = os.open(part, os.O_RDONLY)
                fcntl.flock(held, fcntl.LOCK_SH)
            try:
                yield part
            finally:
                os.close(held)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> bool:
        """Remove unused files, least recently used first, until `num_bytes` more fit; false if they never do."""
        files = sorted(self._files(), key=lambda item: item[1].st_mtime_ns)
        total = sum(status.st_size for _, status in files)
        for path, status in files:
            if total + num_bytes <= self.max_bytes:
                break
            if _remove_unused(path):
                total -= status.st_size
        return total + num_bytes <= self.max_bytes

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in (self.folder / "shards").iterdir():
            try:
                yield path, path.stat()
            except FileNotFoundError:
                continue  # renamed or given up by the process that was fetching it


def _remove_unused(path: Path) -> bool:
    """Remove a file that nobody holds a lock on; false if somebody does."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(file)
