"""Kill a pack with kill -9 at random moments, run it again, and compare every byte with an uninterrupted one.

    .venv/bin/python benchmarks/pack_kill.py --kills 20

Each time a pack of real clips (`--clips`) on two workers is started in an empty folder and killed after a random part
of the time of the uninterrupted one. Every second time only the parent is killed, otherwise the whole process group; a
kill after the end is repeated. The output must not be a data set. Then the pack is run again to its end. Writes
benchmarks/results/pack_kill.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from footage import CLIPS
from machine import describe_machine

from sharding.errors import BadShardError
from sharding.index import read_index

RESULT = Path(__file__).parent / "results" / "pack_kill.json"


def pack_command(names: Sequence[str], shard_mb: float) -> list[str]:
    """Up to the folder."""
    clips = [str(CLIPS[name]) for name in names]
    options = ["--flow", "dis", "--codec", "png", "--holdout-tail", "0.2", "--workers", "2"]
    return [sys.executable, "-m", "sharding", "pack", *clips, *options, "--shard-mb", str(shard_mb), "--out"]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def is_data_set(out: Path) -> bool:
    try:
        read_index(out)
    except BadShardError:
        return False
    return True


def kill_and_rerun(
    command: list[str], out: Path, delay_s: float, group: bool, expected: dict[str, bytes]
) -> dict[str, object]:
    """A kill that comes too late is tried again after half the time."""
    words = [*command, str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(delay_s)
    if process.poll() is not None:
        shutil.rmtree(out)
        return kill_and_rerun(command, out, delay_s / 2, group, expected)
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    num_kept = len(list(out.glob("*.tar")))
    looked_whole = is_data_set(out)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    found = contents(out)
    return {
        "after_s": round(delay_s, 3),
        "killed": "process group" if group else "parent alone",
        "shards_kept": num_kept,
        "passed_for_whole": looked_whole and found != expected,
        "equal_after_rerun": found == expected,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: %(default)s)")
    parser.add_argument(
        "--clips",
        nargs="+",
        choices=CLIPS,
        default=["bikes", "carphone_pristine"],
        metavar="CLIP",
        help="sample clips (default: %(default)s)",
    )
    parser.add_argument(
        "--shard-mb", type=float, default=5, help="target size of a shard, 1e6 bytes (default: %(default)s)"
    )
    parser.add_argument(
        "--result", type=Path, default=RESULT, help="output file (default: benchmarks/results/pack_kill.json)"
    )
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    command = pack_command(arguments.clips, arguments.shard_mb)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        begin_s = time.monotonic()
        subprocess.run([*command, str(whole)], check=True, stdout=subprocess.DEVNULL)
        whole_s = time.monotonic() - begin_s
        expected = contents(whole)
        runs = []
        for number in range(arguments.kills):
            out = Path(folder) / f"run{number}"
            runs.append(kill_and_rerun(command, out, draw.uniform(0, whole_s), number % 2 == 1, expected))
            print(json.dumps(runs[-1]), flush=True)
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "undisturbed_s": round(whole_s, 2),
        "num_shards": sum(name.endswith(".tar") for name in expected),
        "num_equal": sum(bool(run["equal_after_rerun"]) for run in runs),
        "num_passed_for_whole": sum(bool(run["passed_for_whole"]) for run in runs),
        "runs": runs,
        "machine": describe_machine(),
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    if result["num_equal"] != arguments.kills or result["num_passed_for_whole"]:
        sys.exit("a kill left other bytes, or something that passes for whole")


if __name__ == "__main__":
    main()
