"""The drift monitor: does the discriminator still separate real from generated clips, and is it getting worse?

It measures on the fixed held-out windows and, for comparison, on as many training windows, with the networks in
evaluation mode; it changes nothing. `docs/drift_monitor.md` explains the measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vsr_dist.losses.adversarial import AdversarialObjective, paper_formula
from vsr_dist.losses.objective import LossConfig
from vsr_dist.metrics.drift import (
    DEAD_FRACTION,
    DEAD_GRADIENT,
    OVERFIT,
    PROBE_GAP,
    TOO_STRONG_LOSS,
    VERDICTS,
    WEAK_LOSS,
    Trend,
    VerdictName,
    auc,
    dead_fraction,
    drift_slope,
    fit_probe,
    gradient_ratio,
    normalised_loss,
    paired_accuracy,
    verdict,
)
from vsr_dist.metrics.registry import TABLE
from vsr_dist.training.gan_step import spread_frames
from vsr_dist.training.validation import DiscriminatorOutputs, Validator

NORMALISED_LOSS, VERDICT_CODE = "drift/normalized_loss", "drift/verdict_code"
# The slope looks at every pair of its points: at ten thousand it would take longer than what lies between two of them.
_SLOPE_POINTS = 1000
# The gradient ratio takes a backward pass through the discriminator for each window that it looks at.
_RATIO_WINDOWS = 8


@dataclass
class DriftMonitor:
    """Measures at an interval. `held_out` and `reference` hold this rank's share of both sets of windows.

    history: (step, normalised loss) of each evaluation so far, which checkpoints hold.
    """

    held_out: Validator
    reference: Validator
    objective: AdversarialObjective
    loss: LossConfig
    history: list[tuple[int, float]] = field(default_factory=list)

    def measure(
        self, generator: nn.Module, discriminator: nn.Module, *, done: int, adversarial_weight: float
    ) -> dict[str, float]:
        """`drift/*` after `done` steps, equal on all ranks; a collective call.

        `adversarial_weight` is the one in force. The gradient ratio is left out where there is no image term.
        """
        held_out = self.held_out.discriminator_outputs(generator, discriminator)
        reference = self.reference.discriminator_outputs(generator, discriminator)
        measures = drift_scores(held_out, self.objective)
        measures |= probe_scores(held_out, reference, measures["drift/auc"])
        measures["drift/overfit"] = _paired(reference) - measures["drift/paired_accuracy"]
        if self.loss.image > 0:
            gradients = generator_logit_gradients(held_out, self.objective)
            squared = self.held_out.gradient_norms(generator, discriminator, gradients, self.loss.pixel)
            norms = np.sqrt(np.sum([row[1:] for row in squared], axis=0))
            ratio = gradient_ratio(float(norms[0]), self.loss.image * float(norms[1]), adversarial_weight)
            measures["drift/gradient_ratio"] = ratio
        # An evaluation that a resumed or rolled-back run repeats takes the place of the first.
        self.history = [point for point in self.history if point[0] < done] + [(done, measures[NORMALISED_LOSS])]
        measures |= slope_scores(self.history)
        measures[VERDICT_CODE] = float(VERDICTS.index(verdict(measures)))
        return measures


def loss_history(lines: Iterable[Mapping[str, float]]) -> list[tuple[int, float]]:
    """(Step, normalised loss) of each evaluation in the lines of `metrics.jsonl` that has one."""
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


def drift_scores(outputs: Sequence[DiscriminatorOutputs], objective: AdversarialObjective) -> dict[str, float]:
    """The measures of one set of windows that need its logits only."""
    with torch.enable_grad():
        real = torch.cat([output.real_logits for output in outputs]).requires_grad_()
        fake = torch.cat([output.fake_logits for output in outputs]).requires_grad_()
        loss = objective.discriminator_loss(real, fake)
        gradients = torch.autograd.grad(loss, [real, fake])
    real_means, fake_means = _means(real), _means(fake)
    return {
        NORMALISED_LOSS: normalised_loss(float(loss.detach()), objective.chance),
        "drift/paper_loss": float(paper_formula(objective, real.detach(), fake.detach())),
        "drift/dead_fraction": float(np.mean([dead_fraction(gradient.numpy()) for gradient in gradients])),
    } | {metric.name: metric.function(real_means, fake_means) for metric in TABLE if metric.needs == "logits"}


def probe_scores(
    held_out: Sequence[DiscriminatorOutputs], reference: Sequence[DiscriminatorOutputs], discriminator_auc: float
) -> dict[str, float]:
    """What spectra alone tell: a probe fitted on the training windows, and its lead over the discriminator."""
    probe = fit_probe(*_bands(reference))
    real, fake = _bands(held_out)
    probe_auc = auc(probe.scores(real), probe.scores(fake))
    return {"drift/probe_auc": probe_auc, "drift/probe_gap": probe_auc - discriminator_auc}


def generator_logit_gradients(
    outputs: Sequence[DiscriminatorOutputs], objective: AdversarialObjective
) -> dict[int, Tensor]:
    """The gradient of the generator's adversarial loss by the fake logits, by window, for a few spread windows."""
    chosen = [outputs[place] for place in spread_frames(len(outputs), _RATIO_WINDOWS)]
    with torch.enable_grad():
        fake = torch.cat([output.fake_logits for output in chosen]).requires_grad_()
        loss = objective.generator_loss(torch.cat([output.real_logits for output in chosen]), fake)
        (gradient,) = torch.autograd.grad(loss, fake)
    return {output.number: part for output, part in zip(chosen, torch.split(gradient, 1), strict=True)}


