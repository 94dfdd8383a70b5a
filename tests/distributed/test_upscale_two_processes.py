"""Upscaling on two processes: a process that dies is noticed, the job goes on later, and the joins do not show."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from forked import start_ranks
from upscale_media import make_generator, moving, write_video

from vsr_dist.cli import main

OPTIONS = ("--segment-frames", "10")


def two_processes(source, output, generator):
    """Both processes without a launcher, which would end one when the other dies."""
    arguments = [str(source), str(output), "--checkpoint", str(generator), *OPTIONS]
    return start_ranks(2, "vsr_dist.upscale", arguments, source.parent)


@pytest.mark.slow
def test_a_dead_process_is_noticed_and_the_joins_do_not_show(tmp_path):
    network = make_generator(tmp_path / "run", noise=0.1)
    frames = [*moving(100, 48, 64), *(255 - frame for frame in moving(80, 48, 64))]
    source = write_video(tmp_path / "in.mp4", frames, pts=[2 * n + (n % 7 == 0) for n in range(180)])
    first, second = two_processes(source, tmp_path / "two", network)
    part = tmp_path / ".two.work" / "part_001"
    limit_s = time.monotonic() + 60
    while not (part / "000001").exists():
        assert second.poll() is None, second.communicate()
        assert time.monotonic() < limit_s
        time.sleep(0.002)
    second.kill()
    _, error = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 2, error
    assert "another process of this job has ended" in error
    assert not (tmp_path / "two").exists()
    again = two_processes(source, tmp_path / "two", network)
    assert [process.wait(120) for process in again] == [0, 0], again[0].output()
    assert "resuming" in again[0].output()[0]
    assert main(["upscale", str(source), str(tmp_path / "one"), "--checkpoint", str(network), *OPTIONS]) == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert len(names) == 181
    assert (tmp_path / "one/timestamps.txt").read_bytes() == (tmp_path / "two/timestamps.txt").read_bytes()
    one, two = ([cv2.imread(str(tmp_path / name / file)).astype(int) for file in names[:-1]] for name in ("one", "two"))
    assert np.abs(np.subtract(one, two)).max() <= 1
