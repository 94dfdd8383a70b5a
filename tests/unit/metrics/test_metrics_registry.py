"""The table of metrics: how values are shown, which way is better, and that everything validation writes is in it."""

from __future__ import annotations

import pytest
import torch

from vsr_dist.core.errors import BadConfigError
from vsr_dist.metrics.registry import DEFAULT_METRICS, METRICS, PROTOCOLS, best_places, find_metric, parse_metrics
from vsr_dist.training.validation import clip_scores


def test_the_best_of_values():
    assert best_places([1.0, 3.0, None, 3.0], +1) == {1, 3}
    assert best_places([1.0, 3.0], -1) == {0}
    assert best_places([1.0, float("nan"), 2.0], +1) == {2}
    assert best_places([1.0], +1) == best_places([2.0, 2.0], +1) == best_places([1.0, 2.0], 0) == set()


def test_values_are_shown_with_unit_and_factor():
    assert (METRICS["psnr_y"].heading, METRICS["psnr_y"].show(27.125, "+")) == ("PSNR-Y dB", "+27.12")
    assert (METRICS["tdiff"].heading, METRICS["tdiff"].show(0.00051)) == ("tdiff x1e4", "5.10")
    assert (METRICS["stlpips"].better, METRICS["vmaf"].better) == ("lower", "higher")
    assert (find_metric("unheard_of").heading, find_metric("unheard_of").better) == ("unheard_of", "-")


def test_what_validation_measures_is_in_the_table():
    real_TCYX = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    names = {name.removeprefix("val/") for name in clip_scores("val", real_TCYX.roll(1, -1), real_TCYX, 4)}
    # Signed, best at 0: no direction.
    assert names - {"high_frequency_gap"} <= METRICS.keys()


def test_metrics_are_chosen_by_name():
    assert parse_metrics(" tof, psnr_y,tof") == ("psnr_y", "tof")
    with pytest.raises(BadConfigError, match=r"unknown metric 'psnry' \(did you mean 'psnr_y'\?\)"):
        parse_metrics("psnry")
    assert all(set(preset.metrics) <= METRICS.keys() for preset in PROTOCOLS.values())
    assert PROTOCOLS["default"].metrics == DEFAULT_METRICS
