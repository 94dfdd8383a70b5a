"""Upscaling on two processes: a process that dies is noticed, the job goes on later, and the joins do not show."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from train_launcher import ROOT
from upscale_media import make_generator, moving, write_video

from vsr_dist.cli import main

ACCELERATE = ["accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/cpu-2.yaml"), "-m"]
OPTIONS = ("--segment-frames", "10")


def launched(source, output, generator):
    words = [*ACCELERATE, "vsr_dist.upscale", str(source), str(output), "--checkpoint", str(generator), *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, env=environment, check=False, timeout=120
    )


def two_processes(source, output, generator):
    """Both processes without a launcher, which would end one when the other dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vsr_dist.upscale", str(source), str(output), "--checkpoint", str(generator)]
    return [
        subprocess.Popen(
            [*command, *OPTIONS],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
def test_a_dead_process_is_noticed_and_the_joins_do_not_show(tmp_path):
    network = make_generator(tmp_path / "run", noise=0.1)
    frames = [*moving(100, 48, 64), *(255 - frame for frame in moving(80, 48, 64))]
    source = write_video(tmp_path / "in.mp4", frames, pts=[2 * n + (n % 7 == 0) for n in range(180)])
    first, second = two_processes(source, tmp_path / "two", network)
    part = tmp_path / ".two.work" / "part_001"
    limit_s = time.monotonic() + 60
    while not (part / "000001.json").exists():
        assert second.poll() is None, second.communicate()
        assert time.monotonic() < limit_s
        time.sleep(0.002)
    second.send_signal(signal.SIGKILL)
    _, error = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 2, error
    assert "process 1 has ended" in error
    assert not (tmp_path / "two").exists()
    again = launched(source, tmp_path / "two", network)
    assert again.returncode == 0, again.stderr
    assert "going on" in again.stdout
    assert main(["upscale", str(source), str(tmp_path / "one"), "--checkpoint", str(network), *OPTIONS]) == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert len(names) == 181
    assert (tmp_path / "one/timestamps.txt").read_bytes() == (tmp_path / "two/timestamps.txt").read_bytes()
    one, two = ([cv2.imread(str(tmp_path / name / file)).astype(int) for file in names[:-1]] for name in ("one", "two"))
    assert np.abs(np.subtract(one, two)).max() <= 1
