"""Remote data sets: objects fetched over HTTP or from S3, with retries and checks, into a cache on the local disk."""

from __future__ import annotations

import fcntl
import http.client
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import xxhash

from sharding.index import check_index, load_index
from sharding.schema import INDEX_NAME, Index, Shard
from vsr_dist.core.errors import BadConfigError, BadShardError, import_extra
from vsr_dist.core.files import exclusive

SCHEMES = ("s3", "http", "https")
_TIMEOUT_S = 60.0
_MAX_PAUSE_S = 30.0
_BLOCK_BYTES = 1 << 20
# Of an index, whose size is not known beforehand: that of about a million clips.
_MAX_INDEX_BYTES = 1 << 30
# HTTP status codes after which another attempt may succeed, besides 5xx: time-outs and too many requests.
_TRANSIENT_STATUS = {408, 425, 429}


class FetchError(Exception):
    """One attempt failed; `transient` is True if another one may succeed."""

    def __init__(self, reason: str, *, transient: bool) -> None:
        super().__init__(reason)
        self.transient = transient


class _Stream(Protocol):
    def read(self, num_bytes: int, /) -> bytes: ...


class Store(Protocol):
    """The remote storage of one data set."""

    def open(self, name: str) -> AbstractContextManager[_Stream]:
        """The bytes of one object as a stream. Raises FetchError when the context is entered or left."""
        ...


def is_remote(root: str) -> bool:
    """True for a URL, False for a folder. Raises BadConfigError for an unknown scheme."""
    scheme, separator, _ = root.partition("://")
    if separator and scheme not in SCHEMES:
        raise BadConfigError(f"data.root is {root}; expected a folder or a URL with one of {', '.join(SCHEMES)}")
    return bool(separator)


def make_store(root: str, s3_endpoint: str) -> Store:
    """The store of a remote root.

    Raises BadConfigError for a URL without a bucket or host, MissingExtraError for S3 without boto3.
    """
    if not urllib.parse.urlsplit(root).netloc:
        raise BadConfigError(
            f"data.root is {root}, which has no bucket or host; expected s3://BUCKET/PREFIX or http://HOST/PATH"
        )
    return S3Store(root, s3_endpoint) if root.startswith("s3://") else HttpStore(root)


