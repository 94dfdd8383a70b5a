"""Every loss against an independent transcription: listing 3, the base code's TVLoss and discriminator loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vsr_dist.core.errors import BadConfigError
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.losses.objective import TERMS, LossConfig, LossInputs, weighted_sum
from vsr_dist.losses.perceptual import perceptual
from vsr_dist.losses.pixel import PIXEL, TV, charbonnier, mse, total_variation
from vsr_dist.losses.temporal import temporal_difference
from vsr_dist.training.config import AdversarialConfig

torch.set_num_threads(1)


class ListedTvLoss(nn.Module):
    """TVLoss of github.com/leftthomas/SRGAN, loss.py, by hand: sums over counts, weight 1."""

    def forward(self, x):
        b, c, h, w = x.size()
        vertical = sum(((x[:, :, i + 1] - x[:, :, i]) ** 2).sum() for i in range(h - 1))
        horizontal = sum(((x[:, :, :, j + 1] - x[:, :, :, j]) ** 2).sum() for j in range(w - 1))
        return 2 * (vertical / (c * (h - 1) * w) + horizontal / (c * h * (w - 1))) / b


class ListedGeneratorLoss(nn.Module):
    """The paper's listing 3, with the network it is given in the place of VGG."""

    def __init__(self, loss_network):
        super().__init__()
        self.loss_network = loss_network
        self.mse_loss = nn.MSELoss()
        self.tv_loss = ListedTvLoss()
        self.temporal_loss = nn.MSELoss()

    def forward(self, out_labels, out_images, target_images, out_images_prev, target_images_prev):
        adversarial_loss = torch.mean(1 - out_labels)
        perception_loss = self.mse_loss(self.loss_network(out_images), self.loss_network(target_images))
        image_loss = self.mse_loss(out_images, target_images)
        tv_loss = self.tv_loss(out_images)
        temporal_consistency_loss = self.temporal_loss(out_images - out_images_prev, target_images - target_images_prev)
        return (
            image_loss
            + 0.001 * adversarial_loss
            + 0.006 * perception_loss
            + 2e-8 * tv_loss
            + 0.1 * temporal_consistency_loss
        )


def _network(seed, num_out, stride):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=stride), nn.ReLU(), nn.Conv2d(8, num_out, 3, padding=1)
    ).double()


@pytest.fixture
def clips():
    torch.manual_seed(0)
    fake = torch.rand(2, 4, 3, 12, 10, dtype=torch.float64, requires_grad=True)
    real = torch.rand(2, 4, 3, 12, 10, dtype=torch.float64)
    return fake, real


def test_total_and_gradient_equal_listing_3(clips):
    fake, real = clips
    features, scorer = _network(1, 5, 2), _network(2, 1, 4)
    out, target = fake[:, 1:].flatten(0, 1), real[:, 1:].flatten(0, 1)
    labels = torch.sigmoid(scorer(out).mean((1, 2, 3)))
    previous = fake[:, :-1].flatten(0, 1), real[:, :-1].flatten(0, 1)
    listed = ListedGeneratorLoss(features)(labels, out, target, *previous)
    (listed_gradient,) = torch.autograd.grad(listed, fake)

    logits = scorer(fake[:, 1:].flatten(0, 1)).mean((1, 2, 3)).view(2, 3)
    config = LossConfig()
    terms = {
        "image": PIXEL[config.pixel](fake[:, 1:], real[:, 1:]),
        "adversarial": ADVERSARIAL["paper"].generator_loss(None, logits),
        "perceptual": perceptual(features(fake[:, 1:].flatten(0, 1)), features(real[:, 1:].flatten(0, 1))),
        "tv": total_variation(fake[:, 1:]),
        "temporal": temporal_difference(fake, real),
    }
    ours = weighted_sum(terms, {**config.weights(), "adversarial": AdversarialConfig().weight})
    (gradient,) = torch.autograd.grad(ours, fake)
    assert abs(ours.item() - listed.item()) < 1e-12
    assert (gradient - listed_gradient).norm() / listed_gradient.norm() < 1e-10