def verdict_of(measures: Mapping[str, float]) -> VerdictName | None:
    """The verdict in a line of metrics, or None if the discriminator was not measured there."""
    return VERDICTS[int(measures[VERDICT_CODE])] if VERDICT_CODE in measures else None


def _means(logits: Tensor) -> np.ndarray:
    means: np.ndarray = logits.detach().flatten(1).mean(1).double().numpy()
    return means


def _paired(outputs: Sequence[DiscriminatorOutputs]) -> float:
    real, fake = (torch.cat([getattr(output, name) for output in outputs]) for name in ("real_logits", "fake_logits"))
    return paired_accuracy(_means(real), _means(fake))


def _bands(outputs: Sequence[DiscriminatorOutputs]) -> tuple[np.ndarray, np.ndarray]:
    """Band powers of the real and of the generated clips, (N, bands) each."""
    return np.stack([output.real_bands for output in outputs]), np.stack([output.fake_bands for output in outputs])


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_NAME = "drift.png"
Lines = Sequence[Mapping[str, Any]]


def write_drift_plot(lines: Lines, path: Path) -> bool:
    """Draw the lines of a `metrics.jsonl`; returns False, with nothing written, if D was never measured."""
    if not loss_history(lines):
        return False
    drift_figure(lines).savefig(path, dpi=110)
    return True


def drift_figure(lines: Lines) -> Figure:
    """Three panels over the steps: normalised loss with its trend, what D tells apart, gradients and controllers."""
    # A second of import that only the end of a run need pay.
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8.0, 8.5), layout="constrained")
    level, accuracy, gradients = figure.subplots(3, 1, sharex=True)
    _draw_level(level, lines)
    for name, label in (("paired_accuracy", "paired accuracy"), ("auc", "AUC"), ("probe_auc", "AUC of the spectra")):
        _draw(accuracy, lines, f"drift/{name}", label)
    _draw(accuracy, lines, "drift/overfit", f"overfit (limit {OVERFIT})", linestyle="--")
    accuracy.axhline(0.5, color="0.6", linewidth=0.8)
    accuracy.set_ylabel(f"discriminator (probe gap limit {PROBE_GAP})")
    _draw(gradients, lines, "drift/gradient_ratio", "gradient, adversarial / image")
    _draw(gradients, lines, "drift/dead_fraction", f"dead logits (limit {DEAD_FRACTION})")
    for name in sorted({key for line in lines for key in line if key.startswith("control/")}):
        _draw(gradients, lines, name, name, linestyle=":")
    gradients.set_yscale("symlog", linthresh=DEAD_GRADIENT)
    gradients.set_ylabel("gradients, controllers")
    gradients.set_xlabel("step")
    for axes in (level, accuracy, gradients):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def _draw_level(axes: Axes, lines: Lines) -> None:
    history = loss_history(lines)
    steps, values = np.array(history, dtype=np.float64).T
    axes.plot(steps, values, marker=".", label="D loss / chance, held out")
    axes.axhspan(TOO_STRONG_LOSS, WEAK_LOSS, color="tab:green", alpha=0.08)
    axes.axhline(1.0, color="0.6", linewidth=0.8)
    trend = trend_of(history)
    if trend is not None:
        late = steps >= (steps[0] + steps[-1]) / 2.0
        middle = np.median(steps[late]), np.median(values[late])
        line = middle[1] + trend.slope * (steps[late] - middle[0]) / 1000.0
        text = f"{trend.slope:+.3f} per 1000 steps ({trend.low:+.3f} to {trend.high:+.3f})"
        axes.plot(steps[late], line, color="tab:red", label=text)
    last = [name for line in lines if (name := verdict_of(line)) is not None]
    axes.set_title(f"discriminator: {last[-1] if last else 'not measured'}")
    axes.set_ylabel(NORMALISED_LOSS)


def _draw(axes: Axes, lines: Lines, name: str, label: str, linestyle: str = "-") -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, linestyle=linestyle, label=label)
