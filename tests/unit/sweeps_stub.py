"""A study whose trials are a tiny script instead of a training: it finishes, crashes, hangs, or hurts the driver."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sweeps.study_config import StudyConfig, parse_study

BASE = """
name: base
loss: {adversarial: 0.001, perceptual: 0.0}
discriminator: {kind: spatiotemporal, filters: 16}
train: {steps: 10, warmup_steps: 5}
tracking: {mlflow: false, tags: {team: pixels}}
"""

# The objective of trial n is 30 - (log10(loss.adversarial) + 3)^2, so the best value is known: 0.001.
TRAINER = r'''
import json, math, os, signal, subprocess, sys, time
from pathlib import Path

here = Path(__file__).parent
options = sys.argv[1:]
overrides = dict(word.split("=", 1) for flag, word in zip(options, options[1:]) if flag == "--set")
run_dir = Path(overrides["run_dir"])
number = int(run_dir.name.removeprefix("trial_"))
behaviours = json.loads((here / "behaviours.json").read_text())
behaviour = behaviours[number] if number < len(behaviours) else "finish"
(run_dir / "options.json").write_text(json.dumps(options))
value = 30 - (math.log10(float(overrides["loss.adversarial"])) + 3) ** 2
metrics = {"val/psnr_y": value, "val_bicubic/psnr_y": 29.0, "drift/auc": 0.75, "drift/normalized_loss": 0.9}


WORKER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), file=open(sys.argv[1], "w"), flush=True)
time.sleep(600)
"""


def start_worker():
    # In a session of its own and deaf to SIGTERM, as a rank that is stuck in a collective.
    file = here / "worker.pid"
    subprocess.Popen([sys.executable, "-c", WORKER, str(file)], start_new_session=True)
    while not file.exists() or not file.read_text():
        time.sleep(0.01)


if behaviour == "crash":
    sys.stderr.write("step 3\n[rank1]: RuntimeError: out of memory on rank 1\nsomething else\n")
    sys.exit(17)
elif behaviour == "user_error":
    sys.stderr.write("error: data.root holds no index.json\nChildFailedError: above\n")
    sys.exit(1)
elif behaviour == "nan":
    metrics["val/psnr_y"] = float("nan")
elif behaviour == "renamed":
    metrics["val/psnr"] = metrics.pop("val/psnr_y")
elif behaviour == "hang":
    start_worker()
    time.sleep(600)
elif behaviour in ("SIGINT", "SIGTERM", "SIGKILL"):
    start_worker()
    os.kill(os.getppid(), getattr(signal, behaviour))
    time.sleep(600)

(run_dir / "summary.json").write_text(
    json.dumps({"exit_reason": "finished", "metrics": metrics, "clips_per_s": 4.0, "mlflow_run_id": f"run{number}"})
)
'''

SPACE = {
    "loss.adversarial": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "discriminator.filters": {"type": "categorical", "choices": [8, 16, 24]},
}


def make_study(folder: Path, *behaviours: str, **changes: object) -> StudyConfig:
    """A study in `folder` whose trial n behaves as the n-th word says (`finish` beyond the list)."""
    (folder / "base.yaml").write_text(BASE)
    (folder / "trainer.py").write_text(TRAINER)
    (folder / "behaviours.json").write_text(json.dumps(behaviours))
    return parse_study(study_tree(folder, **changes), "study")


def study_tree(folder: Path, **changes: object) -> dict[str, object]:
    """The study's YAML as a mapping, with some of its keys replaced."""
    tree: dict[str, object] = {
        "name": "stub",
        "base": str(folder / "base.yaml"),
        "study_dir": str(folder / "study"),
        "num_trials": 3,
        "launch": {"command": [sys.executable, str(folder / "trainer.py")]},
        "space": SPACE,
    }
    return {**tree, **changes}
