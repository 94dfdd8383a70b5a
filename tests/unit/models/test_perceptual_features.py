"""The VGG trunk: its layout against torchvision, its shift-tolerant form against the package it comes from."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import types

import pytest
import torch

from vsr_dist.core.errors import BadConfigError, BadInputError, MissingExtraError
from vsr_dist.models import features
from vsr_dist.models.features import BlurPool, PerceptualConfig, PerceptualTrunk, vgg16_features

torch.set_num_threads(1)

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None, reason="stlpips-pytorch is not installed"
)


@pytest.fixture(scope="module")
def random_state():
    torch.manual_seed(0)
    trunk = vgg16_features(lambda channels: torch.nn.MaxPool2d(2, 2))
    return {f"features.{key}": value for key, value in trunk.state_dict().items()}


@pytest.fixture(scope="module")
def state_file(random_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vgg.pth"
    torch.save({**random_state, "classifier.0.bias": torch.zeros(4)}, path)
    return str(path)


@pytest.fixture(scope="module")
def stlpips_trunk():
    return PerceptualTrunk(PerceptualConfig())


def _their_vgg(monkeypatch):
    """Only the package's vgg and downsample files, by path; its other modules want libraries that it lacks."""
    files = importlib.metadata.files("stlpips_pytorch") or []
    paths = {file.stem: file.locate() for file in files if file.parent.name == "models_lpf"}
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(embed=None))
    package = types.ModuleType("their_models")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "their_models", package)
    for name in ("downsample", "vgg"):
        spec = importlib.util.spec_from_file_location(f"their_models.{name}", str(paths[name]))
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return sys.modules["their_models.vgg"].vgg16(filter_size=3, pad_more=True).features


@needs_weights
def test_shift_tolerant_features_equal_the_package(stlpips_trunk, monkeypatch):
    theirs = _their_vgg(monkeypatch).eval()
    files = importlib.metadata.files("stlpips_pytorch")
    (path,) = [file.locate() for file in files if file.name == "vgg_shift_tolerant.pth"]
    state = torch.load(path, map_location="cpu", weights_only=True)
    numbered = {key.split(".", 2)[2]: value for key, value in state.items() if key.startswith("net.")}
    missing = theirs.load_state_dict(numbered, strict=False).missing_keys
    assert missing == ["35.filt"], "the fifth blur has no weights in the file; it is the same fixed filter"
    images = torch.rand(1, 3, 75, 92)
    with torch.no_grad():
        # The package standardises images in [-1, 1] by its own constants: the same as ImageNet's on [0, 1].
        inputs = ((2 * images - 1) - state["scaling_layer.shift"]) / state["scaling_layer.scale"]
        torch.testing.assert_close(stlpips_trunk(images), theirs(inputs), atol=1e-4, rtol=1e-4)


def test_plain_trunk_equals_torchvision(state_file, random_state):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = models.vgg16(weights=None).features
    theirs = theirs.to_empty(device="cpu")
    theirs.load_state_dict({key.removeprefix("features."): value for key, value in random_state.items()})
    images = torch.rand(1, 3, 40, 36)
    for layer in (9, 31):
        config = PerceptualConfig(weights="file", path=state_file, layer=layer, normalise=False)
        with torch.no_grad():
            torch.testing.assert_close(PerceptualTrunk(config)(images), theirs[:layer](images))


def test_normalisation_is_imagenets(state_file):
    plain, normalised = (
        PerceptualTrunk(PerceptualConfig("file", state_file, layer=4, normalise=on)) for on in (False, True)
    )
    images = torch.rand(1, 3, 8, 8)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    standard = (images - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    torch.testing.assert_close(normalised(images), plain(standard))


def test_source_names_weights_depth_and_file_for_the_log(state_file):
    for normalise, words in ((True, "inputs standardised"), (False, "inputs as they are")):
        source = PerceptualTrunk(PerceptualConfig("file", state_file, layer=9, normalise=normalise)).source
        assert source == f"file VGG16, 9 layers, {words}, weights {state_file}"


def test_torchvisions_cache_is_read(random_state, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    torch.save(random_state, tmp_path / "checkpoints" / features.TORCHVISION_FILE)
    monkeypatch.setattr(features.torch.hub, "get_dir", lambda: str(tmp_path))
    trunk = PerceptualTrunk(PerceptualConfig(weights="torchvision", layer=2))
    assert torch.equal(trunk.features[0].weight, random_state["features.0.weight"])


def test_blur_pool_halves_smoothly():
    pool = BlurPool(2)
    flat = torch.full((1, 2, 6, 9), 3.0)
    out = pool(flat)
    assert out.shape == (1, 2, 4, 5)
    torch.testing.assert_close(out, torch.full_like(out, 3.0))


def test_trunk_is_frozen_and_passes_gradients_to_images(state_file):
    trunk = PerceptualTrunk(PerceptualConfig("file", state_file, layer=9))
    holder = torch.nn.Sequential(trunk).train()
    assert not trunk.training and not any(module.training for module in trunk.modules())
    assert not any(parameter.requires_grad for parameter in holder.parameters())
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    trunk(images).pow(2).mean().backward()
    assert images.grad is not None and images.grad.any()


@needs_weights
def test_smallest_image_is_the_smallest_that_runs(stlpips_trunk):
    side = stlpips_trunk.min_px
    with torch.no_grad():
        assert stlpips_trunk(torch.rand(1, 3, side, side)).isfinite().all()
        with pytest.raises(RuntimeError):
            stlpips_trunk.features(torch.rand(1, 3, side - 1, side - 1))
    with pytest.raises(BadInputError, match=f"at least {side} pixels"):
        stlpips_trunk(torch.rand(1, 3, side - 1, side))


@needs_weights
def test_the_package_is_never_imported():
    code = (
        "import sys; from vsr_dist.models.features import PerceptualConfig, PerceptualTrunk;"
        "PerceptualTrunk(PerceptualConfig());"
        "bad = [name for name in sys.modules if name.split('.')[0] in ('stlpips_pytorch', 'torchvision')];"
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_missing_weights_name_the_fix(monkeypatch, tmp_path):
    def missing(_name):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'vsr-dist\[perceptual\]'; or set loss.perceptual to 0"):
        PerceptualTrunk(PerceptualConfig())
    monkeypatch.setattr(features.torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(BadConfigError, match="nothing is downloaded"):
        PerceptualTrunk(PerceptualConfig(weights="torchvision"))
    with pytest.raises(BadConfigError, match="no file"):
        PerceptualTrunk(PerceptualConfig(weights="file", path=str(tmp_path / "none.pth")))


def test_bad_files_and_configurations_are_refused(tmp_path, state_file):
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"no tensors here")
    with pytest.raises(BadConfigError, match="not a file of tensors"):
        PerceptualTrunk(PerceptualConfig(weights="file", path=str(garbage)))
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(BadConfigError, match="25 of 26"):
        PerceptualTrunk(PerceptualConfig(weights="file", path=str(tmp_path / "other.pth")))
    widened = {**torch.load(state_file, weights_only=True), "features.2.weight": torch.zeros(8, 64, 3, 3)}
    torch.save(widened, tmp_path / "wide.pth")
    with pytest.raises(BadConfigError, match=r"layer 2.weight has shape \(8, 64, 3, 3\)"):
        PerceptualTrunk(PerceptualConfig(weights="file", path=str(tmp_path / "wide.pth")))
    for wrong in ({"layer": 32}, {"weights": "file"}, {"path": "x"}):
        with pytest.raises(BadConfigError):
            PerceptualConfig(**wrong)
