"""Scores of frames: what runs on the device, in order, and what threads do for each frame by itself.

Axis letters: T time, Y X rows and columns, C channels, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from vsr_dist.core.errors import BadConfigError, MissingExtraError
from vsr_dist.metrics.dists import Dists
from vsr_dist.metrics.fidelity_batched import FIDELITY, fidelity_of_tensors, frame_fidelity_fast
from vsr_dist.metrics.lpips import Lpips
from vsr_dist.metrics.perceptual import Features, ShiftTolerantLpips
from vsr_dist.metrics.protocol import Protocol as Preset
from vsr_dist.metrics.protocol import Region
from vsr_dist.metrics.registry import METRICS, RegionName
from vsr_dist.metrics.temporal import flicker, flow_distance, tdiff, visible, warp_pair
from vsr_dist.metrics.vmaf import VmafStream, load_vmaf
from vsr_dist.ops.color import ByteArray, from_uint8
from vsr_dist.ops.motion import farneback

# Method -> metric -> value.
Scores = dict[str, dict[str, float]]
NETWORKS: dict[str, Callable[[], Any]] = {
    "stlpips": lambda: ShiftTolerantLpips("ST-LPIPS", "leave stlpips and tlp_st out of --metrics"),
    "lpips": Lpips,
    "dists": Dists,
    "vmaf": load_vmaf,
}
# Network -> (metric of a frame, metric of a pair).
_DISTANCES = {"stlpips": ("stlpips", "tlp_st"), "lpips": ("lpips", "tlp"), "dists": ("dists", None)}
TLP_FACTOR = 100.0


class _Network(Protocol):
    def features(self, images_NCYX: Tensor) -> Features: ...

    def distance(self, first: Features, second: Features) -> Tensor: ...


@dataclass(frozen=True)
class HostFrame:
    """One frame and the one before it, the truth and every method's, uint8 RGB (Y, X, C) on the host."""

    real: ByteArray
    fakes: Mapping[str, ByteArray]
    real_before: ByteArray | None
    fakes_before: Mapping[str, ByteArray]


