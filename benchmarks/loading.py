"""Throughput of training windows compared with other stores of the same frames, and the bytes read from a cold disk.

    python benchmarks/loading.py --work /data/loading-benchmark [--rounds 5]

Windows of 7 frames, high-resolution crop 256, batch 4, from two sample clips. Loaders are compared that do the same
work on the same bytes: raw arrays with raw arrays, PNG with PNG, WebP with WebP. The PNG and WebP files and LMDB
records have the same bytes as our shards. All loaders run in turn in every round; a ratio is the median over the rounds
of the ratio within a round. Frames per CPU-second count the process and its workers, after a warm-up, with everything
in the page cache.

Our figure includes the order, the draw of the augmentation (symmetries off), the copy into preallocated batches, and
for image codecs a hash of every decoded frame. The other loaders check nothing. For raw arrays we hash each clip once
per
process, at its first use, before the timed part; its cost is measured separately (`hash_all_clips_once`). Decoded
frames are not cached (`data.frame_cache_mb: 0`).

webdataset, litdata and MosaicML Streaming hold one sample per clip of 16 frames, as their formats suggest, and must
read a whole clip for a window of 7 frames and a crop; a store of precomputed windows would be faster, but fixed.

Needs the packages lmdb, litdata and mosaicml-streaming, preferably in a separate environment; a loader whose package is
missing is reported with its error. Writes benchmarks/results/loading.json and the tables of docs/loading.md.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import mmap
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
import webdataset as wds
from machine import describe_machine
from torch.utils.data import DataLoader, Dataset

from sharding.index import read_index
from sharding.pack import PackJob, pack
from sharding.plan import PackOptions
from sharding.sources import find_samples
from vsr_dist.core.collectives import World
from vsr_dist.data.config import DataConfig
from vsr_dist.data.loader import TrainLoader
from vsr_dist.data.shards import open_shard_set
from vsr_dist.data.windows import ClipArrays, draw_augmentation

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "loading.json"
PAGE, BEGIN, END = ROOT / "docs" / "loading.md", "<!-- loading:begin -->", "<!-- loading:end -->"
VIDEOS = ("bigbuckbunny", "bikes")
CODECS = ("npy", "png", "webp")
LOW_PX, SCALE, NUM_FRAMES, BATCH_CLIPS = 64, 4, 7, 4
FRAMES_PER_BATCH = BATCH_CLIPS * NUM_FRAMES
NUM_CROPS = 20_000
SECONDS, WARM_UP_BATCHES, MIN_BATCHES = 1.0, 2, 3
COLD_WINDOWS = 12
COMPARED = ("lmdb", "litdata", "mosaicml-streaming")
# Ours -> the ways that do the same work on the same bytes. The strongest of them in a round counts.
CONTROLS = {
    "npy": {
        "a copy by hand of the same crops": ["copy by hand"],
        "DataLoader over numpy.memmap of the same crops": ["memmap, 0 workers", "memmap, 2 workers"],
        "litdata, raw clips": ["litdata raw, 0 workers", "litdata raw, 2 workers"],
        "MosaicML Streaming, raw clips": ["mosaic raw, 0 workers", "mosaic raw, 2 workers"],
        "webdataset on the same tars": ["webdataset npy, 0 workers", "webdataset npy, 2 workers"],
    },
    "png": {
        "DataLoader over loose PNG files": ["loose png, 0 workers", "loose png, 2 workers"],
        "DataLoader over LMDB of PNG": ["lmdb png, 0 workers", "lmdb png, 2 workers"],
    },
    "webp": {
        "DataLoader over loose WebP files": ["loose webp, 0 workers", "loose webp, 2 workers"],
        "DataLoader over LMDB of WebP": ["lmdb webp, 0 workers", "lmdb webp, 2 workers"],
    },
}

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
# One crop as (first frame in the window, low view, real view), one per clip that its window lies in.
Views = list[tuple[int, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Window:
    """A crop of 7 frames: (clip key, first frame, end) of each clip that it lies in, and its low-resolution corner."""

    pieces: tuple[tuple[str, int, int], ...]
    top: int
    left: int


# Clips by key: (low, real), views of a map of the npy shards.
Clips = dict[str, tuple[np.ndarray, np.ndarray]]


# --- the set, and its clips as arrays ------------------------------------------------------------------------


def read_clips(root: Path, least_frames: int = NUM_FRAMES, advice: int | None = None) -> Clips:
    """The clips of at least so many frames; `advice` for the kernel on how the maps are read."""
    index = read_index(root)
    maps = {shard.name: np.memmap(root / shard.name, mode="r", dtype=np.uint8) for shard in index.shards}
    if advice is not None:
        for array in maps.values():
            array._mmap.madvise(advice)
    arrays = {}
    for clip in index.clips:
        fields = []
        for field in ("lr", "hr"):
            (member,) = clip.members[field]
            flat = maps[clip.shard][member.data_offset : member.data_offset + int(np.prod(member.shape))]
            fields.append(flat.reshape(member.shape))
        if len(fields[0]) >= least_frames:
            arrays[clip.key] = (fields[0], fields[1])
    return arrays


def build(work: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A store made once; an interrupted one is made again."""
    folder, mark = work / name, work / f"{name}.done"
    if not mark.exists():
        print(f"building {name}", flush=True)
        try:
            make(folder)
        except ImportError as error:
            print(f"{name}: {error}", flush=True)
            return folder
        mark.touch()
    return folder


