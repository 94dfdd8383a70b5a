"""One word for what the drift measures say together: no single one of them can tell.

A discriminator loss at chance is the ideal equilibrium as well as a dead discriminator, and a perfect pair accuracy is
normal in super-resolution. The measures are those of `vsr_dist.metrics.drift`, on held-out clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

VerdictName = Literal["healthy", "weak", "dead", "overfit", "too strong", "equilibrium"]
# `drift/verdict_code` in metrics: the place in this table. New verdicts go to the end.
VERDICTS: tuple[VerdictName, ...] = ("healthy", "weak", "dead", "overfit", "too strong", "equilibrium")

# The levels come from trainings of 400 to 1,500 steps on real video (docs/drift_monitor.md). There the paper's set-up
# stood at a normalised loss of 1.00 and a pair accuracy of 0.52; discriminators that worked had losses of 0.38 to 0.95
# and accuracies of 0.76 to 1.00, with no dead logit; the spectral probe's area under the curve was 1.00 everywhere.
TOO_STRONG_LOSS = 0.2
WEAK_LOSS = 0.9
DEAD_FRACTION = 0.5
CHANCE_ACCURACY = 0.65
PROBE_GAP = 0.2
OVERFIT = 0.15

MEANING: dict[VerdictName, str] = {
    "healthy": "it separates real from fake, without certainty, and the generator learns from it",
    "weak": "its loss is near chance although real and fake can be told apart",
    "dead": "most of its logits no longer move the loss, and the generator gets no gradient",
    "overfit": "it knows the training clips and not the held-out ones",
    "too strong": "it is certain of every held-out clip",
    "equilibrium": "neither it nor the spectra separate real from fake",
}


def verdict(measures: Mapping[str, float]) -> VerdictName:
    """The verdict from `drift/{normalized_loss,paired_accuracy,dead_fraction,probe_gap,overfit}`.

    In this order, so that a case has one name: `too strong` before `dead`, because the logits of one that is certain
    saturate as well; `dead` whatever the accuracy, because a saturated discriminator may rank clips rightly and still
    give the generator nothing; `overfit`; then, at a loss near chance, `equilibrium` where nothing separates the two
    and `weak` else.
    """
    loss = measures["drift/normalized_loss"]
    if loss < TOO_STRONG_LOSS:
        return "too strong"
    if measures["drift/dead_fraction"] > DEAD_FRACTION:
        return "dead"
    if measures["drift/overfit"] > OVERFIT:
        return "overfit"
    if loss <= WEAK_LOSS:
        return "healthy"
    undecided = measures["drift/paired_accuracy"] < CHANCE_ACCURACY and measures["drift/probe_gap"] <= PROBE_GAP
    return "equilibrium" if undecided else "weak"


def verdict_sentence(name: VerdictName) -> str:
    """`discriminator weak: its loss ...`, for a log line or a summary."""
    return f"discriminator {name}: {MEANING[name]}"
