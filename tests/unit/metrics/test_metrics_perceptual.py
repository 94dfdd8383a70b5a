"""ST-LPIPS against the package that its weights come from."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch

from vsr_dist.core import distribution
from vsr_dist.core.errors import BadConfigError, BadInputError, MissingExtraError
from vsr_dist.metrics import perceptual
from vsr_dist.metrics.perceptual import ShiftTolerantLpips

torch.set_num_threads(1)

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None, reason="stlpips-pytorch is not installed"
)


@pytest.fixture(scope="module")
def metric():
    return ShiftTolerantLpips()


@pytest.fixture
def theirs(monkeypatch):
    """The package's own metric; it imports IPython and torchsummary, and uses neither."""
    pytest.importorskip("torchvision")
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(embed=None))
    monkeypatch.setitem(sys.modules, "torchsummary", types.SimpleNamespace(summary=None))
    from stlpips_pytorch import stlpips

    yield stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    for name in [name for name in sys.modules if name.startswith("stlpips_pytorch")]:
        monkeypatch.delitem(sys.modules, name)


def _pair(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    first = torch.rand(3, 3, rows, columns, generator=generator)
    noise = 0.1 * torch.randn(first.shape, generator=generator)
    return first, (torch.nn.functional.avg_pool2d(first, 3, 1, 1) + noise).clamp(0, 1)


@needs_weights
@pytest.mark.parametrize("size", [(64, 64), (57, 96), (32, 33)])
def test_equals_the_package(metric, theirs, size):
    first, second = _pair(*size)
    with torch.no_grad():
        expected = theirs(first, second, normalize=True).flatten()
        torch.testing.assert_close(metric(first, second), expected, atol=1e-5, rtol=0.0)
    assert float(expected.min()) > 0.01, "the pair is not far enough apart to tell an error"


@needs_weights
def test_equal_images_are_at_distance_zero_and_a_shift_is_a_small_one(metric):
    first, blurred = _pair(64, 64)
    smooth = torch.nn.functional.interpolate(first[..., :12, :12], size=(64, 65), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        assert torch.equal(metric(first, first), torch.zeros(3))
        assert float(metric(smooth[..., 1:], smooth[..., :-1]).max()) < 0.5 * float(metric(first, blurred).min())


@needs_weights
def test_features_can_be_kept(metric):
    first, second = _pair(48, 40)
    kept = metric.features(first)
    assert torch.equal(metric.distance(metric.features(second), kept), metric(second, first))
    assert not any(parameter.requires_grad for parameter in metric.parameters())


@needs_weights
def test_small_images_are_refused(metric):
    with pytest.raises(BadInputError, match="at least 32 x 32 pixels, found 31 x 40"):
        metric.features(torch.rand(1, 3, 31, 40))


def test_missing_distribution_says_what_to_install(monkeypatch):
    def missing(name):
        raise distribution.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(distribution.importlib.metadata, "files", missing)
    with pytest.raises(MissingExtraError, match=r"stlpips-pytorch.*is missing; run `pip install \"vsr-dist\[perc"):
        ShiftTolerantLpips()


def test_a_file_of_something_else_is_refused(monkeypatch, tmp_path):
    path = tmp_path / perceptual.WEIGHTS_FILE
    monkeypatch.setattr(perceptual, "distribution_file", lambda *_: path)
    torch.save({"net.slice1.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(BadConfigError, match=r"expected net\.slice1\.0\.weight of shape \(64, 3, 11, 11\), found \(64"):
        ShiftTolerantLpips()
    path.write_text("no tensors")
    with pytest.raises(BadConfigError, match="not a file of tensors"):
        ShiftTolerantLpips()
