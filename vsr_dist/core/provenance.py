"""Where a result comes from: the command, the checkout, the packages and the machine."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch

_TIMEOUT_S = 10
# Set by launchers and schedulers; nothing here can hold a secret.
_LAUNCH_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID",
    "SLURM_JOB_ID",
    "SLURM_JOB_NUM_NODES",
    "SLURM_RESTART_COUNT",
)


def git_state(folder: Path) -> dict[str, str]:
    """Commit and branch of the checkout that holds `folder`, and whether files differ from it; empty if there is none.

    `changed` is `true` if a tracked file differs from the commit.
    """
    git = shutil.which("git")
    if git is None:
        return {}
    commit = _git(git, folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    branch = _git(git, folder, "rev-parse", "--abbrev-ref", "HEAD") or ""
    changed = _git(git, folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "branch": branch, "changed": "unknown" if changed is None else str(bool(changed)).lower()}


def environment() -> dict[str, Any]:
    """Command, folder, checkout, launch, machine and every installed package, ready for JSON."""
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "command": shlex.join(sys.argv),
        "folder": str(Path.cwd()),
        "git": git_state(Path.cwd()),
        "launch": {name: os.environ[name] for name in _LAUNCH_VARIABLES if name in os.environ},
        "machine": {
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpus": devices,
        },
        "versions": package_versions(),
        "packages": dict(sorted((d.metadata["Name"], d.version) for d in distributions() if d.metadata["Name"])),
    }


def _git(git: str, folder: Path, *arguments: str) -> str | None:
    """What a git command prints, or None if it fails, as it does outside a checkout."""
    try:
        done = subprocess.run(
            [git, "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


_PACKAGES = (
    "vsr-dist",
    "torch",
    "accelerate",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "webdataset",
)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what is computed."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