def available(names: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
    """(those whose weights are here, why each of the others is not)."""
    reasons: dict[str, str] = {}
    for network in dict.fromkeys(METRICS[name].network for name in names):
        if network is None:
            continue
        try:
            NETWORKS[network]()
        except (BadConfigError, MissingExtraError) as error:
            reasons[network] = str(error)
    left_out = {name: reasons[found] for name in names if (found := METRICS[name].network) in reasons and found}
    return tuple(name for name in names if name not in left_out), left_out


class Scorer:
    """Measures one set under one protocol. Opening it fails where weights or packages are missing."""

    def __init__(self, names: tuple[str, ...], preset: Preset, scale: int, device: torch.device) -> None:
        self._names, self._preset, self._scale, self._device = names, preset, scale, device
        wanted = dict.fromkeys(METRICS[name].network for name in names)
        self._networks: dict[str, _Network] = {
            name: NETWORKS[name]().to(device) for name in wanted if name is not None and name != "vmaf"
        }
        self._fidelity = tuple(name for name in FIDELITY if name in names)
        # On the CPU the threads do it, frame by frame.
        self._fidelity_on_device = device.type != "cpu"
        self._has_vmaf = "vmaf" in wanted
        if self._has_vmaf:
            load_vmaf()
        self.reset()

    def reset(self) -> None:
        """The next frame opens a sequence."""
        self._before: dict[tuple[str, str], Features] = {}
        self._vmaf: dict[str, VmafStream] = {}

    def _region(self, name: RegionName, shape: tuple[int, ...]) -> Region:
        return self._preset.region(name, shape[0], shape[1], self._scale)

    def of_piece(self, real_TYXC: Tensor, fakes: Mapping[str, Tensor]) -> list[Scores]:
        """What a GPU measures of several frames at once, uint8 RGB tensors there; on the CPU threads do it."""
        scores: list[Scores] = [{method: {} for method in fakes} for _ in real_TYXC]
        if self._fidelity and self._fidelity_on_device:
            rows, columns = self._region("fidelity", tuple(real_TYXC.shape[1:]))
            for method, fake_TYXC in fakes.items():
                pair = (fake_TYXC[:, rows, columns], real_TYXC[:, rows, columns])
                found = fidelity_of_tensors(*pair, self._fidelity, self._preset.round_luma)
                for place, values in enumerate(found):
                    scores[place][method] = values
        return scores

    def on_device(self, real_YXC: Tensor, fakes: Mapping[str, Tensor]) -> Scores:
        """What networks measure of the next frame of a sequence, uint8 RGB tensors there. In the order of time."""
        scores: Scores = {method: {} for method in fakes}
        if not self._networks:
            return scores
        region = self._region("other", tuple(real_YXC.shape))
        for name, network in self._networks.items():
            with torch.no_grad():
                self._distances(name, network, real_YXC[region], {m: f[region] for m, f in fakes.items()}, scores)
        return scores

    def _distances(
        self, name: str, network: _Network, real_YXC: Tensor, fakes: Mapping[str, Tensor], scores: Scores
    ) -> None:
        frame_metric, pair_metric = _DISTANCES[name]
        real = network.features(_image(real_YXC))
        real_before = self._before.get((name, ""))
        wants_pair = pair_metric is not None and pair_metric in self._names
        if wants_pair and real_before is not None:
            real_step = float(network.distance(real_before, real))
        for method, fake_YXC in fakes.items():
            fake = network.features(_image(fake_YXC))
            if frame_metric in self._names:
                scores[method][frame_metric] = float(network.distance(fake, real))
            if wants_pair and pair_metric and real_before is not None:
                fake_step = float(network.distance(self._before[name, method], fake))
                scores[method][pair_metric] = TLP_FACTOR * abs(real_step - fake_step)
            if wants_pair:
                self._before[name, method] = fake
        if wants_pair:
            self._before[name, ""] = real

    def over_sequence(self, real_YXC: Tensor | None, fakes: Mapping[str, Tensor]) -> dict[str, list[float]]:
        """VMAF's next known values per method, in order; None as the truth ends the sequence."""
        if not self._has_vmaf:
            return {}
        if real_YXC is None:
            return {method: stream.end() for method, stream in self._vmaf.items()}
        region = self._region("other", tuple(real_YXC.shape))
        found = {}
        for method, fake_YXC in fakes.items():
            stream = self._vmaf.setdefault(method, VmafStream())
            found[method] = stream.push(fake_YXC[region], real_YXC[region])
        return found

    def on_host(self, frame: HostFrame) -> Scores:
        """What a thread measures of one frame."""
        scores: Scores = {method: {} for method in frame.fakes}
        if self._fidelity and not self._fidelity_on_device:
            region = self._region("fidelity", frame.real.shape)
            for method, fake_YXC in frame.fakes.items():
                pair = (fake_YXC[region], frame.real[region])
                scores[method] |= frame_fidelity_fast(*pair, self._fidelity, self._preset.round_luma)
        if frame.real_before is not None:
            self._over_time(frame, frame.real_before, scores)
        return scores

    def _over_time(self, frame: HostFrame, real_before: ByteArray, scores: Scores) -> None:
        if "tof" in self._names or "warp" in self._names:
            grays = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (real_before, frame.real)]
            forward_YX2 = farneback(*grays)
        if "tof" in self._names:
            region = self._region("flow", frame.real.shape)
            for method, fake_YXC in frame.fakes.items():
                pair = (frame.fakes_before[method], fake_YXC)
                flow_YX2 = farneback(*(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in pair))
                scores[method]["tof"] = flow_distance(flow_YX2, forward_YX2, region)
        region = self._region("other", frame.real.shape)
        if "tdiff" in self._names:
            real_pair = np.stack([real_before[region], frame.real[region]])
            for method, fake_YXC in frame.fakes.items():
                fake_pair = np.stack([frame.fakes_before[method][region], fake_YXC[region]])
                scores[method]["tdiff"] = tdiff(fake_pair, real_pair)
        if "flicker" in self._names:
            for method, fake_YXC in frame.fakes.items():
                before_YXC = frame.fakes_before[method]
                level = flicker(before_YXC[region], fake_YXC[region], real_before[region], frame.real[region])
                if level is not None:
                    scores[method]["flicker"] = level
        if "warp" in self._names:
            mask_YX = visible(forward_YX2, farneback(grays[1], grays[0]))
            for method, fake_YXC in frame.fakes.items():
                scores[method]["warp"] = warp_pair(frame.fakes_before[method], fake_YXC, forward_YX2, mask_YX, region)


def _image(frame_YXC: Tensor) -> Tensor:
    return from_uint8(frame_YXC).permute(2, 0, 1)[None]
