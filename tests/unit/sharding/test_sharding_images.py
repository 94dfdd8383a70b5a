from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from sharding import images
from sharding.errors import BadInputError
from sharding.images import image_size, is_folder, list_images, natural_key, read_file, read_image, subfolders
from sharding.video import iter_frames, iter_timed_frames, probe


def write_images(folder: Path, count: int, size: tuple[int, int] = (16, 24), suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = np.full((*size, 3), (10 * number, 5, 250), np.uint8)  # BGR
        assert cv2.imwrite(str(folder / f"{number}{suffix}"), image)
    return folder


def zipped(folder: Path, target: Path, compression: int = zipfile.ZIP_DEFLATED, with_folders: bool = False) -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() or with_folders:
                archive.write(path, path.relative_to(folder.parent))
    return target


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_images(tmp_path / "GT" / "000", 12)
    write_images(tmp_path / "GT" / "001", 3, (8, 8))
    return tmp_path / "GT"


@pytest.mark.parametrize("with_folders", [False, True])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_reads_like_the_folder_it_was_made_of(tree: Path, compression: int, with_folders: bool) -> None:
    archive = zipped(tree, tree.parent / "packed.zip", compression, with_folders)
    assert is_folder(archive)
    assert is_folder(archive / "GT" / "000")
    assert not is_folder(archive / "GT" / "002")
    assert not is_folder(archive / "GT" / "000" / "0.png")
    assert [path.name for path in subfolders(archive)] == ["GT"]
    for name in ("000", "001"):
        inside, outside = archive / "GT" / name, tree / name
        assert [path.name for path in list_images(inside)] == [path.name for path in list_images(outside)]
        for one, other in zip(list_images(inside), list_images(outside), strict=True):
            assert read_file(one) == read_file(other) == other.read_bytes()
            assert image_size(one) == image_size(other) == read_image(other).shape[:2]
        for first, second in zip(iter_frames(inside), iter_frames(outside), strict=True):
            np.testing.assert_array_equal(first, second)
    info = probe(archive / "GT" / "000")
    assert (info.num_frames, info.height, info.width, info.fps) == (12, 16, 24, None)
    assert [int(f.rgb[0, 0, 2]) for f in iter_timed_frames(archive / "GT" / "000", 10)] == [100, 110]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_png_that_exif_turns_has_the_size_of_its_pixels(tmp_path: Path, orientation: int) -> None:
    plain = cv2.imencode(".png", np.zeros((16, 24, 3), np.uint8))[1].tobytes()
    # A TIFF of one entry: tag 274 (orientation), one SHORT.
    body = b"eXIf" + struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 274, 3, 1, orientation, 0)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path = tmp_path / "0.png"
    path.write_bytes(plain[:33] + chunk + plain[33:])
    assert image_size(path) == read_image(path).shape[:2] == ((24, 16) if orientation > 4 else (16, 24))


def test_what_finders_and_hidden_files_leave_behind_is_passed_over(tree: Path) -> None:
    (tree / "000" / "._0.png").write_bytes(b"resource fork")
    (tree / ".thumbnails").mkdir()
    (tree / "000" / "notes.txt").write_text("x")
    archive = zipped(tree, tree.parent / "GT.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("__MACOSX/GT/._000", b"x")
    assert [path.name for path in subfolders(archive)] == ["GT"]
    for root in (tree, archive / "GT"):
        assert [path.name for path in subfolders(root)] == ["000", "001"]
        assert len(list_images(root / "000")) == 12


def test_a_replaced_archive_is_read_anew(tree: Path) -> None:
    archive = zipped(tree, tree.parent / "x.zip")
    assert len(list_images(archive / "GT" / "000")) == 12
    write_images(tree / "000", 15)
    zipped(tree, archive)
    assert len(list_images(archive / "GT" / "000")) == 15


def test_damaged_archives_are_named_in_one_line(tree: Path) -> None:
    archive = zipped(tree, tree.parent / "x.zip", zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    place = data.index((tree / "000" / "3.png").read_bytes()) + 60
    data[place] ^= 255
    archive.write_bytes(data)
    with pytest.raises(BadInputError, match=r"3\.png cannot be read from its archive .*CRC"):
        read_file(archive / "GT" / "000" / "3.png")
    archive.write_bytes(data[:200])
    with pytest.raises(BadInputError, match=r"x\.zip is not a readable zip archive"):
        is_folder(archive)


def test_an_unfinished_png_is_refused_without_decoding(tree: Path) -> None:
    path = tree / "000" / "1.png"
    data = path.read_bytes()
    assert image_size(path, data) == (16, 24)
    with pytest.raises(BadInputError, match=r"1\.png is a PNG truncated after"):
        image_size(path, data[:-20])
    with pytest.raises(BadInputError, match="not an image"):
        image_size(path, b"\x89PNG")


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp"])
def test_other_images_tell_their_size_too(tmp_path: Path, suffix: str) -> None:
    folder = write_images(tmp_path / "f", 1, (12, 20), suffix)
    assert image_size(folder / f"0{suffix}") == (12, 20)


def test_natural_key_takes_any_name() -> None:
    names = ["10", "9", "a2", "a10", "a02", "\u00b2", "", "9b"]
    assert [n for n in sorted(names, key=natural_key) if n.startswith("a")] == ["a02", "a2", "a10"]


def test_a_set_of_pairs_given_as_a_source_is_pointed_to_its_option(tmp_path: Path) -> None:
    write_images(tmp_path / "GT" / "000", 1)
    write_images(tmp_path / "LQ" / "000", 1)
    with pytest.raises(BadInputError, match=f"looks like paired data: use --realvsr {tmp_path}"):
        list_images(tmp_path)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; its data are a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    path.write_bytes(png_of_size(50_000, 50_000))
    for read in (image_size, read_image):
        with pytest.raises(BadInputError, match="has 50000 x 50000 pixels, more than"):
            read(path)
    # Of a format whose header is not read here: OpenCV's own limit.
    (tmp_path / "0.bmp").write_bytes(
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    with pytest.raises(BadInputError, match="is not an image that OpenCV can decode"):
        read_image(tmp_path / "0.bmp")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_MAX_IMAGE_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "GT.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("GT/0.png", bytes((1 << 20) + 1))
    with pytest.raises(BadInputError, match=r"0\.png unpacks to 1,048,577 bytes"):
        read_image(tmp_path / "GT.zip/GT/0.png")
