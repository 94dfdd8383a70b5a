"""Gain of the demo's generator over bicubic on held-out video: every clip, several seeds.

    .venv/bin/python benchmarks/demo_gain.py --data demo/data --work demo/gain --seeds 0 1 2

Trains configs/demo.yaml once per seed (two CPU processes) and evaluates each on the split `val`: the last fifth of
bikes and bigbuckbunny, and all of carphone, none of which was trained on. Needs the data of `make demo`.
Finished seeds are kept when run again. Writes benchmarks/results/demo_gain.json.

Besides bicubic with a = -0.5 (Pillow, MATLAB, this project), the gain is given against a = -0.75 (OpenCV, PyTorch
without antialiasing), which scores higher on some clips.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from machine import describe_machine

from vsr_dist.data.stream import SplitStream
from vsr_dist.metrics.fidelity import frame_fidelity

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "demo_gain.json"


def run(*command: str) -> None:
    print("+", shlex.join(command), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def train_and_evaluate(seed: int, data: Path, work: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Scope -> method -> metric of one seed."""
    run_dir, out = work / f"seed{seed}", work / f"seed{seed}-evaluation"
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "configs/accelerate/cpu-2.yaml",
        "-m",
        "vsr_dist.train",
    ]
    settings = {
        "seed": seed,
        "run_dir": run_dir,
        "data.root": data,
        "name": f"demo-seed{seed}",
        "tracking.mlflow": "false",
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run(sys.executable, *launch, "--config", "configs/demo.yaml", "--resume", "auto", *overrides)
    if not (out / "metrics.json").exists():
        command = ["evaluate", "--checkpoint", str(run_dir), "--data", str(data), "--out", str(out)]
        run(sys.executable, "-m", "vsr_dist.cli", *command)
    table: dict[str, dict[str, dict[str, float]]] = json.loads((out / "metrics.json").read_text())["table"]
    return table


def sharper_bicubic(data: Path) -> dict[str, float]:
    """Y-PSNR of OpenCV's bicubic (a = -0.75) per source video, same protocol."""
    stream = SplitStream(data, "val")
    scores: dict[str, list[float]] = {}
    for clip in stream:
        for low, real in zip(clip.low_THWC, clip.real_TYXC, strict=True):
            high = cv2.resize(low, (real.shape[1], real.shape[0]), interpolation=cv2.INTER_CUBIC)
            inside = slice(stream.index.scale, -stream.index.scale)
            score = frame_fidelity(np.asarray(high[inside, inside], np.uint8), real[inside, inside], ("psnr_y",))
            scores.setdefault(clip.source, []).append(score["psnr_y"])
    return {source: float(np.mean(values)) for source, values in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("demo/data"), help="data set that `make demo` packs (default: %(default)s)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("demo/gain"), help="folder for runs and evaluations (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: %(default)s)")
    arguments = parser.parse_args()
    tables = {seed: train_and_evaluate(seed, arguments.data, arguments.work) for seed in arguments.seeds}
    sharper = sharper_bicubic(arguments.data)
    clips = {}
    for source, sharp in sharper.items():
        bicubic = tables[arguments.seeds[0]][source]["bicubic"]["psnr_y"]
        ours = {seed: table[source]["ours"]["psnr_y"] for seed, table in tables.items()}
        clips[source] = {
            "bicubic_psnr_y": bicubic,
            "bicubic_a075_psnr_y": sharp,
            "ours_psnr_y": ours,
            "gain_db": {seed: value - bicubic for seed, value in ours.items()},
            "smallest_gain_db": min(ours.values()) - bicubic,
            "smallest_gain_against_a075_db": min(ours.values()) - sharp,
        }
    result = {"command": shlex.join(["python", *sys.argv]), "clips": clips, "machine": describe_machine()}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(clips, indent=1))


if __name__ == "__main__":
    main()
