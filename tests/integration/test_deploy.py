"""The files of deploy/ for clusters: SLURM's script is run, with its commands replaced by ones of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# What stands for a program of the cluster: notes how it was called.
NOTE = '#!/bin/sh\nprintf "%s\\n" "$(basename "$0") $*" >> "$CALLS"\n'
TRAIN = (
    'mkdir -p "$VSR_RUN_DIR"; printf \'{"exit_reason": "%s"}\' "$REASON" > "$VSR_RUN_DIR/ended.json"; exit "$STATUS"\n'
)


@pytest.fixture
def job(tmp_path):
    """Run the batch script as a job: how the training ends, its status, and when the job's time is over."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, body in (("srun", '"$@"\n'), ("torchrun", TRAIN), ("scontrol", 'echo "$FIRST_HOST"\n')):
        (programs / name).write_text(NOTE + body)
        (programs / name).chmod(0o755)

    def run(reason: str, status: int, seconds_left: int) -> tuple[int, list[str]]:
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "REASON": reason,
            "STATUS": str(status),
            "FIRST_HOST": "node7",
            "VSR_RUN_DIR": str(tmp_path / "run"),
            "SLURM_JOB_ID": "42",
            "SLURM_JOB_NAME": "vsr-dist",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_NNODES": "2",
            "SLURM_RESTART_COUNT": "1",
            "SLURM_JOB_END_TIME": str(int(time.time()) + seconds_left),
        }
        script = ["bash", str(ROOT / "deploy/slurm.sbatch"), "--set", "seed=1"]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, calls.read_text().splitlines()

    return run


def test_every_node_joins_one_rendezvous_and_resumes(job):
    status, calls = job("finished", 0, 1000)
    assert status == 0
    assert calls[0] == "scontrol show hostnames node[7-8]"
    (launch,) = [call for call in calls if call.startswith("torchrun ")]
    assert "--nnodes 2 --nproc_per_node 8" in launch
    assert "--rdzv_endpoint node7:29500 --rdzv_id 42-1" in launch
    assert launch.endswith("--resume auto --set seed=1")


@pytest.mark.parametrize(
    ("reason", "status", "seconds_left", "again"),
    [("stopped", 1, 200, True), ("stopped", 1, 5000, False), ("failed", 1, 200, False), ("finished", 0, 200, False)],
    ids=["out of time", "cancelled", "failed", "finished"],
)
def test_only_what_ran_out_of_time_goes_back_into_the_queue(job, reason, status, seconds_left, again):
    ended, calls = job(reason, status, seconds_left)
    assert ended == status
    assert ("scontrol requeue 42" in calls) is again


def test_a_training_that_never_began_is_not_queued_again(job, tmp_path):
    (tmp_path / "programs/torchrun").write_text("#!/bin/sh\nexit 1\n")
    ended, calls = job("", 1, 200)
    assert ended == 1
    assert not [call for call in calls if "requeue" in call]


def test_the_training_has_time_to_save_before_it_is_killed():
    """Launcher's limit below the pod's and the service's, and the service of the pods is the one they meet at."""
    service, work = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
    pod = work["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    limits = {item["name"]: item["value"] for item in container["env"]}
    assert int(limits["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    name = service["metadata"]["name"]
    assert pod["subdomain"] == name and service["spec"]["selector"] == {"job-name": work["metadata"]["name"]}
    assert f"--rdzv_endpoint={work['metadata']['name']}-0.{name}:29500" in container["args"]
    assert f"--nnodes={work['spec']['completions']}" in container["args"]
    assert work["spec"]["completions"] == work["spec"]["parallelism"]
    train = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["train"]
    assert int(train["environment"]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < 120
    assert train["stop_grace_period"] == "2m"


@pytest.mark.slow
def test_the_batch_script_trains_on_two_processes(launcher):
    """With the real torchrun, on this machine."""
    programs = launcher.folder / "programs"
    programs.mkdir()
    (programs / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (programs / "scontrol").write_text("#!/bin/sh\necho localhost\n")
    for name in ("srun", "scontrol"):
        (programs / name).chmod(0o755)
    run_dir = launcher.folder / "run"
    environment = {
        **os.environ,
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "VSR_CONFIG": str(launcher.config),
        "VSR_RUN_DIR": str(run_dir),
        "VSR_PROCESSES_PER_NODE": "2",
        "SLURM_JOB_ID": "43",
        "SLURM_JOB_NAME": "vsr-dist",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_JOB_END_TIME": str(int(time.time()) + 5000),
    }
    script = ["bash", str(ROOT / "deploy/slurm.sbatch"), "--set", "train.steps=6", "--set", "train.processes=2"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((run_dir / "summary.json").read_text())["processes"] == 2
