"""ST-LPIPS against the package that its weights come from; LPIPS, DISTS and VMAF against their formulas."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from metric_references import dists_by_hand, lpips_by_hand

from vsr_dist.core.errors import BadConfigError, BadInputError, MissingExtraError
from vsr_dist.metrics import perceptual
from vsr_dist.metrics.perceptual import Dists, Lpips, ShiftTolerantLpips, VmafStream, load_vmaf

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
    return first, (F.avg_pool2d(first, 3, 1, 1) + noise).clamp(0, 1)


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
    smooth = F.interpolate(first[..., :12, :12], size=(64, 65), mode="bicubic").clamp(0, 1)
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
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(
        MissingExtraError, match=r"stlpips-pytorch is not installed\); run: pip install 'vsr-dist\[perc"
    ):
        ShiftTolerantLpips()


def test_a_file_of_something_else_is_refused(monkeypatch, tmp_path):
    path = tmp_path / perceptual.WEIGHTS_FILE
    monkeypatch.setattr(perceptual, "extra_files", lambda *_: [path])
    torch.save({"net.slice1.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(BadConfigError, match=r"expected net\.slice1\.0\.weight of shape \(64, 3, 11, 11\), found \(64"):
        ShiftTolerantLpips()
    path.write_text("no tensors")
    with pytest.raises(BadConfigError, match="not a file of tensors"):
        ShiftTolerantLpips()


@pytest.fixture
def trunks(monkeypatch, tmp_path):
    """(AlexNet, VGG16) with random weights, which lie where torchvision caches the trained ones."""
    models = pytest.importorskip("torchvision.models")
    pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    networks = models.alexnet(weights=None).eval(), models.vgg16(weights=None).eval()
    (tmp_path / "checkpoints").mkdir()
    for network, name in zip(networks, ("alexnet-owt-7be5be79.pth", "vgg16-397923af.pth"), strict=True):
        torch.save(network.state_dict(), tmp_path / "checkpoints" / name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return networks


def _distance(metric, first, second):
    with torch.no_grad():
        return metric.distance(metric.features(first), metric.features(second))


def test_lpips_equals_the_formula(trunks):
    ours, (first, second) = Lpips(), _pair(80, 89)
    heads = [getattr(ours.network, f"lin{number}").model[-1].weight for number in range(5)]
    with torch.no_grad():
        expected = lpips_by_hand(trunks[0], heads, first, second)
    torch.testing.assert_close(_distance(ours, first, second), expected, atol=1e-6, rtol=1e-3)
    assert float(expected.min()) > 1e-3, "the pair is not far enough apart to tell an error"
    assert torch.equal(_distance(ours, first, first), torch.zeros(3))
    with pytest.raises(BadInputError, match="LPIPS: expected images of at least 64 x 64"):
        ours.features(torch.rand(1, 3, 63, 90))


def test_dists_equals_the_formula(trunks):
    ours, (first, second) = Dists(), _pair(40, 49)
    weights = {"alpha": ours.network.alpha, "beta": ours.network.beta}
    with torch.no_grad():
        expected = dists_by_hand(trunks[1], weights, first, second)
    # float32 leaves about 1e-7 of a sum that is near 1.
    torch.testing.assert_close(_distance(ours, first, second).double(), expected, atol=2e-6, rtol=0.0)
    assert float(expected.min()) > 1e-4, "the pair is not far enough apart to tell an error"
    with pytest.raises(BadInputError, match="DISTS: expected images of at least 32 x 32"):
        ours.features(torch.rand(1, 3, 31, 90))


@pytest.mark.parametrize(("metric", "file"), [(Lpips, "alexnet-owt-7be5be79.pth"), (Dists, "vgg16-397923af.pth")])
def test_weights_are_never_downloaded(metric, file, trunks, tmp_path):
    (tmp_path / "checkpoints" / file).unlink()
    with pytest.raises(BadConfigError, match=rf"no file .*{file}; evaluation downloads nothing: run"):
        metric()


@pytest.mark.parametrize("make", [Lpips, Dists, load_vmaf], ids=["lpips", "dists", "vmaf"])
def test_a_missing_extra_is_one_line_that_names_it(make, monkeypatch):
    for name in ("torchmetrics.image.lpip", "torchmetrics.functional.image.dists", "vmaf_torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingExtraError, match=r"needs the extra 'metrics' .*pip install 'vsr-dist\[metrics\]'"
    ) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_frames", [1, 5, 8, 15])
def test_vmaf_in_pieces_is_that_of_the_whole_film(num_frames):
    pytest.importorskip("vmaf_torch")
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (num_frames, 48, 64, 3), generator=generator, dtype=torch.uint8)
    fake = (real.float() * 0.9 + 12).round().to(torch.uint8)
    stream = VmafStream()
    found = [value for pair in zip(fake, real, strict=True) for value in stream.push(*pair)] + stream.end()
    whole = (clip.permute(3, 0, 1, 2)[None] / 255 for clip in (fake, real))
    assert found == pytest.approx(load_vmaf()(*whole)[0].tolist(), abs=1e-4)
    with pytest.raises(BadInputError, match="VMAF: expected frames of at least 32 pixels, found 31"):
        stream.push(real[0, :31], real[0, :31])
