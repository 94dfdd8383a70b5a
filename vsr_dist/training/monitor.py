"""The drift monitor: is the discriminator still of use, is it getting worse, and what is wrong with it?

It looks at the fixed held-out windows and, for comparison, at as many training windows; the networks are in evaluation
mode and nothing is changed by it. `docs/drift_monitor.md` explains the measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vsr_dist.core.collectives import from_main
from vsr_dist.losses.adversarial import AdversarialObjective, paper_formula
from vsr_dist.losses.objective import LossConfig
from vsr_dist.metrics.drift import (
    VERDICTS,
    Trend,
    VerdictName,
    auc,
    dead_fraction,
    drift_slope,
    fit_probe,
    gradient_ratio,
    kolmogorov_smirnov,
    normalised_loss,
    paired_accuracy,
    verdict,
)
from vsr_dist.training.gan_step import spread_frames
from vsr_dist.training.metrics_file import read_metrics
from vsr_dist.training.validation import Look, Validator

NORMALISED_LOSS, VERDICT_CODE = "drift/normalized_loss", "drift/verdict_code"
# Every name that an evaluation may hold, for whoever must know before there is one.
MEASURES = frozenset({NORMALISED_LOSS, VERDICT_CODE}) | {
    f"drift/{name}"
    for name in (
        *("paper_loss", "paired_accuracy", "auc", "ks", "dead_fraction", "overfit", "gradient_ratio"),
        *("probe_auc", "probe_gap", "slope", "slope_ci_low", "slope_ci_high"),
    )
}
# The slope looks at every pair of its points: at ten thousand it would take longer than what lies between two of them.
_SLOPE_POINTS = 1000
# The gradient ratio takes a backward pass through the discriminator for each window that it looks at.
_RATIO_WINDOWS = 8


@dataclass(frozen=True)
class DriftMonitor:
    """Measures at an interval. `held_out` and `reference` hold this rank's share of both sets of windows."""

    held_out: Validator
    reference: Validator
    objective: AdversarialObjective
    loss: LossConfig
    metrics_path: Path

    def measure(
        self, generator: nn.Module, discriminator: nn.Module, *, done: int, adversarial_weight: float
    ) -> dict[str, float]:
        """`drift/*` after `done` steps, equal on all ranks; a collective call.

        `adversarial_weight` is the one in force. The gradient ratio is left out where there is no image term.
        """
        held_out = self.held_out.looks(generator, discriminator)
        reference = self.reference.looks(generator, discriminator)
        measures = drift_scores(held_out, self.objective)
        measures |= probe_scores(held_out, reference, measures["drift/auc"])
        measures["drift/overfit"] = _paired(reference) - measures["drift/paired_accuracy"]
        if self.loss.image > 0:
            gradients = generator_logit_gradients(held_out, self.objective)
            pulls = self.held_out.pulls(generator, discriminator, gradients, self.loss.pixel)
            norms = np.sqrt(np.sum([pull[1:] for pull in pulls], axis=0))
            ratio = gradient_ratio(float(norms[0]), self.loss.image * float(norms[1]), adversarial_weight)
            measures["drift/gradient_ratio"] = ratio
        measures |= self._slope(done, measures[NORMALISED_LOSS])
        measures[VERDICT_CODE] = float(VERDICTS.index(verdict(measures)))
        return measures

    def dead_fraction(self, generator: nn.Module, discriminator: nn.Module) -> float:
        """`drift/dead_fraction` alone, for the controller that decides on it; a collective call."""
        return drift_scores(self.held_out.looks(generator, discriminator), self.objective)["drift/dead_fraction"]

    def _slope(self, done: int, normalised: float) -> dict[str, float]:
        """Trend up to now from the run's own file, which only rank 0 holds; nothing while it has too few points."""
        lines = read_metrics(self.metrics_path, holding=NORMALISED_LOSS)
        history = [point for point in loss_history(lines) if point[0] < done]
        return from_main(slope_scores([*history, (done, normalised)]))


