"""Which commit a result comes from, and that a folder without a checkout has none."""

from __future__ import annotations

import json
import subprocess

from vsr_dist.core.provenance import environment, git_state


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_and_whether_files_differ_from_it(tmp_path):
    assert git_state(tmp_path) == {}
    git(tmp_path, "init", "--initial-branch=main")
    assert git_state(tmp_path) == {}
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--message=first")
    expected = {"commit": git(tmp_path, "rev-parse", "HEAD"), "branch": "main", "changed": "false"}
    assert git_state(tmp_path) == expected
    (tmp_path / "new").write_text("not tracked")
    assert git_state(tmp_path) == expected
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path)["changed"] == "true"


def test_no_git_program_means_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {}


def test_the_environment_is_json_and_names_every_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    found = json.loads(json.dumps(environment()))
    assert found["packages"]["numpy"] == found["versions"]["numpy"]
    assert found["launch"]["SLURM_JOB_ID"] == "17"
    assert found["git"] == {}
    assert found["machine"]["cpus"] >= 1