def test_every_term_of_listing_3_by_itself(clips):
    """Value and gradient of each line, with no weight to hide behind."""
    fake, real = clips
    features, scorer = _network(1, 5, 2), _network(2, 1, 4)
    out, target = fake[:, 1:].flatten(0, 1), real[:, 1:].flatten(0, 1)
    out_prev, target_prev = fake[:, :-1].flatten(0, 1), real[:, :-1].flatten(0, 1)
    logits = scorer(out).mean((1, 2, 3))
    mse_loss = nn.MSELoss()
    pairs = {
        "adversarial": (torch.mean(1 - torch.sigmoid(logits)), ADVERSARIAL["paper"].generator_loss(None, logits)),
        "perceptual": (mse_loss(features(out), features(target)), perceptual(features(out), features(target))),
        "image": (mse_loss(out, target), mse(fake[:, 1:], real[:, 1:])),
        "tv": (ListedTvLoss()(out), TV["squared_mean"](fake[:, 1:])),
        "temporal": (mse_loss(out - out_prev, target - target_prev), temporal_difference(fake, real)),
    }
    for name, (listed, ours) in pairs.items():
        expected, found = (torch.autograd.grad(loss, fake, retain_graph=True)[0] for loss in (listed, ours))
        assert abs(listed.item() - ours.item()) < 1e-12, name
        assert (expected - found).abs().max() < 1e-12, name


def test_discriminator_loss_is_the_base_codes():
    """`d_loss = 1 - real_out + fake_out` with `netD(image).mean()`, github.com/leftthomas/SRGAN, train.py."""
    network = _network(3, 1, 4)
    torch.manual_seed(5)
    real_images, fake_images = torch.rand(2, 6, 3, 12, 12, dtype=torch.float64)
    real, fake = (network(images).mean((1, 2, 3)) for images in (real_images, fake_images))
    real_out, fake_out = (1 / (1 + torch.exp(-real))).mean(), (1 / (1 + torch.exp(-fake))).mean()
    listed = 1 - real_out + fake_out
    ours = ADVERSARIAL["paper"].discriminator_loss(real.view(2, 3), fake.view(2, 3))
    assert abs(listed.item() - ours.item()) < 1e-12
    weights = list(network.parameters())
    expected, found = (torch.autograd.grad(loss, weights, retain_graph=True) for loss in (listed, ours))
    assert max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True)) < 1e-12


def test_the_table_computes_what_the_listing_says(clips):
    """Each line of the table on the same clips as the functions that were compared with the listing."""
    fake, real = clips
    features = _network(1, 5, 2)
    fake_features, real_features = features(fake.flatten(0, 1)), features(real.flatten(0, 1))
    inputs = LossInputs(fake, real, 4, fake_features=fake_features, real_features=real_features, features_rescale=0.5)
    expected = {
        "image": mse(fake, real),
        "perceptual": 0.5 * F.mse_loss(fake_features, real_features),
        "tv": total_variation(fake),
        "temporal": temporal_difference(fake, real),
    }
    assert TERMS.keys() == expected.keys() == LossConfig().weights().keys()
    for name, value in expected.items():
        torch.testing.assert_close(TERMS[name].loss(LossConfig(), inputs), value, msg=name)
    assert {name for name, term in TERMS.items() if not term.in_warmup} == {"perceptual"}


def test_config_defaults_are_listing_3():
    assert LossConfig().weights() == {"image": 1.0, "perceptual": 0.006, "tv": 2e-8, "temporal": 0.1}
    assert AdversarialConfig().weight == 0.001


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_config_refuses_weights_that_are_no_weights(weight):
    with pytest.raises(BadConfigError, match="image"):
        LossConfig(image=weight)


def test_pixel_losses_on_known_errors():
    real = torch.zeros(2, 3)
    fake = torch.full((2, 3), 0.5)
    assert mse(fake, real).item() == pytest.approx(0.25)
    assert charbonnier(fake, real, eps=1.2).item() == pytest.approx(1.3)
    assert charbonnier(real, real).item() == pytest.approx(1e-3)


def test_perceptual_gives_no_gradient_to_the_truth():
    fake, real = torch.rand(2, 4, requires_grad=True), torch.rand(2, 4, requires_grad=True)
    loss = perceptual(fake, real)
    loss.backward()
    assert real.grad is None and fake.grad is not None
    assert loss.item() == pytest.approx(F.mse_loss(fake, real).item())


def test_temporal_ignores_standing_errors_and_sees_flicker():
    real = torch.rand(1, 4, 3, 5, 5)
    assert temporal_difference(real + 0.3, real).item() == pytest.approx(0.0, abs=1e-12)
    flicker = torch.tensor([0.1, -0.1, 0.1, -0.1]).view(1, 4, 1, 1, 1)
    assert temporal_difference(real + flicker, real).item() == pytest.approx(0.04, rel=1e-4)
    with pytest.raises(ValueError, match="at least 2 frames"):
        temporal_difference(real[:, :1], real[:, :1])