def loss_history(lines: Iterable[Mapping[str, float]]) -> list[tuple[int, float]]:
    """(Step, normalised loss) of each evaluation since the discriminator began to play, from `metrics.jsonl`."""
    return [(int(line["step"]), line[NORMALISED_LOSS]) for line in lines if NORMALISED_LOSS in line]


def slope_scores(history: Sequence[tuple[int, float]]) -> dict[str, float]:
    """`drift/slope` per 1000 steps with the ends of its 95 % interval; nothing below three points in the late half."""
    trend = trend_of(history)
    if trend is None:
        return {}
    return {"drift/slope": trend.slope, "drift/slope_ci_low": trend.low, "drift/slope_ci_high": trend.high}


def trend_of(history: Sequence[tuple[int, float]]) -> Trend | None:
    """`drift_slope` of every point, or of every second, third and so on: at most 1000, the newest among them."""
    seen = history[:: -max(1, -(-len(history) // _SLOPE_POINTS))][::-1]
    return drift_slope([step for step, _ in seen], [value for _, value in seen])


def drift_scores(looks: Sequence[Look], objective: AdversarialObjective) -> dict[str, float]:
    """The measures of one set of windows that need its logits only."""
    with torch.enable_grad():
        real = torch.cat([look.real_logits for look in looks]).requires_grad_()
        fake = torch.cat([look.fake_logits for look in looks]).requires_grad_()
        loss = objective.discriminator_loss(real, fake)
        gradients = torch.autograd.grad(loss, [real, fake])
    real_means, fake_means = _means(real), _means(fake)
    return {
        NORMALISED_LOSS: normalised_loss(float(loss.detach()), objective.chance),
        "drift/paper_loss": float(paper_formula(objective, real.detach(), fake.detach())),
        "drift/paired_accuracy": paired_accuracy(real_means, fake_means),
        "drift/auc": auc(real_means, fake_means),
        "drift/ks": kolmogorov_smirnov(real_means, fake_means),
        "drift/dead_fraction": float(np.mean([dead_fraction(gradient.numpy()) for gradient in gradients])),
    }


def probe_scores(held_out: Sequence[Look], reference: Sequence[Look], discriminator_auc: float) -> dict[str, float]:
    """What spectra alone tell: a probe fitted on the training windows, and its lead over the discriminator."""
    real, fake = (np.stack([look.real_bands for look in reference]), np.stack([look.fake_bands for look in reference]))
    probe = fit_probe(real, fake)
    real, fake = (np.stack([look.real_bands for look in held_out]), np.stack([look.fake_bands for look in held_out]))
    probe_auc = auc(probe.scores(real), probe.scores(fake))
    return {
        "drift/probe_auc": probe_auc,
        "drift/probe_gap": probe_auc - discriminator_auc,
    }


def generator_logit_gradients(looks: Sequence[Look], objective: AdversarialObjective) -> dict[int, Tensor]:
    """The gradient of the generator's adversarial loss by the fake logits, by window, for a few spread windows."""
    chosen = [looks[place] for place in spread_frames(len(looks), _RATIO_WINDOWS)]
    with torch.enable_grad():
        fake = torch.cat([look.fake_logits for look in chosen]).requires_grad_()
        loss = objective.generator_loss(torch.cat([look.real_logits for look in chosen]), fake)
        (gradient,) = torch.autograd.grad(loss, fake)
    return {look.number: part for look, part in zip(chosen, torch.split(gradient, 1), strict=True)}


def verdict_of(measures: Mapping[str, float]) -> VerdictName | None:
    """The verdict in a line of metrics, or None if the discriminator was not measured there."""
    return VERDICTS[int(measures[VERDICT_CODE])] if VERDICT_CODE in measures else None


def _means(logits: Tensor) -> np.ndarray:
    means: np.ndarray = logits.detach().flatten(1).mean(1).double().numpy()
    return means


def _paired(looks: Sequence[Look]) -> float:
    real, fake = (torch.cat([getattr(look, name) for look in looks]) for name in ("real_logits", "fake_logits"))
    return paired_accuracy(_means(real), _means(fake))
