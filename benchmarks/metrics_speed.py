"""Speed of PSNR and SSIM per frame, compared with a loop over scikit-image.

    python benchmarks/metrics_speed.py [--rounds 7]

Real frames of the sample clips, reduced to a quarter and enlarged by bicubic, 4 frames each at 272 x 640 and 720 x 1280
px; PSNR and SSIM on Y and RGB with a border of 4 px. Both run in turn in every round, so that other load affects both;
the number is the median of the rounds' ratios. `cpu` is CPU time, which does not grow with the load of the machine.
With two threads both measure two frames at a time, as `evaluate` does. `tensor` is what a GPU runs, here on the CPU.
Writes benchmarks/results/metrics_speed.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from machine import describe_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/helpers"))
from metric_references import scikit_fidelity

from sharding.sources import find_samples
from sharding.video import iter_frames
from vsr_dist.metrics.fidelity import batch_fidelity, frame_fidelity
from vsr_dist.ops.color import from_uint8, to_uint8
from vsr_dist.ops.resample import bicubic_upsample

RESULT = Path(__file__).resolve().parent / "results" / "metrics_speed.json"
CLIPS = {"bikes": "272x640", "bigbuckbunny": "720x1280"}
NUM_FRAMES, BORDER_PX, SCALE = 4, 4, 4
Pair = tuple[np.ndarray, np.ndarray]


def pairs(clip: str) -> list[Pair]:
    path = next(path for path in find_samples() if path.stem == clip)
    found = []
    for real in islice(iter_frames(path), 0, 13 * NUM_FRAMES, 13):
        height, width = real.shape[:2]
        low = cv2.resize(real, (width // SCALE, height // SCALE), interpolation=cv2.INTER_AREA)
        low_BCHW = from_uint8(torch.from_numpy(low)).permute(2, 0, 1)[None]
        fake = to_uint8(bicubic_upsample(low_BCHW, SCALE).clamp(0, 1))[0].permute(1, 2, 0).contiguous().numpy()
        found.append((fake, real))
    return found


def scikit(pair: Pair) -> object:
    inside = slice(BORDER_PX, -BORDER_PX)
    return scikit_fidelity(pair[0][inside, inside], pair[1][inside, inside], rounded=False)


def ours(pair: Pair) -> object:
    inside = slice(BORDER_PX, -BORDER_PX)
    return frame_fidelity(pair[0][inside, inside], pair[1][inside, inside])


def tensor(pair: Pair) -> object:
    inside = slice(BORDER_PX, -BORDER_PX)
    batch = (torch.from_numpy(np.ascontiguousarray(frame[inside, inside]))[None] for frame in pair)
    return batch_fidelity(*batch)


def seconds(side: Callable[[Pair], object], data: list[Pair], threads: int) -> tuple[float, float]:
    """Wall time and processor time per frame."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    if threads == 1:
        for pair in data:
            side(pair)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(side, data))
    return (time.perf_counter() - begin) / len(data), (time.process_time() - begin_cpu) / len(data)


def measure(clip: str, threads: int, rounds: int) -> dict[str, object]:
    cv2.setNumThreads(1)
    torch.set_num_threads(threads)
    data = pairs(clip)
    sides = {"scikit-image": scikit, "ours": ours}
    times: dict[str, list[float]] = {name: [] for name in sides}
    cpu_times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            wall, cpu = seconds(side, data, threads)
            times[name].append(wall)
            cpu_times[name].append(cpu)
    ratios, cpu_ratios = (
        [theirs / mine for theirs, mine in zip(found["scikit-image"], found["ours"], strict=True)]
        for found in (times, cpu_times)
    )
    row: dict[str, object] = {
        "clip": clip,
        "size": CLIPS[clip],
        "threads": threads,
        "ms_per_frame": {name: 1e3 * statistics.median(values) for name, values in times.items()},
        "best_ms_per_frame": {name: 1e3 * min(values) for name, values in times.items()},
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "cpu_ms_per_frame": {name: 1e3 * statistics.median(values) for name, values in cpu_times.items()},
        "cpu_ratio": statistics.median(cpu_ratios),
    }
    if threads == 1:
        row["tensor_on_cpu_ms_per_frame"] = 1e3 * seconds(tensor, data[:1], 1)[0]
    print(json.dumps(row))
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default: %(default)s)")
    arguments = parser.parse_args()
    rows = [measure(clip, threads, arguments.rounds) for clip in CLIPS for threads in (1, 2)]
    content = {"command": shlex.join(["python", *sys.argv]), **describe_machine(), "rows": rows}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