class HttpStore:
    """Files below an `http(s)://` URL."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")

    @contextmanager
    def open(self, name: str) -> Iterator[_Stream]:
        """See `Store`."""
        try:
            with urllib.request.urlopen(f"{self._root}/{urllib.parse.quote(name)}", timeout=_TIMEOUT_S) as response:
                yield response
                if response.length:
                    raise FetchError(f"it ended {response.length} bytes early", transient=True)
        except urllib.error.HTTPError as error:
            raise FetchError(f"HTTP status {error.code}", transient=_is_transient(error.code)) from error
        except (OSError, http.client.HTTPException) as error:
            # URLError, time-outs and resets are OSErrors.
            raise FetchError(str(error) or type(error).__name__, transient=True) from error


class S3Store:
    """Objects below `s3://bucket/prefix`, with the credentials and region that boto3 finds."""

    def __init__(self, root: str, endpoint: str) -> None:
        names = ("boto3", "botocore.exceptions", "botocore.config")
        boto3, self._errors, config = (import_extra("s3", name, f"data.root {root}") for name in names)
        self._bucket, _, prefix = root.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        # boto3's own retries are switched off, since `Fetcher` counts the attempts.
        settings = config.Config(retries={"total_max_attempts": 1}, connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S)
        try:
            self._client = boto3.client("s3", endpoint_url=endpoint or None, config=settings)
        except (self._errors.BotoCoreError, ValueError) as error:
            raise BadConfigError(f"cannot create an S3 client for {root}: {error}; see data.s3_endpoint") from error

    @contextmanager
    def open(self, name: str) -> Iterator[_Stream]:
        """See `Store`."""
        try:
            body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"]
            try:
                yield body
            finally:
                body.close()
        except self._errors.ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            raise FetchError(str(error), transient=_is_transient(status)) from error
        except (self._errors.NoCredentialsError, self._errors.ParamValidationError) as error:
            raise FetchError(str(error), transient=False) from error
        except (self._errors.BotoCoreError, OSError) as error:
            raise FetchError(str(error), transient=True) from error


def _is_transient(status: int) -> bool:
    return status in _TRANSIENT_STATUS or status >= 500


@dataclass(frozen=True)
class Expected:
    """Size and xxh3_64 (hex) of an object according to the index."""

    num_bytes: int
    xxh3: str


@dataclass(frozen=True)
class Fetcher:
    """Fetches objects of one data set, with retries.

    `tries` attempts. The pause after the first is `backoff_s`; it doubles up to 30 s, and each pause is shortened at
    random by up to half, so that many readers do not retry at the same time. `sleep` is replaced by tests.
    """

    root: str
    store: Store
    tries: int
    backoff_s: float
    sleep: Callable[[float], None] = time.sleep

    def fetch(self, name: str, sink: BinaryIO, expected: Expected | None = None) -> None:
        """Write an object to `sink`, from its first byte, and compare size and hash with `expected`.

        Raises BadShardError that names the object, after the last attempt or after a permanent failure.
        """
        for attempt in range(1, self.tries + 1):
            try:
                self._attempt(name, sink, expected)
            except FetchError as error:
                if not error.transient or attempt == self.tries:
                    raise BadShardError(
                        f"{name} of {self.root} cannot be fetched: {error} (attempt {attempt} of {self.tries}); check "
                        "data.root and that the data set there is complete"
                    ) from error
                pause_s = min(self.backoff_s * 2 ** (attempt - 1), _MAX_PAUSE_S)
                self.sleep(pause_s * (1 - random.random() / 2))
            else:
                return

    def _attempt(self, name: str, sink: BinaryIO, expected: Expected | None) -> None:
        sink.seek(0)
        state, num_bytes = xxhash.xxh3_64(), 0
        most_bytes = _MAX_INDEX_BYTES if expected is None else expected.num_bytes
        with self.store.open(name) as stream:
            while block := stream.read(_BLOCK_BYTES):
                num_bytes += len(block)
                if num_bytes > most_bytes:
                    raise FetchError(f"it has more than the expected {most_bytes} bytes", transient=True)
                _write(sink, block)
                state.update(block)
        sink.truncate()
        if expected is None:
            return
        if num_bytes != expected.num_bytes:
            raise FetchError(f"it has {num_bytes} bytes, expected {expected.num_bytes}", transient=True)
        if state.hexdigest() != expected.xxh3:
            raise FetchError(f"its hash is {state.hexdigest()}, expected {expected.xxh3}", transient=True)


def _write(sink: BinaryIO, block: bytes) -> None:
    """Write to the cache; its errors, such as a full disk, are not errors of the network."""
    try:
        sink.write(block)
    except OSError as error:
        raise FetchError(f"writing to the cache failed ({error})", transient=False) from error


class ShardCache:
    """The cache folder of a node, used by one process for one data set.

    Shards are fetched once per node, and the least recently used are deleted beyond `max_bytes`. Processes coordinate
    by file locks, which the system releases when a process dies. A lock per shard lets one process fetch while the
    others wait; a shared lock on the file itself means that somebody has it open, so it is not deleted. File names
    contain the hash of the content: a changed shard is fetched again, an unchanged one is shared.

    `close_idle` is called if there is not enough space: it closes shards that this process has open but does not use.
    """

    def __init__(self, folder: Path, max_bytes: int, fetcher: Fetcher) -> None:
        self.folder, self.max_bytes, self.fetcher = folder, max_bytes, fetcher
        self.close_idle: Callable[[], None] = lambda: None
        for name in ("shards", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def fetch_index(self) -> Index:
        """The index of the data set, always fetched. Raises BadShardError if it is missing or invalid."""
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

    def fetch(self, shard: Shard) -> None:
        """Make sure that a shard is in the folder; waits if another process is fetching it."""
        path = self.path(shard)
        with exclusive(self.folder / "locks" / path.name):
            if path.exists():
                return
            with self._reserve(shard, path.with_suffix(".part")) as part:
                with part.open("r+b") as file:
                    self.fetcher.fetch(shard.name, file, Expected(shard.num_bytes, shard.xxh3))
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)

    def path(self, shard: Shard) -> Path:
        """Where a shard is, or would be, in the folder."""
        return self.folder / "shards" / f"{shard.xxh3}-{shard.name}"

    @contextmanager
    def _reserve(self, shard: Shard, part: Path) -> Iterator[Path]:
        """An empty file of the shard's size, which counts towards the limit; deleted unless it is renamed."""
        try:
            with exclusive(self.folder / "locks" / "room"):
                part.unlink(missing_ok=True)
                if not self._evict(shard.num_bytes):
                    self.close_idle()
                    if not self._evict(shard.num_bytes):
                        raise BadConfigError(
                            f"no space for {shard.name} ({shard.num_bytes / 1e9:.3g} GB) in {self.folder}: all cached "
                            f"shards are in use and data.cache_gb is {self.max_bytes / 1e9:.3g}; raise data.cache_gb"
                        )
                with part.open("wb") as file:
                    file.truncate(shard.num_bytes)
                # Locked until the rename, so that no other process deletes it as left behind by a dead one.
                held = os.open(part, os.O_RDONLY)
                fcntl.flock(held, fcntl.LOCK_SH)
            try:
                yield part
            finally:
                os.close(held)
        finally:
            part.unlink(missing_ok=True)

    def _evict(self, num_bytes: int) -> bool:
        """Delete unused files, least recently used first, until `num_bytes` more fit; False if that is impossible."""
        files = sorted(self._files(), key=lambda item: item[1].st_mtime_ns)
        total = sum(status.st_size for _, status in files)
        for path, status in files:
            if total + num_bytes <= self.max_bytes:
                break
            if _delete_unused(path):
                total -= status.st_size
        return total + num_bytes <= self.max_bytes

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in (self.folder / "shards").iterdir():
            try:
                yield path, path.stat()
            except FileNotFoundError:
                continue  # renamed or deleted by the process that was fetching it


def _delete_unused(path: Path) -> bool:
    """Delete a file that no process has locked; False if one has."""
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
