"""Perceptual metrics: ST-LPIPS with a network of its own, LPIPS, DISTS and VMAF by torchmetrics.

ST-LPIPS, which training uses as well, tolerates a shift by a pixel. Ghildyal and Liu 2022 (arXiv:2207.13686): LPIPS
(Zhang et al. 2018, arXiv:1801.03924) on an AlexNet whose first convolution has stride 1 and in which every reduction
is a blur of stride 2. Trunk and heads are those of the distribution `stlpips-pytorch` (`pip install
"vsr-dist[perceptual]"`); its weight file is read, its code not imported.

The others need `pip install "vsr-dist[metrics]"`. torchmetrics brings the weights of its heads; the trunks are
torchvision's, which must be in torch's download cache: nothing is downloaded here.

Axes: N any number of images, B batch, C channels, T frames, Y X rows and columns.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError, BadInputError, extra_files, import_extra
from vsr_dist.ops.color import from_uint8

WEIGHTS_FILE = "alex_shift_tolerant.pth"
# Reflected padding needs more pixels than it adds, in the last blur as well.
MIN_PX = 32
# Of each convolution: number in the file, output and input channels, kernel size, padding, and whether a maximum over
# 3 x 3 and a blur come before it. The first one's blur lies between it and its ReLU.
_CONVS = (
    ("slice1.0", 64, 3, 11, 2, False),
    ("slice2.5", 192, 64, 5, 2, True),
    ("slice3.9", 384, 192, 3, 1, True),
    ("slice4.11", 256, 384, 3, 1, False),
    ("slice5.13", 256, 256, 3, 1, False),
)
_EPSILON = 1e-10
VMAF_WINDOW_FRAMES = 6
VMAF_MIN_PX = 32

Features = tuple[Tensor, ...]


class ShiftTolerantLpips(nn.Module):
    """Frozen, in evaluation mode. `features` and `distance` apart, for truth that is compared more than once.

    Raises MissingExtraError when the weights' distribution is not installed, BadConfigError when the file is not what
    it should be.
    """

    shift: Tensor
    deviation: Tensor
    kernel: Tensor

    def __init__(
        self, what: str = "train.perceptual_metric stlpips", instead: str = "set train.perceptual_metric=none"
    ) -> None:
        """`what` asked for it, and what to do `instead` of installing its weights: for the error without them."""
        super().__init__()
        path = extra_files("perceptual", "stlpips-pytorch", WEIGHTS_FILE, what, instead)[0]
        state = _read_tensors(path, "ST-LPIPS", "reinstall it")
        copy = partial(_copy_tensor, what=f"ST-LPIPS: {WEIGHTS_FILE}", fix="reinstall stlpips-pytorch 0.0.2")
        self.convs = nn.ModuleList(
            nn.Conv2d(num_in, num_out, size, padding=padding) for _, num_out, num_in, size, padding, _ in _CONVS
        )
        heads = [nn.Conv2d(num_out, 1, 1, bias=False) for _, num_out, *_ in _CONVS]
        self.heads = nn.ModuleList(heads)
        for number, (head, (name, *_)) in enumerate(zip(heads, _CONVS, strict=True)):
            for part in ("weight", "bias"):
                copy(getattr(self.convs[number], part), state, f"net.{name}.{part}")
            copy(head.weight, state, f"lin{number}.model.1.weight")
        # The file's own constants, for images in [-1, 1].
        for name, key in (("shift", "scaling_layer.shift"), ("deviation", "scaling_layer.scale")):
            self.register_buffer(name, torch.zeros(1, 3, 1, 1))
            copy(getattr(self, name), state, key)
        line = torch.tensor([1.0, 2.0, 1.0]) / 4.0
        self.register_buffer("kernel", torch.outer(line, line))
        self.requires_grad_(False)
        self.eval()

    def features(self, images_NCYX: Tensor) -> Features:
        """Five normalised feature maps of float RGB images in [0, 1], at least 32 x 32 pixels."""
        check_size(images_NCYX, MIN_PX, "ST-LPIPS")
        current = (2.0 * images_NCYX - 1.0 - self.shift) / self.deviation
        found_features = []
        for number, (conv, (*_, reduced)) in enumerate(zip(self.convs, _CONVS, strict=True)):
            if reduced:
                current = self._blur(F.max_pool2d(current, kernel_size=3, stride=1))
            current = conv(current)
            current = F.relu(self._blur(current) if number == 0 else current)
            found_features.append(current / (current.square().sum(1, keepdim=True).sqrt() + _EPSILON))
        return tuple(found_features)

    def distance(self, first: Features, second: Features) -> Tensor:
        """(N,) distances of images by their features, from 0."""
        parts = zip(self.heads, first, second, strict=True)
        return torch.stack([head((one - other).square()).mean((1, 2, 3)) for head, one, other in parts]).sum(0)

    def forward(self, first_NCYX: Tensor, second_NCYX: Tensor) -> Tensor:
        """(N,) distances of float RGB images in [0, 1]."""
        return self.distance(self.features(first_NCYX), self.features(second_NCYX))

    def _blur(self, features_NCYX: Tensor) -> Tensor:
        """A binomial filter of stride 2; n pixels become n // 2 + 1."""
        padded = F.pad(features_NCYX, (2, 2, 2, 2), mode="reflect")
        channels = padded.shape[1]
        return F.conv2d(padded, self.kernel.expand(channels, 1, 3, 3), stride=2, groups=channels)


