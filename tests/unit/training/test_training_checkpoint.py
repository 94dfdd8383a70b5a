"""Checkpoints: the round trip, and everything that can be wrong with one on a disk."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil

import pytest
import torch
import xxhash
from torch import nn

from vsr_dist.core.errors import BadCheckpointError
from vsr_dist.training.checkpoint import (
    Restorable,
    checkpoint_path,
    complete_checkpoints,
    load,
    load_weights,
    newest,
    save,
)
from vsr_dist.training.ema import make_ema

STATE = {"config": {"seed": 3, "betas": [0.9, 0.99]}, "mlflow_run_id": None}


def make_live(seed=0, width=6):
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.PReLU())
    discriminator = nn.Linear(4, 1)
    modules = {"generator": generator, "discriminator": discriminator, "ema": make_ema(generator, 0.9)}
    optimizers = {name: torch.optim.Adam(modules[name].parameters()) for name in ("generator", "discriminator")}
    return Restorable(modules, optimizers)


def train(live, num_steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        losses = {
            "generator": live.modules["generator"](torch.rand(2, 3, 5, 5, generator=generator)).square().mean(),
            "discriminator": live.modules["discriminator"](torch.rand(2, 4, generator=generator)).mean(),
        }
        for name, loss in losses.items():
            live.optimizers[name].zero_grad()
            loss.backward()
            live.optimizers[name].step()
        live.modules["ema"].update_parameters(live.modules["generator"])


def tensors(live):
    found = {f"{role}.{key}": value for role, m in live.modules.items() for key, value in m.state_dict().items()}
    for role, optimizer in live.optimizers.items():
        for number, state in optimizer.state_dict()["state"].items():
            found |= {f"{role}.{number}.{key}": value for key, value in state.items()}
    return {name: value.clone() for name, value in found.items()}


def assert_same(live, expected):
    found = tensors(live)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture
def saved(tmp_path):
    """A checkpoint after three steps, and the tensors in it."""
    live = make_live()
    train(live, 3)
    return save(tmp_path / "checkpoints", 3, live, STATE, keep=2), tensors(live)


def refingerprint(path, name):
    """Make the manifest agree with a changed file, as whoever tampers with one would."""
    manifest = json.loads((path / "manifest.json").read_text())
    data = (path / name).read_bytes()
    manifest[name] = {"num_bytes": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)}
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_what_was_saved_is_restored_to_the_last_bit(saved):
    path, expected = saved
    other = make_live(seed=9)
    train(other, 1, seed=5)
    assert load(path, other) == {"step": 3, **STATE}
    assert_same(other, expected)


def test_training_goes_on_as_if_never_stopped(saved):
    path, _ = saved
    whole, resumed = make_live(), make_live(seed=4)
    train(whole, 3)
    load(path, resumed)
    for live in (whole, resumed):
        train(live, 4, seed=7)
    assert_same(resumed, tensors(whole))


def test_a_checkpoint_holds_what_its_manifest_lists_and_no_more(saved):
    path, _ = saved
    assert path == checkpoint_path(path.parent, 3)
    assert path.name == "step_00000003"
    names = {file.name for file in path.iterdir()}
    weights = {f"{name}.safetensors" for name in ("generator", "discriminator", "ema")}
    assert names == {*weights, "optimizers.pt", "state.json", "manifest.json"}
    assert names - {"manifest.json"} == set(json.loads((path / "manifest.json").read_text()))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["generator.safetensors", "optimizers.pt", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed"])
def test_a_damaged_file_is_found_and_named(saved, name, damage):
    path, _ = saved
    file = path / name
    data = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(data[:-1])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.unlink()
    live = make_live(seed=2)
    before = tensors(live)
    with pytest.raises(BadCheckpointError, match=rf"step_00000003 is damaged: .*{name}.*delete it"):
        load(path, live)
    assert_same(live, before)
    # The size alone is looked at here: hashing every checkpoint at each save would cost too much.
    assert newest(path.parent) == (path if damage == "flipped" else None)


@pytest.mark.parametrize("text", ["", "{", "\udcff", "[]", "{}"])
def test_a_manifest_that_cannot_be_read_makes_the_folder_incomplete(saved, text):
    path, _ = saved
    (path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    assert newest(path.parent) is None
    with pytest.raises(BadCheckpointError, match=r"is damaged: (no readable manifest|manifest.json lists no)"):
        load(path, make_live())


def test_the_newest_is_the_last_whole_one(tmp_path):
    folder = tmp_path / "checkpoints"
    assert newest(folder) is None
    live = make_live()
    for step in (90, 100, 1000):
        save(folder, step, live, STATE, keep=9)
    assert newest(folder) == checkpoint_path(folder, 1000)
    (checkpoint_path(folder, 1000) / "ema.safetensors").unlink()
    assert newest(folder) == checkpoint_path(folder, 100)
    (checkpoint_path(folder, 100) / "manifest.json").unlink()
    assert newest(folder) == checkpoint_path(folder, 90)


def test_whatever_else_lies_there_is_harmless(tmp_path):
    folder = tmp_path / "checkpoints"
    live = make_live()
    path = save(folder, 5, live, STATE, keep=1)
    shutil.copytree(path, folder / "best")
    shutil.copytree(path, folder / "step_best")
    (folder / "step_00000009").write_text("a file, not a folder")
    (folder / "step_00000008.tmp").mkdir()
    (folder / "notes.txt").write_text("mine")
    assert newest(folder) == path
    newer = save(folder, 6, live, STATE, keep=1)
    assert newest(folder) == newer
    # Our own leftover and the older checkpoint are gone, what others put there is not.
    assert {entry.name for entry in folder.iterdir()} == {
        "best",
        "step_best",
        "step_00000009",
        "step_00000006",
        "notes.txt",
    }


def test_pruning_keeps_the_newest(tmp_path):
    live = make_live()
    for step in range(1, 7):
        save(tmp_path, step, live, STATE, keep=3)
    assert complete_checkpoints(tmp_path) == [checkpoint_path(tmp_path, step) for step in (4, 5, 6)]


def test_saving_a_step_again_replaces_it(tmp_path):
    live = make_live()
    save(tmp_path, 2, live, STATE, keep=2)
    train(live, 1)
    path = save(tmp_path, 2, live, {"mlflow_run_id": "abc"}, keep=2)
    other = make_live(seed=1)
    assert load(path, other) == {"step": 2, "mlflow_run_id": "abc"}
    assert_same(other, tensors(live))


def test_a_save_that_breaks_off_leaves_the_older_ones(tmp_path, monkeypatch):
    live = make_live()
    first = save(tmp_path, 1, live, STATE, keep=1)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2, live, STATE, keep=1)
    assert newest(tmp_path) == first
    monkeypatch.undo()
    assert newest(tmp_path) == first
    save(tmp_path, 3, live, STATE, keep=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000003"]


@pytest.mark.parametrize("limit_bytes", [100, 4000], ids=["weights", "optimisers"])
def test_a_full_disk_is_told_as_the_system_tells_it(tmp_path, limit_bytes):
    """As an OSError, which ends a command with one line; the writers of the two formats raise errors of their own."""
    live = make_live()
    train(live, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path / "checkpoints", 1, live, STATE, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert newest(tmp_path / "checkpoints") is None
    save(tmp_path / "checkpoints", 1, live, STATE, keep=2)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_another_architecture_is_refused(saved):
    path, _ = saved
    with pytest.raises(BadCheckpointError, match=r"generator.safetensors does not fit the configured network"):
        load(path, make_live(width=8))


def test_other_players_are_refused(saved):
    path, _ = saved
    live = make_live()
    fewer = Restorable(live.modules, {"generator": live.optimizers["generator"]})
    with pytest.raises(BadCheckpointError, match=r"holds the optimisers \['discriminator', 'generator'\]; expected"):
        load(path, fewer)
    more = Restorable({**live.modules, "critic": nn.Linear(1, 1)}, live.optimizers)
    with pytest.raises(BadCheckpointError, match=r"critic.safetensors cannot be read"):
        load(path, more)


class Bomb:
    """Runs a command when it is unpickled by a loader that lets it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_pickle_bomb_does_not_run(saved, tmp_path, write):
    path, _ = saved
    fired = tmp_path / "fired"
    bomb = Bomb(f"touch {fired}")
    write({"generator": bomb, "discriminator": bomb}, path / "optimizers.pt")
    with pytest.raises(BadCheckpointError, match="damaged"):
        load(path, make_live())
    refingerprint(path, "optimizers.pt")
    with pytest.raises(BadCheckpointError, match=r"optimizers.pt does not hold plain tensors"):
        load(path, make_live())
    assert not fired.exists()
    pickle.loads(pickle.dumps(bomb))
    assert fired.exists()  # the bomb was live


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_weights_that_cannot_be_read_are_refused(tmp_path, content):
    (tmp_path / "g.safetensors").write_bytes(content)
    with pytest.raises(BadCheckpointError, match="cannot be read as a safetensors file"):
        load_weights(nn.Linear(1, 1), tmp_path / "g.safetensors")
