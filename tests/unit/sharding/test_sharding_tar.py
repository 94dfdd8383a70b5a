from __future__ import annotations

import io
import tarfile

import pytest
import xxhash

from sharding.errors import BadShardError
from sharding.tar import TarWriter, hash_file, scan_tar

PAYLOADS = {"a.txt": b"hello", "b.bin": bytes(512), "c.bin": b"x" * 513, "empty": b""}


def make_tar() -> tuple[bytes, str, list]:
    file = io.BytesIO()
    writer = TarWriter(file)
    entries = [writer.add(name, payload) for name, payload in PAYLOADS.items()]
    digest = writer.finish()
    return file.getvalue(), digest, entries


def test_the_standard_library_reads_it() -> None:
    data, _, _ = make_tar()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == list(PAYLOADS)
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
        for member in members:
            handle = tar.extractfile(member)
            assert handle is not None
            assert handle.read() == PAYLOADS[member.name]
            assert not member.pax_headers


def test_offsets_and_hash_are_those_of_the_file() -> None:
    data, digest, entries = make_tar()
    for entry in entries:
        assert data[entry.offset : entry.offset + entry.num_bytes] == PAYLOADS[entry.name]
    assert digest == xxhash.xxh3_64_hexdigest(data) == hash_file(io.BytesIO(data))
    assert list(scan_tar(io.BytesIO(data), len(data))) == entries
    assert make_tar()[0] == data


def test_every_truncation_is_noticed() -> None:
    data, _, _ = make_tar()
    for num_bytes in range(0, len(data), 256):
        with pytest.raises(BadShardError):
            list(scan_tar(io.BytesIO(data[:num_bytes]), num_bytes))


def test_every_bit_of_a_header_matters() -> None:
    data, _, _ = make_tar()
    for position in range(512):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(BadShardError):
            list(scan_tar(io.BytesIO(bytes(damaged)), len(damaged)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="USTAR"):
        TarWriter(io.BytesIO()).add("x" * 101, b"")