class _TorchmetricsDistance(nn.Module):
    """A distance of torchmetrics in the form of `ShiftTolerantLpips`: the features of an image are the image itself."""

    def __init__(self, name: str, network: nn.Module, min_px: int) -> None:
        super().__init__()
        self.name, self.min_px = name, min_px
        self.network = network.requires_grad_(False).eval()

    def features(self, images_NCYX: Tensor) -> Features:
        """The images themselves: float RGB in [0, 1] of at least `min_px`."""
        check_size(images_NCYX, self.min_px, self.name)
        return (images_NCYX,)

    def distance(self, first: Features, second: Features) -> Tensor:
        """(N,) distances, from 0."""
        distances: Tensor = self.network(first[0], second[0])
        return distances.flatten()


class Lpips(_TorchmetricsDistance):
    """LPIPS 0.1 on AlexNet (Zhang et al. 2018), as torchmetrics computes it; lower is better.

    Raises MissingExtraError without torchmetrics, BadConfigError without the weights of AlexNet.
    """

    def __init__(self) -> None:
        module = _torchmetrics("torchmetrics.image.lpip", "LPIPS", "lpips and tlp")
        _require_trunk("alexnet-owt-7be5be79.pth", "alexnet", "LPIPS")
        super().__init__("LPIPS", module.LearnedPerceptualImagePatchSimilarity(net_type="alex").net, min_px=64)

    def distance(self, first: Features, second: Features) -> Tensor:
        """(N,) distances, from 0."""
        distances: Tensor = self.network(first[0], second[0], normalize=True)
        return distances.flatten()


class Dists(_TorchmetricsDistance):
    """DISTS (Ding et al. 2020), as torchmetrics computes it; lower is better.

    Raises MissingExtraError without torchmetrics, BadConfigError without the weights of VGG16.
    """

    def __init__(self) -> None:
        module = _torchmetrics("torchmetrics.functional.image.dists", "DISTS", "dists")
        _require_trunk("vgg16-397923af.pth", "vgg16", "DISTS")
        super().__init__("DISTS", module.DISTSNetwork(), min_px=32)


def load_vmaf() -> Any:  # noqa: ANN401 - torchmetrics has no types for it
    """The function of torchmetrics. MissingExtraError if it or vmaf-torch is not installed."""
    _torchmetrics("vmaf_torch", "VMAF", "vmaf")
    return _torchmetrics("torchmetrics.functional.video", "VMAF", "vmaf").video_multi_method_assessment_fusion


