"""What one training window reads from disk when nothing of the store is in memory."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from loading_stores import BATCH_CLIPS, LOW_PX, NUM_FRAMES, SCALE, Clips, LoosePictures, Views, read_clips

from sharding.index import read_index
from vsr_dist.core.collectives import World
from vsr_dist.data.config import DataConfig
from vsr_dist.data.loader import TrainLoader
from vsr_dist.data.shards import open_shard_set
from vsr_dist.data.windows import ClipArrays, draw_augmentation

COLD_WINDOWS = 24


def our_config(root: Path, **changes: object) -> DataConfig:
    config = DataConfig(
        root=str(root), clip_frames=NUM_FRAMES, crop_px=LOW_PX, batch_clips=BATCH_CLIPS, symmetries=False
    )
    return replace(config, **changes)


def same_crops(config: DataConfig, clips: Clips, count: int) -> list[Views]:
    """The crops of our first `count` samples as views of the maps in `clips`, for a copy without anything else."""
    loader = TrainLoader(config, open_shard_set(config), 0, World(), 1)
    crops = []
    for sample in loader.order.samples(range(count)):
        info = loader.windows_of.sequences[sample.window.sequence]
        choice = draw_augmentation(sample.augment_seed, info.low_height_px, info.low_width_px, LOW_PX, symmetries=False)
        views = []
        for piece in loader.windows_of._pieces(sample.window):
            place = (slice(piece.start, piece.stop), *_square(choice.top_px, choice.left_px, 1))
            real_place = (slice(piece.start, piece.stop), *_square(choice.top_px, choice.left_px, SCALE))
            low, real = clips.arrays[piece.clip.key]
            views.append((piece.at, low[place], real[real_place]))
        crops.append(views)
    return crops


def _square(top: int, left: int, scale: int) -> tuple[slice, slice]:
    return slice(top * scale, (top + LOW_PX) * scale), slice(left * scale, (left + LOW_PX) * scale)


def first_copy(clips: Clips) -> Clips:
    """Each video once."""
    return Clips(clips.root, clips.index, {key: value for key, value in clips.arrays.items() if "_0_s" in key})


def forget(folder: Path) -> None:
    """Drop the files of a folder from memory; what is mapped stays, so nothing may be."""
    for path in (path for path in folder.iterdir() if path.is_file()):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def bytes_read(folder: Path, read: Callable[[int], object]) -> float:
    """Mean bytes that the kernel reads from disk for one window, each from a store that is not in memory."""

    def counter() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["read_bytes"])

    amounts = []
    for number in range(COLD_WINDOWS):
        gc.collect()
        forget(folder)
        before = counter()
        read(number)
        amounts.append(counter() - before)
    return statistics.mean(amounts)


def cold_bytes(work: Path, codecs: Iterable[str]) -> dict[str, float]:
    """Way -> bytes read from disk per window, of the stores in `work`."""
    shapes = [(NUM_FRAMES, side, side, 3) for side in (LOW_PX, LOW_PX * SCALE)]
    out = ClipArrays(*(np.empty(shape, np.uint8) for shape in shapes))

    def read_with(loader: TrainLoader, number: int) -> None:
        loader.reader.read(loader.order.samples([number])[0], out)
        loader.shards.close_idle()

    found = {}
    for codec in codecs:
        config = our_config(work / codec, check_hashes="never", frame_cache_mb=0)
        loader = TrainLoader(config, open_shard_set(config), 0, World(), 1)
        found[f"{codec} shards"] = bytes_read(work / codec, partial(read_with, loader))
    index = read_index(work / "npy")
    pictures = LoosePictures(first_copy(read_clips(work / "npy", index)), work / "loose")
    found["loose png, whole frames"] = bytes_read(work / "loose", pictures.__getitem__)

    def by_hand(number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        crop = same_crops(our_config(work / "npy"), read_clips(work / "npy", index, 1), number + 1)[number]
        return [(low.copy(), real.copy()) for _, low, real in crop]

    found["npy shards, a plain map with readahead"] = bytes_read(work / "npy", by_hand)
    return found
