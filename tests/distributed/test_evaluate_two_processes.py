"""An evaluation spread over processes writes what one process writes, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from forked import run_forked, run_ranks
from train_launcher import ROOT

from vsr_dist.core.collectives import World
from vsr_dist.data.stream import SplitStream, share_sequences
from vsr_dist.inference.generator_io import save_generator
from vsr_dist.models import build_generator
from vsr_dist.models.recurrent import RecurrentConfig

ACCELERATE = ["accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/cpu-2.yaml"), "-m"]
# The held-out films are two sequences: one of the three processes has nothing to do.
LAUNCHERS = ("one", "accelerate-2", "ranks-3")


def evaluate(launcher, checkpoint, data, out, *options):
    arguments = ["--checkpoint", str(checkpoint), "--data", str(data), "--out", str(out), *options]
    if launcher == "one":
        return run_forked("vsr_dist.evaluate", arguments, out.parent)
    if launcher.startswith("ranks-"):
        return run_ranks(int(launcher[-1]), "vsr_dist.evaluate", arguments, out.parent)
    command = [sys.executable, "-m", *ACCELERATE, "vsr_dist.evaluate", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out.parent, check=False)


@pytest.fixture
def checkpoint(tmp_path):
    """A generator that nobody trained, but whose output is not bicubic."""
    folder = tmp_path / "finished"
    folder.mkdir()
    config = RecurrentConfig(channels=4, num_blocks=1, recurrence="convgru")
    torch.manual_seed(0)
    generator = build_generator(config, 4)
    torch.nn.init.normal_(generator.tail[0].weight, std=0.02)
    save_generator(folder, generator, config, {})
    return folder


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_files(tmp_path, pack_films, checkpoint):
    files = {}
    for name in LAUNCHERS:
        out = tmp_path / name
        done = evaluate(name, checkpoint, pack_films("npy"), out)
        assert done.returncode == 0, done.stderr
        files[name] = {
            str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
        }
        found = json.loads(files[name].pop("metrics.json"))
        files[name]["metrics.json"] = {**found, "command": ""}
    assert {"metrics.csv", "report.md", "comparison.png", "table.txt", "metrics.json"} < files["one"].keys()
    kinds = Counter(name.partition("/")[0] for name in files["one"] if "/" in name)
    assert kinds == {"crops": 2, "profiles": 2, "differences": 2, "videos": 4}
    for name in LAUNCHERS:
        assert files[name].keys() == files["one"].keys()
        assert [key for key in files["one"] if files[name][key] != files["one"][key]] == [], name


@pytest.mark.slow
def test_a_mistake_is_said_once(tmp_path, pack_films, checkpoint):
    done = evaluate("ranks-2", checkpoint, pack_films("npy"), tmp_path / "out", "--split", "test")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "no split 'test'" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_each_sequence_once_and_in_order(pack_films, num_ranks):
    stream = SplitStream(pack_films("npy"), "train")
    parts = [stream.part(World(rank, num_ranks)) for rank in range(num_ranks)]
    assert sorted(name for part in parts for name in part.sequences) == sorted(stream.sequences)
    for part in parts:
        assert part.sequences == [name for name in stream.sequences if name in part.sequences]
        read = [(clip.sequence, clip.first_frame) for clip in part]
        assert read == [(clip.sequence, clip.first_frame) for clip in stream if clip.sequence in part.sequences]


def test_the_longest_sequences_are_spread_first():
    # 9 + 2 against 6 + 5 frames.
    assert share_sequences({"a": 2, "b": 6, "c": 9, "d": 5}, 2) == [["c", "a"], ["b", "d"]]
    assert share_sequences({"a": 3}, 3) == [["a"], [], []]
