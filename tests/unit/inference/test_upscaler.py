"""`vsr_dist.Upscaler`: a generator from anywhere, as a few lines of Python."""

from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest
import torch
from engine_streams import GRU, make, run, stream_of
from mlflow_server import MlflowServer

import vsr_dist
import vsr_dist.upscaler as upscaler_module
from vsr_dist import Upscaler
from vsr_dist.core.errors import BadCheckpointError, BadConfigError
from vsr_dist.inference.generator_io import save_generator
from vsr_dist.training.tracking import TrackingConfig, open_tracker
from vsr_dist.upscaler import find_device, find_generator


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    folder.mkdir()
    save_generator(folder, make(GRU, 4), GRU, {"run": "demo", "steps": 7})
    return folder


@pytest.fixture(scope="module")
def frames(films):
    return np.ascontiguousarray(films["walk"][:, :20, :25])


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_images_are_those_of_the_engine(run_dir, frames):
    upscaler = Upscaler.from_checkpoint(run_dir, device="cpu")
    assert upscaler.scale == 4
    assert upscaler.description["provenance"] == {"run": "demo", "steps": 7}
    expected = run(stream_of(make(GRU, 4)), frames)
    assert np.array_equal(np.stack(list(upscaler.upscale(frames))), expected)
    # Two videos at the same time do not meet, and tensors will do.
    pairs = zip(upscaler.upscale(torch.from_numpy(frames)), upscaler.upscale(iter(frames)), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


def test_frames_are_taken_as_they_are_needed(run_dir, frames):
    taken = []

    def video():
        for number in range(10**9):
            taken.append(number)
            yield frames[0]

    images = Upscaler.from_checkpoint(run_dir, device="cpu").upscale(video())
    assert not taken
    next(images), next(images)
    assert len(taken) == 2


def test_options_reach_the_engine(run_dir, frames):
    upscaler = Upscaler.from_checkpoint(run_dir / "generator.safetensors", tile_px=20, precision="bf16", cuts=False)
    stream = upscaler.open()
    facts = {**stream.facts()}
    assert (facts["precision"], facts["scene_cuts"]) == ("bf16", "not detected")
    with pytest.raises(BadConfigError, match="a tile of at least 1 px, found 0"):
        Upscaler.from_checkpoint(run_dir, tile_px=0)


def test_the_example_of_the_docstring_works(run_dir, monkeypatch, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/run").symlink_to(run_dir)
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestFinder().find(Upscaler, "Upscaler", globs={})[0]
    assert len(example.examples) == 5
    assert doctest.DocTestRunner().run(example).failed == 0


def test_what_is_imported_when(run_dir):
    """The package alone loads no torch; a generator loads without configuration and training code."""
    code = (
        "import sys, vsr_dist\nfrom pathlib import Path\nassert 'torch' not in sys.modules\n"
        "from vsr_dist.inference.generator_io import load_generator\n"
        f"assert load_generator(Path({str(run_dir)!r}))[0].scale == 4\n"
        "heavy = ('vsr_dist.config', 'vsr_dist.build', 'vsr_dist.training', 'vsr_dist.data', 'mlflow', 'accelerate',"
        " 'torch._dynamo')\n"
        "found = [name for name in sys.modules if name.startswith(heavy)]\nassert not found, found\n"
        "assert vsr_dist.Upscaler.__module__ == 'vsr_dist.upscaler'\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "Upscaler" in vsr_dist.__all__
    with pytest.raises(AttributeError, match="has no attribute 'Downscaler'"):
        vsr_dist.Downscaler  # noqa: B018


def test_the_default_is_the_packages(run_dir, monkeypatch, tmp_path):
    monkeypatch.setattr(upscaler_module, "DEFAULT_FOLDER", run_dir)
    generator, description = find_generator()
    assert same_weights(generator, make(GRU, 4))
    assert description["checkpoint"] == "the one that comes with vsr-dist"
    monkeypatch.setattr(upscaler_module, "DEFAULT_FOLDER", tmp_path)
    with pytest.raises(BadCheckpointError, match=r"packaged generator is missing .*give a checkpoint"):
        find_generator()


def test_names_that_lead_nowhere(run_dir, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(BadCheckpointError, match="expected a run directory"):
        find_generator(run_dir / "nothing")
    with pytest.raises(BadConfigError, match="a tracking URI needs an MLflow checkpoint"):
        find_generator(run_dir, "http://127.0.0.1:1")
    with pytest.raises(BadConfigError, match="or runs:/RUN_ID, found none"):
        find_generator(None, "http://127.0.0.1:1")
    with pytest.raises(BadConfigError, match="needs an MLflow server; set a tracking URI or MLFLOW_TRACKING_URI"):
        find_generator("models:/demo/1")
    with pytest.raises(BadConfigError, match="MLflow at the tracking URI=somewhere cannot be used"):
        find_generator("models:/demo/1", "somewhere")
    with pytest.raises(BadConfigError, match="expected models:/NAME/VERSION"):
        Upscaler.from_registry("demo/run")
    with pytest.raises(BadConfigError, match="device tpu9 cannot be used"):
        find_device("tpu9")


@pytest.mark.slow
def test_a_generator_from_a_registry_of_models(run_dir, tmp_path, frames, monkeypatch):
    """A real server: by version, alias, latest and run; no pickle is unpacked, and nothing is left behind."""
    import mlflow

    server = MlflowServer(tmp_path / "server").start()
    try:
        client = mlflow.MlflowClient(server.uri, server.uri)
        tracker = open_tracker(TrackingConfig(uri=server.uri), "demo", run_dir, resume_step=0)
        tracker.start()
        tracker.files(run_dir / "generator.safetensors", run_dir / "generator.json")
        tracker.model("generator", 1, ".", ["torch"])
        tracker.end("FINISHED")
        experiment_id = client.get_run(tracker.run_id).info.experiment_id
        (logged,) = client.search_logged_models([experiment_id])
        client.create_registered_model("demo")
        client.create_model_version("demo", logged.artifact_location, tracker.run_id, model_id=logged.model_id)
        client.set_registered_model_alias("demo", "best", "1")
        bare = client.create_run(experiment_id).info.run_id
        expected = list(Upscaler.from_checkpoint(run_dir, device="cpu").upscale(frames[:3]))
        for uri in ("models:/demo/1", "models:/demo@best", "models:/demo/latest", f"runs:/{tracker.run_id}"):
            upscaler = Upscaler.from_registry(uri, tracking_uri=server.uri, device="cpu")
            assert np.array_equal(list(upscaler.upscale(frames[:3])), expected)
            assert upscaler.description["tracking_uri"] == server.uri
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        for uri in ("models:/demo/1", f"models:/{logged.model_id}"):
            assert same_weights(find_generator(uri)[0], make(GRU, 4))
        for uri in ("models:/demo/9", "models:/demo@nobody", "models:/other/latest", "runs:/0123", f"runs:/{bare}"):
            with pytest.raises(BadCheckpointError, match=f"{uri} cannot be downloaded from MLflow at {server.uri}"):
                find_generator(uri)
        with pytest.raises(BadConfigError, match=r"expected models:/NAME/VERSION, .*found 'models:/demo/one/two'"):
            find_generator("models:/demo/one/two")
    finally:
        server.kill()
    with pytest.raises(BadCheckpointError, match="cannot be downloaded from MLflow at"):
        find_generator("models:/demo/1")
