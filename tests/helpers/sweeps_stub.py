"""A study whose trials are a tiny script instead of a training: it finishes, crashes, hangs, or hurts the driver."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sweeps.config import StudyConfig, parse_study

BASE = """
name: base
loss: {perceptual: 0.0}
adversarial: {weight: 0.001}
discriminator: {kind: spatiotemporal, filters: 16}
train: {steps: 10, warmup_steps: 5}
tracking: {mlflow: false, tags: {team: pixels}}
"""

# The objective of trial n is 30 - (log10(adversarial.weight) + 3)^2, so the best value is known: 0.001. A seed adds a
# hundredth of itself. Steps and summary are written as a training writes them.
TRAINER = r'''
import json, math, os, signal, subprocess, sys, time
import psutil
from pathlib import Path

here = Path(__file__).parent
options = sys.argv[1:]
overrides = dict(word.split("=", 1) for flag, word in zip(options, options[1:]) if flag == "--set")
run_dir = Path(overrides["run_dir"])
trial_dir = next(folder for folder in (run_dir, *run_dir.parents) if folder.name.startswith("trial_"))
number = int(trial_dir.name.removeprefix("trial_"))
behaviours = json.loads((here / "behaviours.json").read_text())
behaviour = behaviours[number] if number < len(behaviours) else "finish"
(run_dir / "options.json").write_text(json.dumps(options))
(run_dir / "environment.json").write_text(json.dumps(dict(os.environ)))
with (run_dir / "starts").open("a") as starts:
    starts.write(f"{os.getpid()} {time.time()}\n")
num_starts = len((run_dir / "starts").read_text().splitlines())
value = 30 - (math.log10(float(overrides["adversarial.weight"])) + 3) ** 2 + int(overrides.get("seed", 0)) / 100
drift = {"drift/auc": 0.75, "drift/normalized_loss": 0.9}
metrics = {"val/psnr_y": value, "val_bicubic/psnr_y": 29.0, **drift}
stopped = []


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


def log(step, values):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "time_s": time.time(), **values}) + "\n")


def end(reason, **facts):
    (run_dir / "ended.json").write_text(json.dumps({"exit_reason": reason, "status": 0, **facts}))


def save_and_stop(signum, frame):
    (run_dir / "checkpoint").write_text("saved")
    end("stopped")
    sys.exit(143)


def wait_for(name):
    while not (here / name).exists():
        time.sleep(0.01)


def signal_driver(name):
    # The parent of this process is the supervisor, and the driver is that one's parent.
    os.kill(psutil.Process(os.getppid()).ppid(), getattr(signal, name))


if behaviour == "crash":
    sys.stderr.write("step 3\n[rank1]: RuntimeError: wrong shape on rank 1\nsomething else\n")
    sys.exit(17)
elif behaviour == "memory":
    sys.stderr.write("[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB\nmore\n")
    sys.exit(1)
elif behaviour == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif behaviour == "diverged":
    end("failed", error="NonFiniteError", message="loss_g/image is nan at step 7")
    sys.exit(2)
elif behaviour == "user_error":
    sys.stderr.write("error: data.root holds no index.json\nChildFailedError: above\n")
    sys.exit(1)
elif behaviour == "nan":
    metrics["val/psnr_y"] = float("nan")
elif behaviour == "renamed":
    metrics["val/psnr"] = metrics.pop("val/psnr_y")
elif behaviour == "garbage":
    (run_dir / "metrics.jsonl").write_text("not json\n")
    time.sleep(600)
elif behaviour == "hang":
    start_worker()
    time.sleep(600)
elif behaviour in ("SIGINT", "SIGTERM", "SIGKILL") and num_starts == 1:
    start_worker()
    signal_driver(behaviour)
    time.sleep(600)
elif behaviour == "hold":
    # Saves when it is stopped, and goes on from there where the test allows it.
    signal.signal(signal.SIGTERM, save_and_stop)
    wait_for("go_on")
elif behaviour == "kills its driver":
    signal_driver("SIGKILL")
    time.sleep(600)
elif behaviour == "meet":
    # Goes on once two trainings are here at the same time.
    (here / f"arrived_{number}").touch()
    while len(list(here.glob("arrived_*"))) < 2:
        time.sleep(0.01)
elif behaviour == "hopeless":
    signal.signal(signal.SIGTERM, save_and_stop)
    for step in range(1, 600):
        log(step, {"val/psnr_y": 10.0, "drift/dead_fraction": 0.9, "drift/normalized_loss": 1.0})
        time.sleep(0.05)

for step in (5, 10):
    log(step, metrics)
pictures = run_dir / "samples" / "step_00000010"
pictures.mkdir(parents=True, exist_ok=True)
(pictures / "clip.png").write_bytes(b"a picture")
(run_dir / "summary.json").write_text(
    json.dumps({"exit_reason": "finished", "metrics": metrics, "clips_per_s": 4.0, "mlflow_run_id": f"run{number}"})
)
end("finished")
(run_dir / "end_s").write_text(str(time.time()))
'''

SPACE = {
    "adversarial.weight": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
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
        "grace_s": 0.2,
        "space": SPACE,
    }
    return {**tree, **changes}
