"""What every discriminator and every objective promises. A new one adds a row here."""

from __future__ import annotations

import pytest
import torch

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.losses.regularise import gradient_penalty
from vsr_dist.models import DISCRIMINATORS, build_discriminator
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig
from vsr_dist.models.srgan_discriminator import SrganDiscriminatorConfig

torch.set_num_threads(1)

# Small configurations: one row per variant that runs other code.
DISCRIMINATOR_ROWS = {
    "srgan": SrganDiscriminatorConfig(filters=4),
    "srgan_none": SrganDiscriminatorConfig(filters=4, norm="none", dropout=0.2),
    "srgan_group": SrganDiscriminatorConfig(filters=4, norm="group"),
    "srgan_spectral": SrganDiscriminatorConfig(filters=4, norm="spectral"),
    "spatiotemporal": SpatiotemporalConfig(filters=4),
    "spatiotemporal_group": SpatiotemporalConfig(filters=6, levels=2, norm="group", dropout=0.2),
    "spatiotemporal_spectral": SpatiotemporalConfig(filters=4, levels=1, norm="spectral"),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _discriminator(row):
    return build_discriminator(DISCRIMINATOR_ROWS[row], 4)


def _clip_pair():
    bicubic = torch.rand(2, 4, 3, 32, 32)
    return (bicubic + 0.05 * torch.randn_like(bicubic)).clamp(0, 1), bicubic


def test_every_kind_has_a_row_and_default_configurations_name_themselves():
    assert {row.kind for row in DISCRIMINATOR_ROWS.values()} == set(DISCRIMINATORS)
    for kind, entry in DISCRIMINATORS.items():
        assert entry.config_type().kind == kind


@pytest.mark.parametrize(
    ("config", "expected"), [(SrganDiscriminatorConfig(), 5_215_425), (SpatiotemporalConfig(), 244_633)]
)
def test_number_of_parameters(config, expected):
    with torch.device("meta"):
        discriminator = build_discriminator(config, 4)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == expected


@pytest.mark.parametrize("row", DISCRIMINATOR_ROWS)
def test_discriminator_shape(row):
    discriminator = _discriminator(row)
    clip, bicubic = _clip_pair()
    logits = discriminator(clip, bicubic)
    config = DISCRIMINATOR_ROWS[row]
    if config.kind == "srgan":
        assert logits.shape == (2, 4)
    else:
        side = 32 // 2**config.levels
        assert logits.shape == (2, 2, side, side)
    assert logits.dtype == torch.float32 and logits.isfinite().all()


@pytest.mark.parametrize("row", DISCRIMINATOR_ROWS)
def test_discriminator_gradient_reaches_every_parameter_and_the_clip(row):
    discriminator = _discriminator(row)
    clip, bicubic = _clip_pair()
    clip.requires_grad_()
    discriminator(clip, bicubic).sigmoid().pow(2).mean().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert name.endswith("bias") or parameter.grad.any(), name
    assert clip.grad is not None and clip.grad.any()


@pytest.mark.parametrize("row", DISCRIMINATOR_ROWS)
def test_discriminator_allows_the_exact_gradient_penalty(row):
    discriminator = _discriminator(row)
    clip, bicubic = _clip_pair()
    clip.requires_grad_()
    logits = discriminator(clip, bicubic)
    (logits.mean() + gradient_penalty(logits, clip, 1.0)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in discriminator.parameters())


@pytest.mark.parametrize("row", DISCRIMINATOR_ROWS)
def test_discriminator_under_bfloat16_autocast(row):
    discriminator = _discriminator(row).eval()
    clip, bicubic = _clip_pair()
    with torch.no_grad():
        discriminator(clip, bicubic)
        exact = discriminator(clip, bicubic)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = discriminator(clip, bicubic)
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=0.1)


def test_spatiotemporal_groups_are_overlapping_triplets_of_residual_and_condition():
    discriminator = _discriminator("spatiotemporal").eval()
    clip, bicubic = _clip_pair()
    whole = discriminator(clip, bicubic)
    for start in range(2):
        part = discriminator(clip[:, start : start + 3], bicubic[:, start : start + 3])
        torch.testing.assert_close(whole[:, start : start + 1], part, atol=1e-5, rtol=0)
    swapped = discriminator(clip[:, [1, 0, 2, 3]], bicubic[:, [1, 0, 2, 3]])
    assert (swapped - whole).abs().max() > 1e-4, "the order of frames is seen"
    assert (discriminator(clip, bicubic.flip(-1)) - whole).abs().max() > 1e-4, "the condition is seen"


def test_dropout_acts_in_training_only():
    discriminator = _discriminator("srgan_none")
    clip, bicubic = _clip_pair()
    assert (discriminator(clip, bicubic) - discriminator(clip, bicubic)).abs().max() > 0
    discriminator.eval()
    assert torch.equal(discriminator(clip, bicubic), discriminator(clip, bicubic))


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("row", ["srgan", "spatiotemporal"])
def test_every_objective_trains_both_players_of_every_discriminator(name, row):
    objective, discriminator = ADVERSARIAL[name], _discriminator(row)
    real, bicubic = _clip_pair()
    fake = (bicubic + 0.01).requires_grad_()
    real_logits, fake_logits = discriminator(real, bicubic), discriminator(fake, bicubic)
    loss_d = objective.discriminator_loss(real_logits, fake_logits)
    loss_g = objective.generator_loss(real_logits.detach(), fake_logits)
    assert loss_d.shape == loss_g.shape == ()
    (gradient,) = torch.autograd.grad(loss_g, fake, retain_graph=True)
    assert gradient.isfinite().all() and gradient.any()
    gradients = torch.autograd.grad(loss_d, list(discriminator.parameters()))
    assert all(value.isfinite().all() for value in gradients)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SrganDiscriminatorConfig(dropout=1.0), BadConfigError, "dropout"),
        (lambda: SpatiotemporalConfig(levels=9), BadConfigError, "levels"),
        (lambda: _discriminator("spatiotemporal")(*torch.rand(2, 1, 2, 3, 32, 32)), BadInputError, "3 frames"),
        (lambda: _discriminator("spatiotemporal")(*torch.rand(2, 1, 3, 3, 4, 4)), BadInputError, "8 pixels"),
        (
            lambda: _discriminator("spatiotemporal")(torch.rand(1, 3, 3, 8, 8), torch.rand(1, 3, 3, 2, 2)),
            BadInputError,
            "same shape",
        ),
    ],
)
def test_mistakes_are_answered(call, error, words):
    with pytest.raises(error, match=words):
        call()
