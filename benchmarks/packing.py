"""Speed of writing clips, compared with webdataset's ShardWriter.

    python benchmarks/packing.py [--rounds 5]

The same decoded frames (HR and LR of a real clip) are written to a tar by our writer, which also computes the index and
all hashes, and by `webdataset.ShardWriter` (with integer time stamps, which is faster), as npy clips and as PNG frames;
PNG once with each writer's own encoder and once encoded beforehand. CPU time is compared, since both write the same
bytes to the same disk. The writers run in turn; figures are medians. Writes benchmarks/results/packing.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import webdataset as wds
from footage import CLIPS
from machine import describe_machine

from sharding.codec import CODECS
from sharding.degrade import bicubic_downscale
from sharding.plan import PackOptions
from sharding.scan import scan_frames
from sharding.sources import Source
from sharding.tar import TarWriter
from sharding.video import iter_frames, probe
from sharding.write import FramePair, write_clip

RESULT = Path(__file__).parent / "results" / "packing.json"
CLIP_FRAMES, NUM_CLIPS = 16, 4
CLAIMS = {  # claim -> (ours, theirs, least ratio)
    "npy clips": ("npy: ours", "npy: ShardWriter", 2.0),
    "PNG frames, encoded before": ("png bytes: ours", "png bytes: ShardWriter", 2.0),
    "PNG frames, each side's encoder": ("png: ours", "png: ShardWriter", 2.0),
}
Clip = tuple[str, list[np.ndarray], list[np.ndarray]]


def read_clips(name: str) -> list[Clip]:
    frames = [np.ascontiguousarray(frame) for frame in islice(iter_frames(CLIPS[name]), NUM_CLIPS * CLIP_FRAMES)]
    low = [bicubic_downscale(frame, 4) for frame in frames]
    return [
        (f"{name}_s0000-{first:08d}", frames[first : first + CLIP_FRAMES], low[first : first + CLIP_FRAMES])
        for first in range(0, len(frames), CLIP_FRAMES)
    ]


def ours(name: str, clips: list[Clip], codec: str) -> Callable[[Path], None]:
    path = CLIPS[name]
    source = scan_frames(Source(name, "video", path, probe(path)), "")

    def write(folder: Path) -> None:
        with (folder / "ours.tar").open("wb") as file:
            writer = TarWriter(file)
            for number, (key, high, low) in enumerate(clips):
                pairs = (FramePair(h, small, None) for h, small in zip(high, low, strict=True))
                place = (key, number * CLIP_FRAMES, CLIP_FRAMES)
                write_clip(writer, PackOptions(codec=codec), source, place, pairs)
            writer.finish()

    return write


def ours_encoded(samples: list[dict[str, object]]) -> Callable[[Path], None]:
    """The tar writer alone, with a hash of every member and of the file."""

    def write(folder: Path) -> None:
        with (folder / "ours.tar").open("wb") as file:
            writer = TarWriter(file)
            for sample in samples:
                for field, data in sample.items():
                    if field != "__key__":
                        writer.add_stream(f"{sample['__key__']}.{field}", len(data), [data])
            writer.finish()

    return write


def theirs(samples: list[dict[str, object]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with wds.ShardWriter(str(folder / "theirs-%06d.tar"), maxsize=1e12, mtime=0, verbose=0) as writer:
            for sample in samples:
                writer.write(sample)

    return write


def make_ways(name: str) -> dict[str, Callable[[Path], None]]:
    clips = read_clips(name)
    arrays = [{"__key__": key, "hr.npy": np.stack(high), "lr.npy": np.stack(low)} for key, high, low in clips]
    frames: list[dict[str, object]] = [
        {"__key__": key}
        | {f"hr.{number:03d}.png": frame for number, frame in enumerate(high)}
        | {f"lr.{number:03d}.png": frame for number, frame in enumerate(low)}
        for key, high, low in clips
    ]
    encode = CODECS["png"].encode
    encoded = [{f: v if f == "__key__" else encode(v) for f, v in sample.items()} for sample in frames]
    return {
        "npy: ours": ours(name, clips, "npy"),
        "npy: ShardWriter": theirs(arrays),
        "png bytes: ours": ours_encoded(encoded),
        "png bytes: ShardWriter": theirs(encoded),
        "png: ours": ours(name, clips, "png"),
        "png: ShardWriter": theirs(frames),
    }


def cpu_of(write: Callable[[Path], None], folder: Path) -> float:
    begin_s = time.process_time()
    write(folder)
    cpu_s = time.process_time() - begin_s
    for path in folder.iterdir():
        path.unlink()
    return cpu_s


def compare_writers(rounds: int, folder: Path) -> dict[str, object]:
    ways = make_ways("bigbuckbunny")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, write in ways.items():
            cpu_s = cpu_of(write, folder)
            if number:  # the first round warms up
                seconds[name].append(cpu_s)
    frames = NUM_CLIPS * CLIP_FRAMES
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    claims = {
        claim: {"ratio": round(medians[other] / medians[mine], 3), "at_least": least}
        for claim, (mine, other, least) in CLAIMS.items()
    }
    return {
        "what": f"{frames} HR frames of 1280x720 and as many LR of 320x180, in memory",
        "hr_frames_per_cpu_s": {name: round(frames / value, 1) for name, value in medians.items()},
        "rounds_cpu_s": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "ratios": claims,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument(
        "--result", type=Path, default=RESULT, help="output file (default: benchmarks/results/packing.json)"
    )
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "command": f"python benchmarks/packing.py --rounds {arguments.rounds}",
            **compare_writers(arguments.rounds, Path(folder)),
            "machine": describe_machine(),
        }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ratios"], indent=1))


if __name__ == "__main__":
    main()
