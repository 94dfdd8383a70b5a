"""Speed-up of `vsr-dist pack` on one video by a second worker.

    python benchmarks/pack_workers.py [--rounds 3]

A real 720p clip is repeated to form one video of as many shots, longer for the faster codec. It is packed with one and
with two processes in turn. Figures are medians of the wall time, including process start and scan. Needs two free
cores. Writes benchmarks/results/pack_workers.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from footage import repeat_clip
from machine import describe_machine

from sharding.video import probe

RESULT = Path(__file__).parent / "results" / "pack_workers.json"
SHOTS, SHARD_MB = {"png": 4, "npy": 12}, 200
LEAST_RATIO = 1.7


def wall_of_pack(video: Path, codec: str, workers: int, folder: Path) -> float:
    out = folder / "set"
    command = [sys.executable, "-m", "sharding", "pack", str(video), "--out", str(out), "--codec", codec]
    command += ["--shard-mb", str(SHARD_MB if codec == "npy" else SHARD_MB / 3), "--workers", str(workers)]
    begin_s = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall_s = time.monotonic() - begin_s
    subprocess.run(["rm", "-r", str(out)], check=True)
    return wall_s


def compare_workers(rounds: int, folder: Path) -> dict[str, object]:
    videos = {codec: repeat_clip("bigbuckbunny", folder / f"{codec}.mp4", shots) for codec, shots in SHOTS.items()}
    ways = [(codec, workers) for codec in SHOTS for workers in (1, 2)]
    walls: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for codec, workers in ways:
            walls[codec, workers].append(wall_of_pack(videos[codec], codec, workers, folder))
            print(f"{codec}, {workers} workers: {walls[codec, workers][-1]:.2f} s", flush=True)
    medians = {way: statistics.median(values) for way, values in walls.items()}
    return {
        "frames": {codec: probe(video).num_frames for codec, video in videos.items()},
        "wall_s": {f"{codec}, {workers}": [round(v, 2) for v in walls[codec, workers]] for codec, workers in ways},
        "two_over_one": {codec: round(medians[codec, 1] / medians[codec, 2], 3) for codec in SHOTS},
        "at_least": LEAST_RATIO,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: %(default)s)")
    parser.add_argument(
        "--result", type=Path, default=RESULT, help="output file (default: benchmarks/results/pack_workers.json)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "command": f"python benchmarks/pack_workers.py --rounds {arguments.rounds}",
            **compare_workers(arguments.rounds, Path(folder)),
            "machine": describe_machine(),
        }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["two_over_one"]))


if __name__ == "__main__":
    main()
