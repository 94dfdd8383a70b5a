"""Memory and time of a training step on long clips, with and without `train.checkpoint_activations`.

    python benchmarks/long_clips.py [--crop 32] [--clips 1] [--rounds 3]

The networks of configs/recurrent.yaml with the recurrence rlsp, on one thread, in a fresh process for each row: clips
of 7 and 30 frames, warm-up steps (generator only) and adversarial steps. Memory is the peak of the process above its
memory before the first step; time is CPU time per frame, the median of the rounds, which take all rows in turn. Writes
benchmarks/results/long_clips.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/long_clips.json"
NUM_STEPS = 2


def measure(frames: int, checkpointing: bool, adversarial: bool, crop_px: int, clips: int) -> dict[str, float]:
    """One row, in this process."""
    from step_time import batches, gan_step  # noqa: PLC0415

    from vsr_dist.config import load_config  # noqa: PLC0415
    from vsr_dist.data.loader import ClipBatch  # noqa: PLC0415
    from vsr_dist.training.control import Controllers  # noqa: PLC0415

    torch.set_num_threads(1)
    settings = [f"data.clip_frames={frames}", f"data.crop_px={crop_px}", "generator.recurrence=rlsp"]
    settings += ["loss.perceptual=0", f"train.checkpoint_activations={str(checkpointing).lower()}"]
    config = load_config(ROOT / "configs/recurrent.yaml", settings)
    step = gan_step(config)
    plan = Controllers(config.adversarial, config.loss, torch.device("cpu")).plan(1.0 if adversarial else 0.0)
    (low, real), *_ = batches(config, clips, 1)
    batch = ClipBatch(low, real, ("",) * len(low), torch.ones(len(low), dtype=torch.bool))
    before = psutil.Process().memory_info().rss
    begin_s = time.process_time()
    for number in range(NUM_STEPS):
        step.run(iter([batch]), plan, number)
    seconds = (time.process_time() - begin_s) / NUM_STEPS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_mb": (peak - before) / 1e6, "cpu_ms_per_frame": 1000 * seconds / frames / clips}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=32, help="low-resolution side of the clips (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=1, help="clips per step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        frames, checkpointing, adversarial = json.loads(arguments.row)
        print(json.dumps(measure(frames, checkpointing, adversarial, arguments.crop, arguments.clips)))
        return
    rows = [(t, kept, adversarial) for adversarial in (False, True) for t in (7, 30) for kept in (False, True)]
    found: dict[tuple[int, bool, bool], list[dict[str, float]]] = {row: [] for row in rows}
    for _ in range(arguments.rounds):
        for row in rows:
            options = ["--crop", str(arguments.crop), "--clips", str(arguments.clips), "--row", json.dumps(row)]
            output = subprocess.run([sys.executable, __file__, *options], check=True, capture_output=True, text=True)
            found[row].append(json.loads(output.stdout.splitlines()[-1]))
    table = []
    for (frames, checkpointing, adversarial), runs in found.items():
        values = {name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}
        facts = {"frames": frames, "checkpointing": checkpointing, "adversarial": adversarial}
        table.append({**facts, **values})
        print(table[-1], flush=True)
    command = shlex.join(["python", "benchmarks/long_clips.py", *sys.argv[1:]])
    result = {"command": command, "machine": describe_machine(), "rounds": arguments.rounds, "table": table}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
