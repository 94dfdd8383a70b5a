"""Peak memory of `vsr-dist pack` on a long video: 10,000 frames of 1280x720 in a single shot.

    python benchmarks/pack_memory.py [--frames 10000] [--workers 2]

The video is a real clip, repeated forward and backward, so that it has no cut: one sequence, one shard, the worst case.
The same number of frames is also packed as many shots by two workers. The peak resident memory of every process is read
from the system while it runs. Writes benchmarks/results/pack_memory.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from footage import CLIPS, encode, endless_shot, repeat_clip
from machine import describe_machine

from sharding.index import read_index
from sharding.video import probe

RESULT = Path(__file__).parent / "results" / "pack_memory.json"
LIMIT_MB = 1000
POLL_S = 0.1


def peaks_mb(process: subprocess.Popen[bytes]) -> dict[int, float]:
    """Process id -> high-water mark of its resident memory, in 1e6 bytes, until the process ends."""
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
            try:
                status = Path(f"/proc/{one.pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended; its mark was read a moment ago
            mark = [line for line in status.splitlines() if line.startswith("VmHWM")]
            if mark:
                peaks[one.pid] = int(mark[0].split()[1]) * 1024 / 1e6
        time.sleep(POLL_S)
    return peaks


def pack(video: Path, out: Path, workers: int) -> dict[str, object]:
    command = [sys.executable, "-m", "sharding", "pack", str(video), "--out", str(out), "--codec", "jpg"]
    process = subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.DEVNULL)
    begin_s = time.monotonic()
    peaks = peaks_mb(process)
    if process.returncode:
        raise SystemExit(f"pack ended with status {process.returncode}")
    index = read_index(out)
    result = {
        "frames": sum(clip.num_frames for clip in index.clips),
        "sequences": len(index.sequences("train")),
        "shards": len(index.shards),
        "workers": workers,
        "wall_s": round(time.monotonic() - begin_s, 1),
        "peak_mb_per_process": sorted((round(peak, 1) for peak in peaks.values()), reverse=True),
    }
    shutil.rmtree(out)
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000, help="length of the video, frames (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=2, help="worker processes for the many shots (default: %(default)s)"
    )
    parser.add_argument(
        "--result", type=Path, default=RESULT, help="output file (default: benchmarks/results/pack_memory.json)"
    )
    arguments = parser.parse_args()
    clip = "bigbuckbunny"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        take = encode(endless_shot(clip), arguments.frames, folder / "take.mp4")
        times = -(-arguments.frames // (probe(CLIPS[clip]).num_frames or 1))
        cut = repeat_clip(clip, folder / "cut.mp4", times)
        runs = {"one take": pack(take, folder / "a", 1), "many shots": pack(cut, folder / "b", arguments.workers)}
        short = encode(endless_shot(clip), arguments.frames // 10, folder / "short.mp4")
        runs["one take, a tenth as long"] = pack(short, folder / "c", 1)
    most = max(max(run["peak_mb_per_process"]) for run in runs.values())
    result = {
        "command": f"python benchmarks/pack_memory.py --frames {arguments.frames} --workers {arguments.workers}",
        "limit_mb": LIMIT_MB,
        "most_mb": most,
        "holds": most < LIMIT_MB,
        "runs": runs,
        "machine": describe_machine(),
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    if most >= LIMIT_MB:
        sys.exit(f"a process took {most} MB, the limit is {LIMIT_MB}")


if __name__ == "__main__":
    main()
