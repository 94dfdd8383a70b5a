"""The table of metrics: the value of each, how it is shown, which way is better, and that the documents name it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_films import spoilt, truth
from metric_references import (
    blind_warping_error,
    flicker_in_float,
    scikit_fidelity,
    spectral_gap,
    tdiff_in_float,
    tecogan_tof,
)

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.metrics.registry import (
    DEFAULT_METRICS,
    EVALUATED,
    METRICS,
    PROTOCOLS,
    TABLE,
    best_places,
    direction_of,
    find_metric,
    measure_clip,
    parse_metrics,
)
from vsr_dist.training.validation import clip_scores

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"


def mean_of_frames(formula):
    return lambda fake, real: np.mean([formula(*pair) for pair in zip(fake, real, strict=True)])


def scikit(name):
    return mean_of_frames(lambda fake, real: scikit_fidelity(fake, real, False)[name])


# Of each metric of a clip the same from elsewhere, and how near it must be.
REFERENCES = {
    "psnr_y": (scikit("psnr_y"), 1e-6),
    "ssim_y": (scikit("ssim_y"), 1e-6),
    "psnr_rgb": (scikit("psnr_rgb"), 1e-6),
    "ssim_rgb": (scikit("ssim_rgb"), 1e-6),
    "tof": (lambda fake, real: tecogan_tof(fake, real, 0), 1e-6),
    "tdiff": (tdiff_in_float, 1e-9),
    "warp": (blind_warping_error, 1e-3),
    "flicker": (flicker_in_float, 1e-9),
    "high_frequency_gap": (spectral_gap, 1e-4),
}
OF_CLIPS = [metric.name for metric in TABLE if metric.needs in ("fidelity", "frames", "pairs", "flow")]


def clip():
    """(result, truth): a texture that moves below a part that stands still."""
    real = truth(0)
    real[:, :20] = real[0, :20]
    return spoilt(real, 6), real


@pytest.mark.parametrize("name", OF_CLIPS)
def test_a_clip_gets_the_value_of_a_reference(name):
    formula, tolerance = REFERENCES[name]
    # Without a border.
    found = measure_clip([METRICS[name]], PROTOCOLS["paper"], 4, *clip())
    assert found == {name: pytest.approx(float(formula(*clip())), rel=tolerance)}
    assert abs(found[name]) > 1e-4, "the clips are not far enough apart to tell an error"


def test_a_mean_is_over_frames_and_a_pool_is_all_of_them():
    fake, real = clip()
    fake[3:] = real[3:]
    for name, is_mean in (("ssim_rgb", True), ("high_frequency_gap", False)):
        how = [METRICS[name]], PROTOCOLS["paper"], 4
        frames = [measure_clip(*how, fake[t : t + 1], real[t : t + 1])[name] for t in range(len(real))]
        distance = abs(measure_clip(*how, fake, real)[name] - np.mean(frames))
        assert distance < 1e-9 if is_mean else distance > 0.1


def test_sides_of_two_sizes_are_refused():
    fake, real = clip()
    with pytest.raises(BadInputError, match="expected equal shapes"):
        measure_clip([METRICS["tdiff"]], PROTOCOLS["default"], 4, fake[:, 1:], real)


def test_the_documents_name_what_can_be_measured_and_its_direction():
    lines = re.findall(r"^\| ((?:`\w+` )+)\| (\w+) \|", PAGE.read_text(), re.MULTILINE)
    named = {name: better for names, better in lines for name in re.findall(r"\w+", names)}
    assert {name: METRICS[name].better for name in EVALUATED}.items() <= named.items()


def test_the_best_of_values():
    assert best_places([1.0, 3.0, None, 3.0], "higher") == {1, 3}
    assert best_places([1.0, 3.0], "lower") == {0}
    assert best_places([1.0, float("nan"), 2.0], "higher") == {2}
    assert best_places([-0.2, 0.1, None], "near 0") == {1}
    assert best_places([1.0], "higher") == best_places([2.0, 2.0], "higher") == best_places([1.0, 2.0], "-") == set()


def test_values_are_shown_with_unit_and_factor():
    assert (METRICS["psnr_y"].heading, METRICS["psnr_y"].show(27.125, "+")) == ("PSNR-Y dB", "+27.12")
    assert (METRICS["tdiff"].heading, METRICS["tdiff"].show(0.00051)) == ("tdiff x1e4", "5.10")
    assert (METRICS["stlpips"].better, METRICS["vmaf"].better) == ("lower", "higher")
    assert (find_metric("unheard_of").heading, find_metric("unheard_of").better) == ("unheard_of", "-")


def test_scalars_of_training_have_their_direction_in_the_table():
    found = {name: direction_of(name) for name in ("val/psnr_y", "val_bicubic/tof", "drift/auc", "perf/step_ms")}
    assert found == {"val/psnr_y": 1, "val_bicubic/tof": -1, "drift/auc": 1, "perf/step_ms": -1}
    assert {direction_of(name) for name in ("val/high_frequency_gap", "d/real", "loss_g/total", "psnr_y")} == {0}


def test_what_validation_measures_is_in_the_table():
    real_TCYX = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for frames in (slice(0, 3), slice(0, 1)):
        names = {
            n.removeprefix("val/") for n in clip_scores("val", real_TCYX.roll(1, -1)[frames], real_TCYX[frames], 4)
        }
        assert names == {*DEFAULT_METRICS, "high_frequency_gap"} - ({"tof", "tdiff"} if frames.stop == 1 else set())


def test_metrics_are_chosen_by_name():
    assert parse_metrics(" tof, psnr_y,tof") == ("psnr_y", "tof")
    with pytest.raises(BadConfigError, match=r"unknown metric 'psnry' \(did you mean 'psnr_y'\?\)"):
        parse_metrics("psnry")
    with pytest.raises(BadConfigError, match="unknown metric 'drift/auc'"):
        parse_metrics("drift/auc")
    assert all(set(preset.metrics) <= set(EVALUATED) for preset in PROTOCOLS.values())
    assert PROTOCOLS["default"].metrics == DEFAULT_METRICS
