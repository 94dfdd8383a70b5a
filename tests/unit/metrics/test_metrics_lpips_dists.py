"""LPIPS and DISTS with made-up weights, against torchvision's networks and the formulas written out."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
import torch.nn.functional as F
from metric_references import dists_by_hand, lpips_by_hand

from vsr_dist.core.errors import BadConfigError, BadInputError, MissingExtraError
from vsr_dist.metrics import dists, lpips

torch.set_num_threads(1)
models = pytest.importorskip("torchvision.models")
LPIPS_WIDTHS, DISTS_WIDTHS = (64, 192, 384, 256, 256), (3, 64, 128, 256, 512, 512)


def _pair(side=80):
    generator = torch.Generator().manual_seed(side)
    first = torch.rand(2, 3, side, side + 9, generator=generator)
    return first, (F.avg_pool2d(first, 3, 1, 1) + 0.1 * torch.randn(first.shape, generator=generator)).clamp(0, 1)


@pytest.fixture
def alex(monkeypatch, tmp_path):
    """(torchvision's AlexNet, heads) with the weights that `Lpips` reads from files."""
    torch.manual_seed(0)
    network = models.alexnet(weights=None).eval()
    heads = {f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1) for n, width in enumerate(LPIPS_WIDTHS)}
    torch.save(network.state_dict(), tmp_path / lpips.TRUNK_FILE)
    torch.save(heads, tmp_path / "alex.pth")
    monkeypatch.setattr(lpips, "torchvision_file", lambda name, *_: tmp_path / name)
    monkeypatch.setattr(lpips, "wheel_file", lambda *_: tmp_path / "alex.pth")
    return network, list(heads.values())


def test_lpips_equals_the_formula(alex):
    first, second = _pair()
    with torch.no_grad():
        found, expected = lpips.Lpips()(first, second), lpips_by_hand(*alex, first, second)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert float(expected.min()) > 0.01
    assert torch.equal(lpips.Lpips()(first, first), torch.zeros(2))
    with pytest.raises(BadInputError, match="at least 64 x 64"):
        lpips.Lpips().features(torch.rand(1, 3, 63, 90))


@pytest.fixture
def vgg(monkeypatch, tmp_path):
    torch.manual_seed(0)
    network = models.vgg16(weights=None).eval()
    weights = {name: torch.rand(1, sum(DISTS_WIDTHS), 1, 1) for name in ("alpha", "beta")}
    torch.save({k: v for k, v in network.state_dict().items() if k.startswith("features")}, tmp_path / dists.TRUNK_FILE)
    torch.save(weights, tmp_path / "weights.pt")
    monkeypatch.setattr(dists, "torchvision_file", lambda name, *_: tmp_path / name)
    monkeypatch.setattr(dists, "wheel_file", lambda *_: tmp_path / "weights.pt")
    return network, weights


def test_dists_equals_the_formula(vgg):
    first, second = _pair(40)
    with torch.no_grad():
        found, expected = dists.Dists()(first, second), dists_by_hand(*vgg, first, second)
    torch.testing.assert_close(found.double(), expected, atol=2e-3, rtol=0.0)
    assert float(expected.min()) > 0.02
    assert dists.Dists()(first, first).abs().max() < 1e-5
    with pytest.raises(BadInputError, match="at least 32 x 32"):
        dists.Dists().features(torch.rand(1, 3, 31, 90))


def test_what_is_missing_is_said_with_what_to_do(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(MissingExtraError, match=r"LPIPS: lpips, which brings its weights.*vsr-dist\[lpips\]"):
        lpips.Lpips()
    with pytest.raises(MissingExtraError, match=r"DISTS: DISTS-pytorch, .*vsr-dist\[lpips\]"):
        dists.Dists()
    torch.save({}, tmp_path / "heads.pth")
    monkeypatch.setattr(lpips, "wheel_file", lambda *_: tmp_path / "heads.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(BadConfigError, match=r"no file .*checkpoints/alexnet-owt-7be5be79.pth; nothing is downloaded"):
        lpips.Lpips()
    (tmp_path / "checkpoints").mkdir()
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "checkpoints" / lpips.TRUNK_FILE)
    with pytest.raises(BadConfigError, match=r"expected features.0.weight of shape \(64, 3, 11, 11\), found \(2,\)"):
        lpips.Lpips()
