"""What a crop costs when the shard is not in memory: its own rows, and not what the kernel would read ahead."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from sharding.pack import PackJob, pack
from sharding.plan import PackOptions
from vsr_dist.data.config import DataConfig
from vsr_dist.data.order import Window
from vsr_dist.data.shards import open_shard_set
from vsr_dist.data.windows import Augmentation, ClipArrays, ShardWindows

HEIGHT, WIDTH, CROP_PX, NUM_FRAMES = 480, 640, 16, 7


def bytes_read():
    """Bytes that this process had read from storage, as the kernel counts them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def forget(root):
    """Drop the files of a folder from memory."""
    for path in root.glob("*.tar"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


@pytest.fixture(scope="module", params=["npy", "png"])
def packed(request, tmp_path_factory):
    """(Folder of a set of 20 noisy frames, its codec)."""
    folder = tmp_path_factory.mktemp(f"cold_{request.param}")
    (folder / "noise").mkdir()
    random = np.random.default_rng(0)
    for number in range(20):
        frame = random.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"noise/{number:02d}.png"), cv2.resize(frame, (WIDTH, HEIGHT)))
    pack(PackJob(folder / "set", (folder / "noise",), options=PackOptions(codec=request.param)))
    return folder / "set", request.param


def test_a_cold_crop_reads_its_rows_or_its_frames_and_little_more(packed):
    root, codec = packed
    windows_of = ShardWindows(open_shard_set(DataConfig(root=str(root))), "train", check_hashes=False)
    forget(root)
    before = bytes_read()
    (root / "train-000000.tar").read_bytes()
    if bytes_read() == before:
        pytest.skip("this file system does not count what is read (it lies in memory)")
    forget(root)
    shapes = [(NUM_FRAMES, side, side, 3) for side in (CROP_PX, 4 * CROP_PX)]
    out = ClipArrays(*(np.zeros(shape, np.uint8) for shape in shapes))
    before = bytes_read()
    # Over a clip border: frames 12 to 15 of one clip and 0 to 2 of the next.
    windows_of.read(Window(0, 12, NUM_FRAMES), Augmentation(40, 60), out)
    read = bytes_read() - before
    clips = windows_of.sequences[0].clips
    if codec == "npy":
        rows = NUM_FRAMES * (4 * CROP_PX * WIDTH + CROP_PX * WIDTH // 4) * 3
    else:
        used = [(0, number) for number in range(12, 16)] + [(1, number) for number in range(3)]
        rows = sum(clips[clip].members[field][number].num_bytes for clip, number in used for field in ("hr", "lr"))
    # Each range may begin and end inside a page.
    assert rows * 0.8 < read < rows + 2 * NUM_FRAMES * 2 * 4096
    frames = NUM_FRAMES * HEIGHT * WIDTH * 3
    assert read < frames
