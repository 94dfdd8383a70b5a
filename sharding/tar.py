"""Deterministic USTAR files: a writer that records payload offsets, and a scan of the headers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import xxhash

from sharding.errors import BadShardError

BLOCK_BYTES = 512
END_BYTES = 2 * BLOCK_BYTES
MAX_NAME_BYTES = 100
_READ_BYTES = 4 << 20
Chunk = bytes | memoryview  # a memoryview must be flat, with single-byte items


@dataclass(frozen=True)
class TarEntry:
    """A regular file in a tar: its name, and the offset and size of its payload."""

    name: str
    offset: int
    num_bytes: int


class TarWriter:
    """Appends members to an open file and hashes it on the way; `num_bytes` is the number of bytes written so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = xxhash.xxh3_64()
        self.num_bytes = 0

    def add(self, name: str, payload: bytes) -> TarEntry:
        """Write one member with modification time 0, mode 0644 and owner 0."""
        return self.add_stream(name, len(payload), [payload])[0]

    def add_stream(self, name: str, num_bytes: int, chunks: Iterable[Chunk]) -> tuple[TarEntry, str]:
        """Write a member of `num_bytes` bytes in chunks; returns its entry and the xxh3_64 of its payload in hex.

        Raises ValueError if the chunks add up to another size.
        """
        self._write(tar_header(name, num_bytes))
        entry = TarEntry(name, self.num_bytes, num_bytes)
        digest = xxhash.xxh3_64()
        for chunk in chunks:
            self._write(chunk)
            digest.update(chunk)
        if self.num_bytes != entry.offset + num_bytes:
            raise ValueError(f"'{name}' got {self.num_bytes - entry.offset} bytes, expected {num_bytes}")
        self._write(bytes(-num_bytes % BLOCK_BYTES))
        return entry, str(digest.hexdigest())

    def finish(self) -> str:
        """Write the end-of-archive marker; returns the xxh3_64 of the whole file in hex."""
        self._write(bytes(END_BYTES))
        return str(self._hash.hexdigest())

    def _write(self, data: Chunk) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)


def tar_header(name: str, num_bytes: int) -> bytes:
    """The 512-byte header of a payload. Raises ValueError for a name over 100 bytes or a payload of 8 GiB or more."""
    encoded = name.encode("ascii")
    if len(encoded) > MAX_NAME_BYTES or num_bytes >= 8 << 30:
        raise ValueError(f"'{name}' with {num_bytes} bytes does not fit a USTAR header")
    fields = [
        encoded.ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" + b"0000000\0",
        f"{num_bytes:011o}\0".encode(),
        b"00000000000\0",
        b" " * 8,
        b"0" + bytes(100),
        b"ustar\x0000" + bytes(32) + bytes(32) + b"0000000\0" + b"0000000\0",
    ]
    header = bytearray(b"".join(fields).ljust(BLOCK_BYTES, b"\0"))
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


def scan_tar(file: BinaryIO, num_bytes: int) -> Iterator[TarEntry]:
    """The members of a tar of `num_bytes` bytes; only the headers are read.

    Raises BadShardError at the first damaged header, and if the end-of-archive marker is missing.
    """
    position = 0
    while True:
        file.seek(position)
        header = file.read(BLOCK_BYTES)
        if header == bytes(BLOCK_BYTES):
            if num_bytes != position + END_BYTES:
                raise BadShardError(f"has {num_bytes} bytes, expected {position + END_BYTES}")
            if file.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):
                raise BadShardError("has a damaged end-of-archive marker")
            return
        entry = _parse_header(header, position)
        position = entry.offset + entry.num_bytes + (-entry.num_bytes % BLOCK_BYTES)
        if position + END_BYTES > num_bytes:
            raise BadShardError(f"is truncated: it has {num_bytes} bytes and ends inside or after '{entry.name}'")
        yield entry


def _parse_header(header: bytes, position: int) -> TarEntry:
    """The entry of a header that `tar_header` wrote. Raises BadShardError if any byte differs."""
    try:
        name = header[:100].rstrip(b"\0").decode("ascii")
        num_bytes = int(header[124:135], 8)
        valid = header == tar_header(name, num_bytes)
    except ValueError:
        valid = False
    if not valid:
        raise BadShardError(f"has a damaged tar header, or one that pack did not write, at byte {position}")
    return TarEntry(name, position + BLOCK_BYTES, num_bytes)


def hash_file(file: BinaryIO) -> str:
    """xxh3_64 of a whole open file, in hex."""
    state = xxhash.xxh3_64()
    file.seek(0)
    while block := file.read(_READ_BYTES):
        state.update(block)
    return str(state.hexdigest())
