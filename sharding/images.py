"""Folders of numbered images, on disk or inside a zip archive, which is read without unpacking.

A folder is given by a path. `GT.zip` is the top level of the archive and `GT.zip/GT/000` a folder inside it, as if
the archive were unpacked there.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from sharding.codec import Frame
from sharding.errors import BadInputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_EXIF = b"eXIf"
_PNG_HEADER_BYTES = 24
# More than 16K video has, and less than what fills a memory.
_MAX_PIXELS, _MAX_IMAGE_BYTES = 1 << 28, 1 << 30


class _Archive:
    """An open zip archive; `files` and `folders` map a path inside it to the names of its files and subfolders."""

    def __init__(self, path: Path) -> None:
        self.file = zipfile.ZipFile(path)
        self.files: dict[str, list[str]] = {"": []}
        self.folders: dict[str, set[str]] = {"": set()}
        for name in self.file.namelist():
            inner = PurePosixPath(name)
            if inner.parts[:1] == ("__MACOSX",):
                continue
            for parent, child in _ancestors(inner if name.endswith("/") else inner.parent):
                self.folders.setdefault(parent, set()).add(child)
                self.files.setdefault(f"{parent}/{child}".lstrip("/"), [])
            if not name.endswith("/"):
                self.files.setdefault(_key(inner.parent), []).append(inner.name)


def _key(inner: PurePosixPath) -> str:
    return "" if inner == PurePosixPath(".") else inner.as_posix()


def _ancestors(folder: PurePosixPath) -> Iterator[tuple[str, str]]:
    """(parent, name) of a folder and of each folder above it."""
    for depth in range(len(folder.parts)):
        yield "/".join(folder.parts[:depth]), folder.parts[depth]


def is_folder(path: Path) -> bool:
    """True for a directory, a zip archive or a folder inside one. Raises BadInputError for a damaged archive."""
    if path.is_dir():
        return True
    found = _split(path)
    return found is not None and found[1] in found[0].files


def subfolders(path: Path) -> list[Path]:
    """The subfolders of a folder in natural order, without hidden ones."""
    found = None if path.is_dir() else _split(path)
    if found is None:
        names = [inner.name for inner in path.iterdir() if inner.is_dir()]
    else:
        names = list(found[0].folders.get(found[1], ()))
    return [path / name for name in sorted(names, key=natural_key) if not name.startswith(".")]


def list_images(path: Path) -> list[Path]:
    """The images in a folder in natural order (2 before 10). Raises BadInputError if there are none."""
    found = None if path.is_dir() else _split(path)
    names = [inner.name for inner in path.iterdir()] if found is None else found[0].files.get(found[1], [])
    images = [path / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES and name[0] != "."]
    if found is None:
        images = [image for image in images if not image.is_dir()]
        if other := next((image for image in sorted(images) if not image.is_file()), None):
            what = f"a link to {other.readlink()}, which does not exist" if other.is_symlink() else "a pipe or a device"
            raise BadInputError(f"{other} is {what}; expected an image file: replace or remove it")
    if not images:
        inner = subfolders(path)
        hint = f"; it has subfolders: give each one as a source, for example {inner[0]}" if inner else ""
        if {"GT", "LQ"} <= {folder.name for folder in inner}:
            hint = f"; it looks like paired data: use --realvsr {path}"
        raise BadInputError(f"{path} has no images; expected files such as 0001.png{hint}")
    return sorted(images, key=lambda image: natural_key(image.name))


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """A sort key that compares runs of digits as numbers, and equal numbers as text."""
    parts = re.split(r"([0-9]+)", text)
    return [(0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts if part]


def read_file(path: Path, num_bytes: int = -1) -> bytes:
    """The first `num_bytes` bytes of a file on disk or in an archive; the whole file with -1.

    Raises BadInputError if an archive is damaged, for example if a checksum is wrong.
    """
    found = _split(path)
    try:
        if found is None:
            with path.open("rb") as file:
                return file.read(num_bytes)
        if num_bytes < 0 and (size := found[0].file.getinfo(found[1]).file_size) > _MAX_IMAGE_BYTES:
            raise BadInputError(f"{path} unpacks to {size:,} bytes, too many for an image; remove it")
        with found[0].file.open(found[1]) as member:
            return member.read(num_bytes)
    except OSError as error:
        raise BadInputError(f"{path} cannot be read ({error.strerror or error}); replace or remove it") from error
    except (KeyError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise BadInputError(f"{path} cannot be read from its archive ({error}); create the archive again") from error


def read_image(path: Path) -> Frame:
    """The image as uint8 RGB (H, W, 3). Raises BadInputError that names the file."""
    return _decode(path, read_file(path))


def image_size(path: Path, data: bytes | None = None) -> tuple[int, int]:
    """(height, width) of `read_image`. `data`: the bytes of the file, if already read.

    A PNG is decoded only if EXIF may turn it; a truncated one is an error. Raises BadInputError that names the file.
    """
    data = read_file(path) if data is None else data
    if not data.startswith(_PNG_MAGIC):
        height, width = _decode(path, data).shape[:2]
        return height, width
    if len(data) < _PNG_HEADER_BYTES or not data.rstrip(b"\0").endswith(_PNG_END):
        raise BadInputError(f"{path} is a PNG truncated after {len(data)} bytes; replace it")
    if _PNG_EXIF in data:
        height, width = _decode(path, data).shape[:2]
        return height, width
    return _png_size(path, data)


def _png_size(path: Path, head: bytes) -> tuple[int, int]:
    """(height, width) from the header of a PNG; BadInputError for one that would fill the memory."""
    width, height = struct.unpack(">II", head[16:24])
    if width * height > _MAX_PIXELS:
        raise BadInputError(f"{path} has {width} x {height} pixels, more than {_MAX_PIXELS:,}; cut or shrink it")
    return height, width


def has_alpha(path: Path) -> bool:
    """True if an image that `read_image` takes has an alpha channel, or a transparent colour in its palette."""
    stored = cv2.imdecode(np.frombuffer(read_file(path), np.uint8), cv2.IMREAD_UNCHANGED)
    return stored is not None and stored.shape[2:] == (4,)


def _decode(path: Path, data: bytes) -> Frame:
    if len(data) >= _PNG_HEADER_BYTES and data.startswith(_PNG_MAGIC):
        _png_size(path, data)
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    except cv2.error:  # Of other formats, those with more pixels than OpenCV allows.
        image = None
    if image is None:
        raise BadInputError(f"{path} is not an image that OpenCV can decode; replace or remove it")
    return np.asarray(image, dtype=np.uint8)


def _split(path: Path) -> tuple[_Archive, str] | None:
    """(archive, path inside it) for a path to or into a zip file; None for any other path."""
    for outer in (path, *path.parents):
        if outer.suffix.lower() == ".zip" and outer.is_file():
            status = outer.stat()
            return _open(outer, status.st_size, status.st_mtime_ns), _key(PurePosixPath(path.relative_to(outer)))
    return None


@lru_cache(maxsize=8)
def _open(path: Path, num_bytes: int, mtime_ns: int) -> _Archive:
    """The archive, kept open for further images; size and time are cache keys, so that a replaced one is reopened."""
    try:
        return _Archive(path)
    except zipfile.BadZipFile as error:
        raise BadInputError(f"{path} is not a readable zip archive ({error}); create it again") from error
