"""`experiments/perceptual_scale.py`: its rule for the factor, and what the configurations took from its result."""

from __future__ import annotations

import json

import pytest
import torch
from benchmark_modules import import_experiment

from vsr_dist.config import load_config

scale = import_experiment("perceptual_scale")
AS_PRINTED = scale.TRUNKS[0]


def measured(images, perceptual, mse, layer=31):
    return scale.Scale(images, layer, False, 24, perceptual, mse, 1.0, 1.0)


def test_the_factor_makes_the_weighted_loss_equal_to_the_mse_of_reconstructions():
    one = measured("bicubic", 4.0, 0.001)
    assert 0.006 * one.rescale * one.perceptual == pytest.approx(one.mse)
    found = [one, measured("shipped generator", 1.0, 0.001), measured("untrained generator", 3.0, 0.07)]
    found.append(measured("bicubic", 100.0, 0.001, layer=30))
    # Geometric mean of 0.001 / (0.006 * 4) and 0.001 / (0.006 * 1).
    assert scale.factor_of(found, AS_PRINTED) == pytest.approx(1 / 12)


def test_loss_and_gradient_norm_at_the_image():
    loss, gradient = scale.loss_and_gradient(lambda x: (3 * x).sum(), torch.ones(4))
    assert loss == 12.0 and gradient == pytest.approx(6.0)


@pytest.mark.parametrize("name", ["base", "lstm", "improved"])
def test_the_configurations_follow_the_committed_measurement(name):
    result = json.loads((scale.ROOT / "experiments/results/perceptual_scale/scales.json").read_text())
    factor = result["rescale"]["layer 31, normalise false"]
    reduced, full = (load_config(scale.ROOT / f"configs/paper/{folder}{name}.yaml") for folder in ("", "full/"))
    assert full.perceptual.rescale == pytest.approx(factor, rel=0.05)
    assert factor / 5**0.5 < reduced.perceptual.rescale < factor
    assert full.loss.perceptual == reduced.loss.perceptual == scale.SRGAN_WEIGHT
    assert 0.01 < result["shares_at_first_step"][name]["gradient_over_image"] < 1