def pack_codec(work: Path, codec: str) -> Path:
    sources = tuple(path for path in find_samples() if path.stem in VIDEOS)
    options = PackOptions(codec=codec, shard_bytes=64_000_000)
    return build(work, codec, lambda folder: pack(PackJob(folder, sources, options=options, num_workers=2)))


# --- ours ----------------------------------------------------------------------------------------------------


def our_config(root: Path, **changes: object) -> DataConfig:
    config = DataConfig(
        root=str(root), clip_frames=NUM_FRAMES, crop_px=LOW_PX, batch_clips=BATCH_CLIPS, symmetries=False
    )
    return replace(config, frame_cache_mb=0, **changes)


def open_loader(config: DataConfig) -> TrainLoader:
    return TrainLoader(config, open_shard_set(config), 0, World(), 1)


def read_ours(config: DataConfig) -> Batches:
    loader = open_loader(config)
    if loader.windows_of.index.codec == "npy":
        hash_all_clips(loader)
    return ((batch.low_BTCHW, batch.real_BTCYX) for batch in loader.batches(0))


def hash_all_clips(loader: TrainLoader) -> dict[str, float]:
    """What the first touch of every clip costs a process, once."""
    begin_s, num_bytes = time.process_time(), 0
    for clip in loader.windows_of.index.clips:
        loader.windows_of._checks.check_clip(clip, False, loader.shards.acquire(clip.shard))
        loader.shards.release(clip.shard)
        num_bytes += sum(member.num_bytes for members in clip.members.values() for member in members)
    cpu_s = time.process_time() - begin_s
    return {"cpu_s": round(cpu_s, 3), "gigabytes": round(num_bytes / 1e9, 3)}


# --- raw arrays: a copy by hand, a DataLoader over a map, webdataset, litdata, MosaicML Streaming --------------


def our_windows(config: DataConfig, count: int) -> list[Window]:
    """Where our first `count` samples lie."""
    loader = open_loader(config)
    windows = []
    for sample in loader.order.samples(range(count)):
        info = loader.windows_of.sequences[sample.window.sequence]
        choice = draw_augmentation(sample.augment_seed, info.low_height_px, info.low_width_px, LOW_PX, symmetries=False)
        pieces = [(piece.clip.key, piece.start, piece.stop) for piece in loader.windows_of._pieces(sample.window)]
        windows.append(Window(tuple(pieces), choice.top_px, choice.left_px))
    return windows


def views_of(windows: list[Window], clips: Clips) -> list[Views]:
    """The crops of the windows as views of the maps in `clips`."""
    crops = []
    for window in windows:
        places = [_square(window.top, window.left, scale) for scale in (1, SCALE)]
        views, at = [], 0
        for key, start, stop in window.pieces:
            low, real = (array[(slice(start, stop), *place)] for array, place in zip(clips[key], places, strict=True))
            views.append((at, low, real))
            at += stop - start
        crops.append(views)
    return crops


def _square(top: int, left: int, scale: int) -> tuple[slice, slice]:
    return slice(top * scale, (top + LOW_PX) * scale), slice(left * scale, (left + LOW_PX) * scale)


