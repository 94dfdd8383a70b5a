"""One constructed case per verdict, and the cases between them."""

from __future__ import annotations

import pytest

from vsr_dist.metrics.verdict import MEANING, VERDICTS, verdict, verdict_sentence


def measures(loss=0.5, accuracy=1.0, dead=0.0, gap=0.0, overfit=0.0):
    values = {"normalized_loss": loss, "paired_accuracy": accuracy, "dead_fraction": dead, "probe_gap": gap}
    return {f"drift/{name}": value for name, value in (values | {"overfit": overfit}).items()}


CASES = [
    # What was measured of a conditional patch discriminator with relativistic pairs and gradient penalties.
    (measures(loss=0.49, accuracy=1.0, gap=0.01), "healthy"),
    (measures(loss=0.9, accuracy=0.8, gap=0.3), "healthy"),
    # Spectral norm with binary cross-entropy: alive, above chance, near no confidence.
    (measures(loss=0.95, accuracy=0.92, gap=0.25), "weak"),
    (measures(loss=1.01, accuracy=0.52, gap=0.5), "weak"),
    (measures(loss=0.95, accuracy=0.9, gap=0.1), "weak"),
    # The paper's, doubled in width: loss 1, no gradient; and one that ranks rightly with 95 % dead logits.
    (measures(loss=1.0, accuracy=0.52, dead=1.0, gap=0.5), "dead"),
    (measures(loss=0.75, accuracy=0.96, dead=0.95, gap=0.24), "dead"),
    (measures(loss=1.3, accuracy=0.6, overfit=0.4, gap=0.4), "overfit"),
    (measures(loss=0.1), "too strong"),
    (measures(loss=0.01, dead=0.99), "too strong"),
    (measures(loss=1.0, accuracy=0.5, gap=0.05), "equilibrium"),
]


@pytest.mark.parametrize(("found", "expected"), CASES)
def test_verdict(found, expected):
    assert verdict(found) == expected


def test_every_verdict_is_reached_and_explained():
    assert {name for _, name in CASES} == set(VERDICTS) == set(MEANING)
    assert verdict_sentence("dead").startswith("discriminator dead: most of its logits")


def test_the_codes_stay():
    """They stand in the metrics of runs of the past."""
    assert VERDICTS == ("healthy", "weak", "dead", "overfit", "too strong", "equilibrium")