class VmafStream:
    """VMAF per frame of one sequence under one method, as torchmetrics computes it; higher is better, up to about 100.

    Its motion feature looks at the frame before and the frame after, so windows overlap by one frame on each side: the
    numbers are those of the whole sequence at once, in constant memory.
    """

    def __init__(self) -> None:
        self._vmaf = load_vmaf()
        self._frames: list[tuple[Tensor, Tensor]] = []
        self._is_first = True

    def push(self, fake_YXC: Tensor, real_YXC: Tensor) -> list[float]:
        """Take the next frame, uint8 RGB; returns the scores that are known now, in order, often none."""
        if min(real_YXC.shape[:2]) < VMAF_MIN_PX:
            found = min(real_YXC.shape[:2])
            raise BadInputError(f"VMAF: expected frames of at least {VMAF_MIN_PX} pixels, found {found}")
        self._frames.append((fake_YXC, real_YXC))
        if len(self._frames) < VMAF_WINDOW_FRAMES + 2:
            return []
        scores = self._window()
        # The last frame has no successor yet; with the one before it, it opens the next window.
        known = scores[:-1] if self._is_first else scores[1:-1]
        self._frames, self._is_first = self._frames[-2:], False
        return known

    def end(self) -> list[float]:
        """The scores that are still missing; the stream is ready for another sequence."""
        known = [] if not self._frames else self._window()[0 if self._is_first else 1 :]
        self._frames, self._is_first = [], True
        return known

    def _window(self) -> list[float]:
        # A single frame is its own neighbour without motion, as in libvmaf.
        clips = [torch.stack(side).permute(3, 0, 1, 2)[None] for side in zip(*self._frames, strict=True)]
        fake_BCTYX, real_BCTYX = (from_uint8(clip) for clip in clips)
        with torch.no_grad():
            scores: list[float] = self._vmaf(fake_BCTYX, real_BCTYX)[0].tolist()
        return scores


def check_size(images_NCYX: Tensor, min_px: int, what: str) -> None:
    """BadInputError unless images (N, C, Y, X) are at least `min_px` in both directions."""
    if min(images_NCYX.shape[-2:]) < min_px:
        found = " x ".join(str(side) for side in images_NCYX.shape[-2:])
        raise BadInputError(f"{what}: expected images of at least {min_px} x {min_px} pixels, found {found}")


def _torchmetrics(module: str, what: str, metrics: str) -> Any:  # noqa: ANN401 - a module
    return import_extra("metrics", module, what, f"leave {metrics} out of --metrics")


def _require_trunk(name: str, model: str, what: str) -> None:
    """BadConfigError unless torchvision's weights are in torch's cache: torchvision would download them now."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise BadConfigError(
            f"{what}: no file {path}; evaluation downloads nothing: run "
            f"`python -c \"import torchvision as t; t.models.{model}(weights='DEFAULT')\"` on a machine with a "
            "network, or copy the file there"
        )


def _read_tensors(path: Path, what: str, fix: str) -> Mapping[str, Tensor]:
    """Tensors by name. BadConfigError if the file holds anything else; `fix` says what to do about it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BadConfigError(f"{what}: {path} is not a file of tensors that torch can load; {fix}") from error
    if not isinstance(state, Mapping):
        raise BadConfigError(f"{what}: {path} holds a {type(state).__name__}, expected tensors by name; {fix}")
    return state


def _copy_tensor(target: Tensor, state: Mapping[str, Tensor], key: str, what: str, fix: str) -> None:
    """Copy one tensor; a missing one, or one of another shape, is a BadConfigError."""
    if key not in state or state[key].shape != target.shape:
        found = tuple(state[key].shape) if key in state else "none"
        raise BadConfigError(f"{what}: expected {key} of shape {tuple(target.shape)}, found {found}; {fix}")
    with torch.no_grad():
        target.copy_(state[key])