def copy_by_hand(crops: list[Views]) -> Batches:
    """Crops copied into one batch that is used again: no order, no checks, no workers."""
    low_out, real_out = (torch.empty((BATCH_CLIPS, NUM_FRAMES, side, side, 3), dtype=torch.uint8) for side in _SIDES)
    for number, views in zip(cycle(range(BATCH_CLIPS)), cycle(crops), strict=False):
        for first, low, real in views:
            low_out.numpy()[number, first : first + len(low)] = low
            real_out.numpy()[number, first : first + len(real)] = real
        if number == BATCH_CLIPS - 1:
            yield low_out, real_out


_SIDES = (LOW_PX, LOW_PX * SCALE)


class MappedCrops(Dataset):
    """The same crops from the map, as one would write a Dataset; the DataLoader stacks them."""

    def __init__(self, crops: list[Views]) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        views = self.crops[number]
        if len(views) == 1:
            return views[0][1].copy(), views[0][2].copy()
        return np.concatenate([view[1] for view in views]), np.concatenate([view[2] for view in views])


def in_batches(dataset: Dataset, num_workers: int) -> Batches:
    loader = DataLoader(dataset, BATCH_CLIPS, num_workers=num_workers, persistent_workers=num_workers > 0)
    while True:
        yield from loader


def cut_random(sample: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    num_frames, height, width, _ = sample["lr"].shape
    start, top, left = (random.randrange(n + 1) for n in (num_frames - NUM_FRAMES, height - LOW_PX, width - LOW_PX))
    frames = slice(start, start + NUM_FRAMES)
    places = [(frames, *_square(top, left, scale)) for scale in (1, SCALE)]
    return np.ascontiguousarray(sample["lr"][places[0]]), np.ascontiguousarray(sample["hr"][places[1]])


def read_webdataset(root: Path, num_workers: int) -> Batches:
    """Our own npy shards through the stock decoder of webdataset."""
    urls = [str(root / shard.name) for shard in read_index(root).shards]
    dataset = wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    long_enough = dataset.select(lambda sample: len(sample["lr.npy"]) >= NUM_FRAMES)
    return in_batches(long_enough.map(_cut_webdataset).repeat(), num_workers)


def _cut_webdataset(sample: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return cut_random({"lr": sample["lr.npy"], "hr": sample["hr.npy"]})


def _as_sample(item: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    return {"lr": np.ascontiguousarray(item[0]), "hr": np.ascontiguousarray(item[1])}


def build_litdata(clips: Clips, folder: Path) -> None:
    import litdata  # noqa: PLC0415 - see the top of this file

    items = list(clips.values())
    litdata.optimize(fn=_as_sample, inputs=items, output_dir=str(folder), chunk_bytes="256MB", num_workers=1)


def read_litdata(folder: Path, num_workers: int) -> Batches:
    import litdata  # noqa: PLC0415 - see the top of this file

    dataset = litdata.StreamingDataset(str(folder), transform=cut_random)
    while True:
        yield from litdata.StreamingDataLoader(dataset, batch_size=BATCH_CLIPS, num_workers=num_workers)


def build_mosaic(clips: Clips, folder: Path) -> None:
    from streaming import MDSWriter  # noqa: PLC0415 - see the top of this file

    with MDSWriter(out=str(folder), columns={"lr": "ndarray", "hr": "ndarray"}, size_limit=1 << 28) as writer:
        for item in clips.values():
            writer.write(_as_sample(item))


def read_mosaic(folder: Path, num_workers: int) -> Batches:
    from streaming import StreamingDataset  # noqa: PLC0415 - see the top of this file

    class Cut(StreamingDataset):
        def __getitem__(self, at: int) -> tuple[np.ndarray, np.ndarray]:
            return cut_random(super().__getitem__(at))

    return in_batches(Cut(local=str(folder), batch_size=BATCH_CLIPS, shuffle=False), num_workers)


# --- one encoded picture per frame: loose files, LMDB ----------------------------------------------------------


class Pictures(Dataset):
    """The same windows from encoded frames, which `get` finds by name."""

    def __init__(self, windows: list[Window]) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def get(self, name: str) -> np.ndarray:
        raise NotImplementedError

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        window = self.windows[number]
        parts = []
        for field, scale in (("lr", 1), ("hr", SCALE)):
            place = _square(window.top, window.left, scale)
            names = [f"{key}.{field}.{t:03d}" for key, start, stop in window.pieces for t in range(start, stop)]
            parts.append(np.stack([self.get(name)[place] for name in names]))
        return parts[0], parts[1]


class LoosePictures(Pictures):
    def __init__(self, windows: list[Window], folder: Path) -> None:
        super().__init__(windows)
        self.folder = folder

    def get(self, name: str) -> np.ndarray:
        return cv2.imread(str(self.folder / name), cv2.IMREAD_COLOR_RGB)


class LmdbPictures(Pictures):
    def __init__(self, windows: list[Window], folder: Path) -> None:
        super().__init__(windows)
        self.folder = folder
        self.transaction = None

    def get(self, name: str) -> np.ndarray:
        import lmdb  # noqa: PLC0415 - see the top of this file

        if self.transaction is None:  # opened in the worker that reads
            environment = lmdb.open(str(self.folder), readonly=True, lock=False, readahead=False, meminit=False)
            self.transaction = environment.begin(buffers=True)
        return cv2.imdecode(np.frombuffer(self.transaction.get(name.encode()), np.uint8), cv2.IMREAD_COLOR_RGB)


def read_pictures(kind: type[Pictures], windows: list[Window], folder: Path, num_workers: int) -> Batches:
    """A data set of its own each time: LMDB refuses to open in a worker what its parent still has open."""
    return in_batches(kind(windows, folder), num_workers)


def each_picture(root: Path) -> Iterator[tuple[str, bytes]]:
    """(Name, encoded bytes) of every frame of an image codec's shards."""
    for clip in read_index(root).clips:
        with (root / clip.shard).open("rb") as file:
            for field in ("lr", "hr"):
                for number, member in enumerate(clip.members[field]):
                    file.seek(member.offset)
                    yield f"{clip.key}.{field}.{number:03d}", file.read(member.num_bytes)


def build_loose(root: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in each_picture(root):
        (folder / name).write_bytes(data)


def build_lmdb(root: Path, folder: Path) -> None:
    import lmdb  # noqa: PLC0415 - see the top of this file

    with lmdb.open(str(folder), map_size=1 << 36) as environment, environment.begin(write=True) as transaction:
        for name, data in each_picture(root):
            transaction.put(name.encode(), data)


# --- measuring -------------------------------------------------------------------------------------------------


def build_stores(work: Path) -> None:
    roots = {codec: pack_codec(work, codec) for codec in CODECS}
    clips = read_clips(roots["npy"])
    for codec in ("png", "webp"):
        build(work, f"loose-{codec}", partial(build_loose, roots[codec]))
        build(work, f"lmdb-{codec}", partial(build_lmdb, roots[codec]))
    build(work, "litdata", partial(build_litdata, clips))
    build(work, "mosaic", partial(build_mosaic, clips))


def make_ways(work: Path) -> dict[str, Callable[[], Batches]]:
    """Name -> how to begin to read."""
    npy = work / "npy"
    windows = our_windows(our_config(npy), NUM_CROPS)
    crops = views_of(windows, read_clips(npy, 1))
    ways: dict[str, Callable[[], Batches]] = {"copy by hand": lambda: copy_by_hand(crops)}
    ways["npy"] = lambda: read_ours(our_config(npy))
    for workers in (0, 2):
        ways[f"memmap, {workers} workers"] = partial(in_batches, MappedCrops(crops), workers)
    ways["npy, 2 threads"] = lambda: read_ours(our_config(npy, reader_threads=2))
    ways["npy, symmetries"] = lambda: read_ours(replace(our_config(npy), symmetries=True))
    for workers in (0, 2):
        ways[f"litdata raw, {workers} workers"] = partial(read_litdata, work / "litdata", workers)
        ways[f"mosaic raw, {workers} workers"] = partial(read_mosaic, work / "mosaic", workers)
        ways[f"webdataset npy, {workers} workers"] = partial(read_webdataset, npy, workers)
    for codec in ("png", "webp"):
        ways[codec] = partial(read_ours, our_config(work / codec))
        for workers in (0, 2):
            for name, kind in (("loose", LoosePictures), ("lmdb", LmdbPictures)):
                folder = work / f"{name}-{codec}"
                ways[f"{name} {codec}, {workers} workers"] = partial(read_pictures, kind, windows, folder, workers)
    return ways


def cpu_seconds() -> float:
    """CPU time of this process and of all that it has started, those that have ended included."""
    me = psutil.Process()
    ended = me.cpu_times()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(time_.user + time_.system for time_ in times) + ended.children_user + ended.children_system


def measure(begin: Callable[[], Batches]) -> dict[str, float]:
    batches = begin()
    for low, real in islice(batches, WARM_UP_BATCHES):
        assert low.dtype == real.dtype == torch.uint8
        assert low.numel() * SCALE * SCALE == real.numel() == FRAMES_PER_BATCH * (LOW_PX * SCALE) ** 2 * 3
    cpu_s, begin_s, num_batches = cpu_seconds(), time.perf_counter(), 0
    while time.perf_counter() - begin_s < SECONDS or num_batches < MIN_BATCHES:
        next(batches)
        num_batches += 1
    wall_s, cpu_s = time.perf_counter() - begin_s, cpu_seconds() - cpu_s
    close = getattr(batches, "close", None)
    del batches
    if close is not None:
        close()
    gc.collect()
    frames = num_batches * FRAMES_PER_BATCH
    return {"cpu": frames / cpu_s, "wall": frames / wall_s}


def take_turns(
    ways: dict[str, Callable[[], Batches]], num_rounds: int
) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """(Way -> its figures, one per round; way -> why it could not be measured)."""
    # litdata's writer sets another way to start processes, with which some loaders do not work.
    multiprocessing.set_start_method("fork", force=True)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    faults: dict[str, str] = {}
    for _ in range(num_rounds):
        for name, begin in ways.items():
            if name in faults:
                continue
            try:
                rounds[name].append(measure(begin))
            except Exception as error:  # noqa: BLE001 - whatever stops another package is part of the result
                faults[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                print(f"{name}: {faults[name]}", flush=True)
                continue
            print(name, {key: round(value) for key, value in rounds[name][-1].items()}, flush=True)
    return {name: found for name, found in rounds.items() if name not in faults}, faults


def ratios(rounds: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, dict[str, object]]]:
    """Ours -> control -> median, least and greatest ratio of the rounds, in frames per CPU-second."""
    table: dict[str, dict[str, dict[str, object]]] = {}
    for ours, controls in CONTROLS.items():
        for title, names in controls.items():
            known = [rounds[name] for name in names if name in rounds]
            if not known or ours not in rounds:
                continue
            strongest = [max(one["cpu"] for one in turn) for turn in zip(*known, strict=True)]
            found = [one["cpu"] / other for one, other in zip(rounds[ours], strongest, strict=True)]
            values = {"median": statistics.median(found), "least": min(found), "greatest": max(found)}
            table.setdefault(ours, {})[title] = {key: float(f"{value:.3g}") for key, value in values.items()}
    return table


# --- what a cold store reads ------------------------------------------------------------------------------------


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache; what is mapped stays, so nothing may be."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def bytes_read(folder: Path, begin: Callable[[int], Callable[[], object]], num_windows: int) -> float:
    """Mean bytes that the kernel reads from disk for one window: each window from a store that is not in memory.

    `begin` opens the store and returns what reads `num_windows` windows from a number on. It is called anew for each of
    `COLD_WINDOWS` measurements; what opening reads is not counted.
    """

    def counter() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["read_bytes"])

    amounts = []
    for number in range(COLD_WINDOWS):
        read = begin(number)
        gc.collect()
        forget(folder)
        before = counter()
        read()
        amounts.append((counter() - before) / num_windows)
        del read
        gc.collect()
    return statistics.mean(amounts)


def cold_bytes(work: Path) -> dict[str, float]:
    """Way -> bytes read from disk per window. Stores of clips read a batch at a time, in their own order."""
    npy = work / "npy"
    windows = our_windows(our_config(npy), COLD_WINDOWS)
    out = ClipArrays(*(np.empty((NUM_FRAMES, side, side, 3), np.uint8) for side in _SIDES))

    def ours(codec: str, number: int) -> Callable[[], object]:
        loader = open_loader(our_config(work / codec, check_hashes="never"))
        sample = loader.order.samples([number])[0]
        return lambda: (loader.reader.read(sample, out), loader.shards.close_idle())

    def mapped(advice: int | None, number: int) -> Callable[[], object]:
        crops = MappedCrops(views_of(windows, read_clips(npy, 1, advice)))
        return lambda: crops[number]

    def pictures(kind: type[Pictures], folder: Path, number: int) -> Callable[[], object]:
        dataset = kind(windows, folder)
        return lambda: dataset[number]

    def batch_of(begin: Callable[[], Batches], number: int) -> Callable[[], object]:
        batches = begin()
        return lambda: next(batches)

    found = {}
    for codec in CODECS:
        found[codec] = bytes_read(work / codec, partial(ours, codec), 1)
    found["memmap"] = bytes_read(npy, partial(mapped, None), 1)
    found["memmap, MADV_RANDOM"] = bytes_read(npy, partial(mapped, mmap.MADV_RANDOM), 1)
    for codec in ("png", "webp"):
        for name, kind in (("loose", LoosePictures), ("lmdb", LmdbPictures)):
            folder = work / f"{name}-{codec}"
            if (work / f"{name}-{codec}.done").exists():
                found[f"{name} {codec}"] = bytes_read(folder, partial(pictures, kind, folder), 1)
    streams = {"webdataset npy": (npy, partial(read_webdataset, npy, 0))}
    # litdata is left out: it keeps its files mapped between openings, so that its store cannot be made cold here.
    if (work / "mosaic.done").exists():
        streams["mosaic raw"] = (work / "mosaic", partial(read_mosaic, work / "mosaic", 0))
    for name, (folder, begin) in streams.items():
        gc.collect()
        found[name] = bytes_read(folder, partial(batch_of, begin), BATCH_CLIPS)
    return {name: round(value) for name, value in found.items()}


# --- the result ---------------------------------------------------------------------------------------------------


def find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def markdown(result: dict) -> str:
    """The tables of the page. Each way has the disk reads of its store, whatever the number of workers."""
    lines = ["| ours (`data.root` packed as) | against | ratio of frames per CPU-second, median (least to greatest) |"]
    lines.append("|---|---|---|")
    for ours, controls in result["ratios"].items():
        for title, one in controls.items():
            lines.append(f"| `{ours}` | {title} | {one['median']:g} ({one['least']:g} to {one['greatest']:g}) |")
    lines += ["", "| store | HR frames per CPU-second | from a cold disk, MB per window |", "|---|---|---|"]
    cold = result["cold_bytes_per_window"]
    for name, value in result["hr_frames_per_cpu_s"].items():
        stored = cold.get(name.split(",")[0])
        title = f"ours, `{name}`" if name.split(",")[0] in CODECS else name
        lines.append(f"| {title} | {value:,.0f} | {'-' if stored is None else f'{stored / 1e6:.1f}'} |")
    hashing, load, advised = result["hash_all_clips_once"], result["load_average"], cold["memmap, MADV_RANDOM"] / 1e6
    lines += [
        "",
        f"Hashing all {hashing['gigabytes']:.2f} GB of the `npy` set once took {hashing['cpu_s']:.2f} CPU-seconds, "
        f"not in its figure. `memmap` with MADV_RANDOM reads {advised:.1f} MB per window from a cold disk.",
        f"{result['rounds']} rounds; other work ran on the machine: load average {load[0]:g} before, "
        f"{load[1]:g} after, on {result['machine']['cores']} cores.",
    ]
    return "\n".join(lines)


def write_page(result: dict) -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(result)}\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the stores, about 4 GB, which are kept")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    build_stores(arguments.work)
    load_before = os.getloadavg()[0]
    hashing = hash_all_clips(open_loader(our_config(arguments.work / "npy")))
    rounds, faults = take_turns(make_ways(arguments.work), arguments.rounds)
    gc.collect()  # nothing may be mapped any more
    medians = {
        figure: {name: round(statistics.median(one[figure] for one in found), 1) for name, found in rounds.items()}
        for figure in ("cpu", "wall")
    }
    result = {
        "machine": describe_machine() | {"compared": {name: find_version(name) for name in COMPARED}},
        "rounds": arguments.rounds,
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "command": f"python benchmarks/loading.py --work WORK --rounds {arguments.rounds}",
        "what": f"{NUM_FRAMES} frames, crops of {LOW_PX * SCALE} and {LOW_PX} px, batch {BATCH_CLIPS}, no symmetries",
        "hr_frames_per_cpu_s": medians["cpu"],
        "hr_frames_per_wall_s": medians["wall"],
        "rounds_cpu": {name: [round(one["cpu"], 1) for one in found] for name, found in rounds.items()},
        "ratios": ratios(rounds),
        "hash_all_clips_once": hashing,
        "cold_bytes_per_window": cold_bytes(arguments.work),
        "errors": faults,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    write_page(result)
    print(markdown(result))


if __name__ == "__main__":
    main()
