"""The supervisor: its exit status is the command's, and nothing of the command outlives it or its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from sweeps import supervisor

# Ignores SIGTERM, in a session of its own, as a rank of torchrun that is stuck in a collective.
DEAF = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""
LAUNCHER = """
import subprocess, sys, time
from pathlib import Path
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], start_new_session=True)
while not Path(sys.argv[2]).exists() or not Path(sys.argv[2]).read_text():
    time.sleep(0.01)
time.sleep(float(sys.argv[3]))
"""


def supervised(folder, *command, grace_s=0.2, parent=None):
    words = [sys.executable, "-P", supervisor.__file__, str(folder / "lock"), str(grace_s), str(parent or os.getpid())]
    return [*words, *command]


def launcher(folder, seconds):
    return [sys.executable, "-c", LAUNCHER, DEAF, str(folder / "pid"), str(seconds)]


def wait_for_pid(folder):
    end_s = time.monotonic() + 120
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return int((folder / "pid").read_text())


def ends(pid, limit_s=120):
    try:
        process = psutil.Process(pid)
        end_s = time.monotonic() + limit_s
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > end_s:
                return False
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        pass
    return True


@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(17)", 17), ("import os; os.kill(os.getpid(), 9)", -9), ("import os; os.abort()", -6)],
)
def test_the_exit_status_is_that_of_the_command(tmp_path, code, status):
    assert subprocess.run(supervised(tmp_path, sys.executable, "-c", code), check=False).returncode == status


def test_a_command_that_does_not_exist_is_named(tmp_path):
    done = subprocess.run(supervised(tmp_path, "no-such-program"), check=False, capture_output=True, text=True)
    assert done.returncode == 127 and done.stderr.startswith("error: no-such-program cannot be started")


def test_what_a_launcher_leaves_behind_is_killed(tmp_path):
    assert subprocess.run(supervised(tmp_path, *launcher(tmp_path, 0)), check=False).returncode == 0
    assert ends(int((tmp_path / "pid").read_text()), 0)


def test_sigterm_ends_every_process(tmp_path):
    process = subprocess.Popen(supervised(tmp_path, *launcher(tmp_path, 600)))
    pid = wait_for_pid(tmp_path)
    process.terminate()
    assert process.wait(120) == -signal.SIGTERM
    assert ends(pid, 0)


def test_a_second_sigterm_does_not_wait(tmp_path):
    process = subprocess.Popen(supervised(tmp_path, *launcher(tmp_path, 600), grace_s=600))
    pid = wait_for_pid(tmp_path)
    process.terminate()
    launched = psutil.Process(process.pid).children()
    psutil.wait_procs(launched, 120)  # It handles the first SIGTERM now; two at once would be one.
    process.terminate()
    assert process.wait(120) == -signal.SIGTERM
    assert ends(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_everything_ends_when_the_parent_or_the_supervisor_is_killed(tmp_path):
    """The parent by SIGKILL, which it cannot handle; then the supervisor, whose launcher then dies with it."""
    parent = "import subprocess, os, sys; subprocess.Popen(sys.argv[1:6] + [str(os.getpid())] + sys.argv[7:]).wait()"
    words = supervised(tmp_path, *launcher(tmp_path, 600), parent=1)
    process = subprocess.Popen([sys.executable, "-c", parent, *words])
    pid = wait_for_pid(tmp_path)
    process.kill()
    process.wait()
    assert ends(pid)
    (tmp_path / "pid").unlink()
    process = subprocess.Popen(supervised(tmp_path, sys.executable, "-c", DEAF, str(tmp_path / "pid")))
    pid = wait_for_pid(tmp_path)
    process.kill()
    process.wait()
    assert ends(pid)


def test_a_second_attempt_waits_for_the_processes_of_the_first(tmp_path):
    first = subprocess.Popen(supervised(tmp_path, *launcher(tmp_path, 600)))
    wait_for_pid(tmp_path)
    second = subprocess.Popen(supervised(tmp_path, "touch", str(tmp_path / "started")))
    waiting = psutil.Process(second.pid)
    end_s = time.monotonic() + 120
    while str(tmp_path / "lock") not in [file.path for file in waiting.open_files()]:
        assert time.monotonic() < end_s
        time.sleep(0.02)
    assert second.poll() is None and not (tmp_path / "started").exists()
    first.terminate()
    first.wait()
    assert second.wait(120) == 0 and (tmp_path / "started").exists()


def test_a_supervisor_whose_parent_is_gone_starts_nothing(tmp_path):
    command = supervised(tmp_path, "touch", str(tmp_path / "started"), parent=1)
    assert subprocess.run(command, check=False).returncode == 143
    assert not (tmp_path / "started").exists()
