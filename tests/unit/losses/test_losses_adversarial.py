"""Adversarial objectives and gradient penalties against closed forms and PyTorch's own losses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vsr_dist.losses.adversarial import ADVERSARIAL, paper_formula
from vsr_dist.losses.penalties import finite_difference_penalty, gradient_penalty

torch.set_num_threads(1)


def _logits(seed):
    return torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# The constant logits of a discriminator that knows nothing, where its loss is smallest.
UNDECIDED = {"paper": 0.0, "bce": 0.0, "lsgan": 0.5, "hinge": 0.0, "ragan": 0.0, "rpgan": 0.0}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_chance_is_the_least_loss_of_an_ignorant_discriminator(name):
    objective = ADVERSARIAL[name]
    constants = torch.linspace(-3, 3, 601, dtype=torch.float64)
    losses = torch.stack([objective.discriminator_loss(c.view(1, 1), c.view(1, 1)) for c in constants])
    assert losses.min().item() == pytest.approx(objective.chance, abs=1e-4)
    undecided = torch.full((2, 3), UNDECIDED[name], dtype=torch.float64)
    assert objective.discriminator_loss(undecided, undecided).item() == pytest.approx(objective.chance)
    assert objective.name == name


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_separation_brings_the_discriminator_to_zero_and_both_players_pull_apart(name):
    objective = ADVERSARIAL[name]
    high, low = (1.0, 0.0) if name == "lsgan" else (30.0, -30.0)
    real, fake = torch.full((2, 3), high), torch.full((2, 3), low)
    assert objective.discriminator_loss(real, fake).item() == pytest.approx(0.0, abs=1e-6)
    fake = torch.zeros(2, 3, requires_grad=True)
    real = torch.zeros(2, 3)
    (down,) = torch.autograd.grad(objective.generator_loss(real, fake), fake)
    assert (down < 0).all(), "the generator wants its logits to rise"
    if name != "lsgan":
        (up,) = torch.autograd.grad(objective.discriminator_loss(real, fake), fake)
        assert (up > 0).all(), "the discriminator wants them to fall"


def test_values_against_independent_forms():
    real, fake = _logits(0), _logits(1)
    d_real, d_fake = torch.sigmoid(real), torch.sigmoid(fake)
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    bce = F.binary_cross_entropy
    expected = {
        "paper": (1 - d_real.mean() + d_fake.mean(), 1 - d_fake.mean()),
        "bce": (bce(d_real, ones) + bce(d_fake, zeros), bce(d_fake, ones)),
        "lsgan": (F.mse_loss(real, ones) + F.mse_loss(fake, zeros), F.mse_loss(fake, ones)),
        "hinge": (
            torch.clamp_min(1 - real, 0).mean() + torch.clamp_min(1 + fake, 0).mean(),
            -fake.mean(),
        ),
        "ragan": (
            bce(torch.sigmoid(real - fake.mean()), ones) + bce(torch.sigmoid(fake - real.mean()), zeros),
            bce(torch.sigmoid(real - fake.mean()), zeros) + bce(torch.sigmoid(fake - real.mean()), ones),
        ),
        "rpgan": (-F.logsigmoid(real - fake).mean(), -F.logsigmoid(fake - real).mean()),
    }
    for name, objective in ADVERSARIAL.items():
        torch.testing.assert_close(objective.discriminator_loss(real, fake), expected[name][0])
        torch.testing.assert_close(objective.generator_loss(real, fake), expected[name][1])


def test_only_relativistic_objectives_read_the_real_logits_in_the_generator():
    for name, objective in ADVERSARIAL.items():
        assert objective.uses_real_in_generator == (name in ("ragan", "rpgan"))
        if not objective.uses_real_in_generator:
            assert math.isfinite(objective.generator_loss(None, _logits(0)).item())
    for name in ("ragan", "rpgan"):
        with pytest.raises(ValueError, match="real logits"):
            ADVERSARIAL[name].generator_loss(None, _logits(0))
    with pytest.raises(ValueError, match="equal shapes"):
        ADVERSARIAL["rpgan"].discriminator_loss(_logits(0), _logits(0)[:, :1])


def test_the_papers_gradient_dies_on_one_side_and_the_others_live():
    """The saturation behind the drift to 1.0: both classes far on one side."""
    gradients = {}
    for name in ("paper", "bce", "rpgan"):
        fake = torch.full((4,), 16.0, dtype=torch.float64, requires_grad=True)
        loss = ADVERSARIAL[name].discriminator_loss(torch.full((4,), 16.0, dtype=torch.float64), fake)
        (gradient,) = torch.autograd.grad(loss, fake)
        gradients[name] = gradient.abs().sum().item()
    assert gradients["paper"] < 1e-6
    assert gradients["bce"] > 0.99
    assert gradients["rpgan"] == pytest.approx(0.5)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_half_precision_logits_are_computed_in_float32(name):
    loss = ADVERSARIAL[name].discriminator_loss(_logits(0).bfloat16(), _logits(1).bfloat16())
    assert loss.dtype == torch.float32


def test_penalty_of_a_linear_discriminator_is_its_squared_weight():
    weight = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(7, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    logits = (inputs * weight).flatten(1).sum(1)
    penalty = gradient_penalty(logits, inputs, gamma=3.0)
    torch.testing.assert_close(penalty, 1.5 * weight.pow(2).sum())
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, 3.0 * weight.detach())


def test_penalty_is_per_sample_and_divided_by_patches():
    inputs = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    logits = inputs.pow(2).view(2, 3, 2)  # dD/dx = 2 x for each of 6 patches
    expected = 0.5 * (4 * inputs.detach().pow(2)).sum(1).mean() / 6
    torch.testing.assert_close(gradient_penalty(logits, inputs, gamma=1.0), expected)


def test_penalty_needs_inputs_with_a_gradient():
    inputs = torch.randn(2, 3)
    with pytest.raises(ValueError, match="requires_grad"):
        gradient_penalty(inputs.sum(1), inputs, gamma=1.0)


def test_finite_difference_of_a_linear_discriminator_is_its_slope_along_the_noise():
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    inputs, noise = torch.randn(2, 5, 6, dtype=torch.float64)
    sigma = 0.1
    plus, minus = (inputs + sigma * noise) @ weight, (inputs - sigma * noise) @ weight
    penalty = finite_difference_penalty(plus, minus, sigma, gamma=3.0)
    torch.testing.assert_close(penalty, 1.5 * (noise @ weight).pow(2).mean())
    (gradient,) = torch.autograd.grad(penalty, weight)
    expected = 3.0 * ((noise @ weight.detach()).unsqueeze(1) * noise).mean(0)
    torch.testing.assert_close(gradient, expected)


def test_finite_difference_is_the_exact_penalty_on_average():
    """Value and gradient, for a curved discriminator with several logits per sample."""
    torch.manual_seed(0)
    weight = (0.3 * torch.randn(8, 4, dtype=torch.float64)).requires_grad_()
    inputs = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def logits(x):
        return torch.tanh(x @ weight) + (x @ weight).pow(2)

    exact = gradient_penalty(logits(inputs), inputs, gamma=2.0)
    (expected,) = torch.autograd.grad(exact, weight)
    many, sigma = inputs.detach().repeat(20_000, 1), 1e-3
    noise = sigma * torch.randn(many.shape, dtype=torch.float64)
    penalty = finite_difference_penalty(logits(many + noise), logits(many - noise), sigma, gamma=2.0)
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert penalty.item() == pytest.approx(exact.item(), rel=0.03)
    assert (gradient - expected).norm() / expected.norm() < 0.03


def test_finite_difference_does_not_punish_the_same_answer_to_all_noise():
    """A logit that rises by the noise's energy alone has no slope at 0."""
    noise = torch.randn(4, 50, dtype=torch.float64)
    energy = noise.pow(2).sum(1)
    assert finite_difference_penalty(energy, energy.clone(), 1.0, gamma=1.0).item() == 0.0


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_papers_formula_of_any_objective_is_one_at_chance_and_zero_for_perfect_separation(name):
    objective = ADVERSARIAL[name]
    same = torch.full((4, 2), UNDECIDED[name] + 0.7)
    assert paper_formula(objective, same, same).item() == pytest.approx(1.0, abs=1e-6)
    assert paper_formula(objective, same + 40.0, same - 40.0).item() == pytest.approx(0.0, abs=1e-6)


def test_the_papers_formula_by_hand():
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [-1.0]])
    p = [1 / (1 + math.exp(-z)) for z in (1.0, 3.0, 0.0, -1.0)]
    literal = 1 - (p[0] + p[1]) / 2 + (p[2] + p[3]) / 2
    for name in ("paper", "bce", "hinge", "lsgan"):
        assert paper_formula(ADVERSARIAL[name], real, fake).item() == pytest.approx(literal, rel=1e-6)
    # Pairs differ by 1 and 4.
    pairs = [1 / (1 + math.exp(-z)) for z in (1.0, 4.0)]
    assert paper_formula(ADVERSARIAL["rpgan"], real, fake).item() == pytest.approx(2 * (1 - sum(pairs) / 2), rel=1e-6)
    # Less the other kind's mean: 1.5 and 3.5; -2 and -3. A common offset of the logits changes nothing.
    q = [1 / (1 + math.exp(-z)) for z in (1.5, 3.5, -2.0, -3.0)]
    average = 1 - (q[0] + q[1]) / 2 + (q[2] + q[3]) / 2
    for offset in (0.0, 17.0):
        found = paper_formula(ADVERSARIAL["ragan"], real + offset, fake + offset)
        assert found.item() == pytest.approx(average, rel=1e-5)
