"""The first 3 steps of the paper's models at the paper's size: time per step and memory.

    python experiments/paper_full.py                  needs 13 GB of memory and a machine without other load
    python experiments/paper_full.py --only lstm

Data: 24 frames of the sample clip bigbuckbunny in RealVSR's layout (GT the frames, LQ the frames blurred and compressed
as JPEG), packed as docs/paper.md packs RealVSR. One result file per model in experiments/results/paper_full.
"""

from __future__ import annotations

import fnmatch
import json
import shlex
import sys
from itertools import islice
from pathlib import Path

import cv2
from runner import ROOT, Experiment, Runner, beside, describe_machine, git_commit, main, python, rounded, train_command

from sharding.sources import find_samples
from sharding.video import iter_frames

NAME = "paper_full"
WORK = f"runs/{NAME}"
MODELS = ("base", "lstm", "improved")
# Folder -> first frame; RealVSR's frames have 1024 x 512 px.
SEQUENCES = {"GT/000": 0, "GT_test/001": 40}
NUM_FRAMES, HEIGHT_PX, WIDTH_PX = 12, 512, 1024
LOGGED = ("loss_g/total", "loss_g/image", "loss_g/perceptual", "loss_d/total", "share_g/adversarial")
LOGGED += ("share_g/perceptual", "share_g/temporal", "perf/step_ms", "perf/peak_memory_mb")


def make_pairs(root: Path) -> None:
    """Folders GT, LQ, GT_test and LQ_test with one sequence each."""
    clip = next(path for path in find_samples() if path.stem == "bigbuckbunny")
    for place, first in SEQUENCES.items():
        sides = {side: root / place.replace("GT", side) for side in ("GT", "LQ")}
        for folder in sides.values():
            folder.mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(islice(iter_frames(clip), first, first + NUM_FRAMES)):
            image = cv2.cvtColor(frame[:HEIGHT_PX, :WIDTH_PX], cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(sides["GT"] / f"{number:05d}.png"), image)
            encoded = cv2.imencode(".jpg", cv2.GaussianBlur(image, (0, 0), 0.8), [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
            cv2.imwrite(str(sides["LQ"] / f"{number:05d}.png"), cv2.imdecode(encoded, cv2.IMREAD_COLOR))


def measure(experiment: Experiment, runner: Runner) -> None:
    """Pack, then train each chosen model for 3 steps, one after the other."""
    chosen = [name for name in MODELS if fnmatch.fnmatch(name, experiment.only)]
    missing = [name for name in chosen if not experiment.result_path(name).exists()]
    if not missing:
        return
    pairs, data = f"{WORK}/RealVSR", f"{WORK}/data"
    make_pairs(ROOT / pairs)
    pack = ("pack", "--realvsr", pairs, "--scale", "4", "--drop-overlap", "--out", data)
    runner.run(python(*pack), ROOT / WORK / "pack.log")
    for name in missing:
        run_dir = experiment.work / name
        config = f"configs/paper/full/{name}.yaml"
        settings = [f"data.root={data}", "data.val_clips=1", "tracking.mlflow=false", "train.threads=1"]
        settings += ["train.epochs=0", "train.steps=3", "train.log_every=1", "train.pictures=0"]
        command = train_command(config, [*settings, f"run_dir={run_dir}"])
        cpu_s = runner.run(command, beside(run_dir, ".log"))
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        steps = [{"step": row["step"], **{key: row[key] for key in LOGGED if key in row}} for row in rows]
        result = {
            "name": name,
            "command": shlex.join(["vsr-dist", *train_command(config, settings)[3:]]),
            # Start-up, one validation before and after, and saving the checkpoint included.
            "cpu_s": cpu_s,
            "steps": [step for step in steps if "perf/step_ms" in step],
            "machine": describe_machine(),
            "commit": git_commit(),
        }
        path = experiment.result_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        runner.publish(path, rounded(result))
        runner.say(f"{name}: {cpu_s:.0f} CPU-seconds, written")


if __name__ == "__main__":
    sys.exit(main(NAME, __doc__, [], prepare=measure))
