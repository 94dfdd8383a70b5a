"""Judging a generator and a discriminator on the fixed held-out windows, spread over the ranks.

Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vsr_dist.core.collectives import World, gather_lists
from vsr_dist.data.loader import ClipBatch
from vsr_dist.losses.pixel import PIXEL, PixelName
from vsr_dist.metrics.drift import Features, band_powers
from vsr_dist.metrics.perceptual import Features as ImageFeatures
from vsr_dist.metrics.perceptual import ShiftTolerantLpips
from vsr_dist.metrics.registry import PROTOCOLS, measure_clip, validation_metrics
from vsr_dist.ops.color import from_uint8, to_uint8
from vsr_dist.ops.picture import Picture, two_by_two
from vsr_dist.ops.resample import bicubic_upsample

# Features of a 96 x 96 frame are 2.5 MB, of a 256 x 256 frame 17 MB; the rest is computed anew each time.
_KEPT_FEATURES_BYTES = 128_000_000


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks in eval mode and gradients off inside; each network's own mode is put back afterwards."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


@dataclass(frozen=True)
class DiscriminatorOutputs:
    """Of one window: logits of the real and the generated clip (1, ...), on the CPU, float32, and their band powers."""

    number: int
    real_logits: Tensor
    fake_logits: Tensor
    real_bands: Features
    fake_bands: Features


class WindowStLpips:
    """ST-LPIPS of the middle frame of each held-out window, both clips rounded to 8 bits.

    The features of the truths are kept, as far as memory allows.
    """

    def __init__(self) -> None:
        """Raises what `ShiftTolerantLpips` raises without its weights."""
        self._metric = ShiftTolerantLpips()
        self._truth: dict[int, ImageFeatures] = {}
        self._num_bytes = 0

    def to(self, device: torch.device) -> WindowStLpips:
        """Move the network; returns itself."""
        self._metric.to(device)
        return self

    @torch.no_grad()
    def distance(self, number: int, fake_TCYX: Tensor, real_TCYX: Tensor) -> float:
        """ST-LPIPS of a clip in [0, 1] against window `number`, whose truth is the same at every call."""
        middle = real_TCYX.shape[0] // 2
        truth = self._truth.get(number)
        if truth is None:
            truth = self._metric.features(from_uint8(to_uint8(real_TCYX[middle : middle + 1])))
            size = sum(layer.nbytes for layer in truth)
            if self._num_bytes + size <= _KEPT_FEATURES_BYTES:
                self._truth[number] = truth
                self._num_bytes += size
        found = self._metric.features(from_uint8(to_uint8(fake_TCYX[middle : middle + 1])))
        return float(self._metric.distance(found, truth))


class Validator:
    """Holds the validation windows of one rank; every rank must call each method at the same step.

    With `st_lpips` the quality includes `stlpips`.
    """

    def __init__(
        self, batch: ClipBatch, world: World, scale: int, device: torch.device, st_lpips: WindowStLpips | None = None
    ) -> None:
        self.batch, self.world, self.scale, self.device = batch, world, scale, device
        self.st_lpips = None if st_lpips is None else st_lpips.to(device)
        # What bicubic scores on each window never changes.
        self._bicubic: dict[int, dict[str, float]] = {}
        self.mine = list(range(world.rank, len(batch.names), world.size))

    def quality(self, generator: nn.Module) -> dict[str, float]:
        """`val/*` of the generator and `val_bicubic/*` of bicubic, means over all windows, equal on all ranks."""
        rows: list[tuple[int, dict[str, float]]] = []
        with evaluating(generator):
            for number in self.mine:
                low_BTCHW, real_BTCYX = self._clip(number)
                scores = self._scores("val", number, generator(low_BTCHW), real_BTCYX)
                if number not in self._bicubic:
                    bicubic_BTCYX = bicubic_upsample(low_BTCHW, self.scale)
                    self._bicubic[number] = self._scores("val_bicubic", number, bicubic_BTCYX, real_BTCYX)
                rows += [(number, scores), (number, self._bicubic[number])]
        return _mean_rows(gather_lists(rows))

    def _scores(self, prefix: str, number: int, fake_BTCYX: Tensor, real_BTCYX: Tensor) -> dict[str, float]:
        scores = clip_scores(prefix, fake_BTCYX[0], real_BTCYX[0], self.scale)
        if self.st_lpips is not None:
            scores[f"{prefix}/stlpips"] = self.st_lpips.distance(number, fake_BTCYX[0], real_BTCYX[0])
        return scores

    def discriminator_outputs(self, generator: nn.Module, discriminator: nn.Module) -> list[DiscriminatorOutputs]:
        """Logits and band powers of every window, in order, equal on all ranks."""
        outputs: list[DiscriminatorOutputs] = []
        with evaluating(generator, discriminator):
            for number in self.mine:
                low_BTCHW, real_BTCYX = self._clip(number)
                bicubic_BTCYX = bicubic_upsample(low_BTCHW, self.scale)
                fake_BTCYX = generator(low_BTCHW)
                logits = (discriminator(clip, bicubic_BTCYX).float().cpu() for clip in (real_BTCYX, fake_BTCYX))
                # Rounded like the truth, or the missing rounding would give the generated clip away.
                bands = (band_powers(from_uint8(to_uint8(clip[0]))) for clip in (real_BTCYX, fake_BTCYX))
                outputs.append(DiscriminatorOutputs(number, *logits, *bands))
        return sorted(gather_lists(outputs), key=lambda output: output.number)

    def gradient_norms(
        self, generator: nn.Module, discriminator: nn.Module, logit_gradients: Mapping[int, Tensor], pixel: PixelName
    ) -> list[tuple[int, float, float]]:
        """(Window, squared norm of the adversarial gradient, squared norm of the image gradient), in order.

        At the generator's output, of the terms without their weights, both of the mean over the windows in
        `logit_gradients`, which holds the adversarial loss's gradient by the logits of each. Equal on all ranks.
        """
        found: list[tuple[int, float, float]] = []
        with evaluating(generator, discriminator):
            for number in self.mine:
                if number not in logit_gradients:
                    continue
                low_BTCHW, real_BTCYX = self._clip(number)
                fake_BTCYX = generator(low_BTCHW)
                with torch.enable_grad():
                    fake_BTCYX = fake_BTCYX.detach().requires_grad_()
                    logits = discriminator(fake_BTCYX, bicubic_upsample(low_BTCHW, self.scale))
                    outer = logit_gradients[number].to(logits)
                    (adversarial_BTCYX,) = torch.autograd.grad(logits, fake_BTCYX, outer)
                    image = PIXEL[pixel](fake_BTCYX, real_BTCYX) / len(logit_gradients)
                    (image_BTCYX,) = torch.autograd.grad(image, fake_BTCYX)
                found.append((number, _squared(adversarial_BTCYX), _squared(image_BTCYX)))
        return sorted(gather_lists(found))

    def picture(self, generator: nn.Module, number: int, height_px: int = 288) -> Picture:
        """(Y, X, 3) uint8 RGB, the middle frame: low-resolution and bicubic above, generated and truth below.

        The low-resolution panel is enlarged without smoothing; all panels are enlarged by a whole factor towards
        `height_px`.
        """
        with evaluating(generator):
            low_BTCHW, real_BTCYX = self._clip(number)
            middle = low_BTCHW.shape[1] // 2
            nearest_CYX = low_BTCHW[0, middle].repeat_interleave(self.scale, 1).repeat_interleave(self.scale, 2)
            clips = (bicubic_upsample(low_BTCHW, self.scale), generator(low_BTCHW), real_BTCYX)
            panels_CYX = [nearest_CYX] + [clip[0, middle] for clip in clips]
        return two_by_two([to_uint8(panel).permute(1, 2, 0).cpu().numpy() for panel in panels_CYX], height_px)

    def _clip(self, number: int) -> tuple[Tensor, Tensor]:
        """One window as (low_BTCHW, real_BTCYX) with B = 1, float in [0, 1] on the device."""
        low_BTCHW = self.batch.low_BTCHW[number : number + 1]
        real_BTCYX = self.batch.real_BTCYX[number : number + 1]
        return from_uint8(low_BTCHW.to(self.device)), from_uint8(real_BTCYX.to(self.device))


def clip_scores(prefix: str, fake_TCYX: Tensor, real_TCYX: Tensor, scale: int) -> dict[str, float]:
    """What every validation measures of one clip (float RGB in [0, 1]), rounded to 8 bits first.

    By the protocol `default`, but a window is too short to leave frames out, unlike a published tOF.
    """
    fake_TYXC, real_TYXC = (to_uint8(clip).permute(0, 2, 3, 1).cpu().numpy() for clip in (fake_TCYX, real_TCYX))
    metrics = validation_metrics(len(real_TYXC))
    scores = measure_clip(metrics, PROTOCOLS["default"], scale, fake_TYXC, real_TYXC)
    return {f"{prefix}/{name}": value for name, value in scores.items()}


def _squared(gradient: Tensor) -> float:
    return float(gradient.double().square().sum())


def _mean_rows(rows: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Mean of each metric over windows, summed in window order so that the result is the same for any world."""
    columns: dict[str, list[float]] = {}
    for _, scores in sorted(rows, key=lambda row: row[0]):
        for name, value in scores.items():
            columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items()}
