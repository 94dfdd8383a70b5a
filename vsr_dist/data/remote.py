"""Objects of a remote shard set, by HTTP or from S3: read in blocks, tried again with growing pauses, checked."""

from __future__ import annotations

import http.client
import importlib
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import xxhash

from vsr_dist.core.errors import BadConfigError, BadShardError, MissingExtraError

SCHEMES = ("s3", "http", "https")
_TIMEOUT_S = 60.0
_MAX_PAUSE_S = 30.0
_BLOCK_BYTES = 1 << 20
# Answers that a later attempt may not get: time-outs, too many requests, and what 5xx says of the server.
_PASSING_STATUS = {408, 425, 429}


class FetchError(Exception):
    """One attempt failed; `passing` says whether another one may succeed."""

    def __init__(self, reason: str, *, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


class _Stream(Protocol):
    def read(self, num_bytes: int, /) -> bytes: ...


class Store(Protocol):
    """Where the objects of one set lie."""

    def open(self, name: str) -> AbstractContextManager[_Stream]:
        """The bytes of one object. Raises FetchError on entry and exit of the context."""
        ...


def is_remote(root: str) -> bool:
    """True for an address; a path with `://` and an unknown scheme is a BadConfigError."""
    scheme, separator, _ = root.partition("://")
    if separator and scheme not in SCHEMES:
        raise BadConfigError(f"data.root is {root}; expected a folder, or an address with {', '.join(SCHEMES)}")
    return bool(separator)


def make_store(root: str, s3_endpoint: str) -> Store:
    """The store behind a remote root. Raises BadConfigError for an address without a place, MissingExtraError for S3
    without boto3.
    """
    if not urllib.parse.urlsplit(root).netloc:
        raise BadConfigError(
            f"data.root is {root}, which names no bucket or host; expected s3://BUCKET/PREFIX or http://HOST/PATH"
        )
    return S3Store(root, s3_endpoint) if root.startswith("s3://") else HttpStore(root)


class HttpStore:
    """Files below an `http(s)://` address."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")

    @contextmanager
    def open(self, name: str) -> Iterator[_Stream]:
        """See `Store`."""
        try:
            with urllib.request.urlopen(f"{self._root}/{urllib.parse.quote(name)}", timeout=_TIMEOUT_S) as response:
                yield response
                if response.length:
                    raise FetchError(f"it ended {response.length} bytes early", passing=True)
        except urllib.error.HTTPError as error:
            raise FetchError(f"HTTP status {error.code}", passing=_is_passing(error.code)) from error
        except (OSError, http.client.HTTPException) as error:
            # URLError, time-outs and resets are OSErrors.
            raise FetchError(str(error) or type(error).__name__, passing=True) from error


class S3Store:
    """Objects below `s3://bucket/prefix`; credentials and region come from where boto3 finds them."""

    def __init__(self, root: str, endpoint: str) -> None:
        try:
            boto3, self._faults, config = map(
                importlib.import_module, ("boto3", "botocore.exceptions", "botocore.config")
            )
        except ImportError as error:
            raise MissingExtraError(
                f"data.root is {root}, which needs boto3; install it with: pip install 'vsr-dist[s3]'"
            ) from error
        self._bucket, _, prefix = root.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        # boto3 would try again on its own; attempts are counted here.
        settings = config.Config(retries={"total_max_attempts": 1}, connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S)
        try:
            self._client = boto3.client("s3", endpoint_url=endpoint or None, config=settings)
        except (self._faults.BotoCoreError, ValueError) as error:
            raise BadConfigError(f"no S3 client for {root}: {error}; check data.s3_endpoint and AWS_*") from error

    @contextmanager
    def open(self, name: str) -> Iterator[_Stream]:
        """See `Store`."""
        try:
            body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"]
            try:
                yield body
            finally:
                body.close()
        except self._faults.ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            raise FetchError(str(error), passing=_is_passing(status)) from error
        except (self._faults.NoCredentialsError, self._faults.ParamValidationError) as error:
            raise FetchError(str(error), passing=False) from error
        except (self._faults.BotoCoreError, OSError) as error:
            raise FetchError(str(error), passing=True) from error


def _is_passing(status: int) -> bool:
    return status in _PASSING_STATUS or status >= 500


@dataclass(frozen=True)
class Expected:
    """What the index says of an object: its size and the hex of its xxh3_64."""

    num_bytes: int
    xxh3: str


@dataclass(frozen=True)
class Fetcher:
    """Fetches objects of one set.

    `tries` attempts, with a pause of `backoff_s` after the first that doubles up to 30 s, each shortened at random
    by up to half, so that many readers do not come back together. `sleep` is for tests.
    """

    root: str
    store: Store
    tries: int
    backoff_s: float
    sleep: Callable[[float], None] = time.sleep

    def fetch(self, name: str, sink: BinaryIO, expected: Expected | None = None) -> None:
        """Write an object into `sink`, from its first byte, and compare it with what is expected.

        Raises BadShardError that names the object, after the last attempt or at a fault that would not pass.
        """
        for attempt in range(1, self.tries + 1):
            try:
                self._attempt(name, sink, expected)
            except FetchError as fault:
                if not fault.passing or attempt == self.tries:
                    raise BadShardError(
                        f"{name} of {self.root} cannot be fetched: {fault} (attempt {attempt} of {self.tries}); "
                        "check that the set is whole there and that data.root is right"
                    ) from fault
                pause_s = min(self.backoff_s * 2 ** (attempt - 1), _MAX_PAUSE_S)
                self.sleep(pause_s * (1 - random.random() / 2))
            else:
                return

    def _attempt(self, name: str, sink: BinaryIO, expected: Expected | None) -> None:
        sink.seek(0)
        state, num_bytes = xxhash.xxh3_64(), 0
        with self.store.open(name) as stream:
            while block := stream.read(_BLOCK_BYTES):
                _write(sink, block)
                state.update(block)
                num_bytes += len(block)
        sink.truncate()
        if expected is None:
            return
        if num_bytes != expected.num_bytes:
            raise FetchError(f"it has {num_bytes} bytes, expected {expected.num_bytes}", passing=True)
        if state.hexdigest() != expected.xxh3:
            raise FetchError(f"its hash is {state.hexdigest()}, expected {expected.xxh3}", passing=True)


def _write(sink: BinaryIO, block: bytes) -> None:
    """Write to the cache; a full disk must not be taken for a fault of the network."""
    try:
        sink.write(block)
    except OSError as error:
        raise FetchError(f"the cache cannot be written ({error})", passing=False) from error
