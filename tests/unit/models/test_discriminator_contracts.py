"""What every discriminator and every objective promises. A new one adds a row here."""

from __future__ import annotations

import pytest
import torch

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.losses.penalties import finite_difference_penalty, gradient_penalty
from vsr_dist.models import DISCRIMINATORS, build_discriminator
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig
from vsr_dist.models.srgan_discriminator import SrganDiscriminatorConfig
from vsr_dist.models.unet_discriminator import UnetConfig

torch.set_num_threads(1)

# Small configurations: one row per variant that runs other code.
DISCRIMINATOR_ROWS = {
    "srgan": SrganDiscriminatorConfig(filters=4),
    "srgan_none": SrganDiscriminatorConfig(filters=4, norm="none", dropout=0.2),
    "srgan_group": SrganDiscriminatorConfig(filters=4, norm="group"),
    "srgan_spectral": SrganDiscriminatorConfig(filters=4, norm="spectral"),
    "srgan_deep": SrganDiscriminatorConfig(filters=2, levels=5, norm="none"),
    "srgan_shallow": SrganDiscriminatorConfig(filters=4, levels=1, norm="none"),
    "unet": UnetConfig(filters=4),
    "unet_shallow": UnetConfig(filters=4, levels=1),
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
    ("config", "expected"),
    [
        (SrganDiscriminatorConfig(), 5_215_425),
        (UnetConfig(), 4_376_897),
        (SpatiotemporalConfig(), 244_633),
    ],
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
    elif config.kind == "unet":
        assert logits.shape == (2, 4, 32, 32)
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


def _finite_difference(discriminator, clip, bicubic, sigma=0.03):
    """Logits and penalty from one forward of the clip, and of it plus and minus noise, as a training step has it."""
    noise = sigma * torch.randn_like(clip)
    moved = torch.cat((clip, clip + noise, clip - noise))
    logits, plus, minus = discriminator(moved, torch.cat(3 * (bicubic,))).chunk(3)
    return logits, finite_difference_penalty(plus, minus, sigma, 1.0)


@pytest.mark.parametrize("row", DISCRIMINATOR_ROWS)
def test_discriminator_allows_the_finite_difference(row):
    discriminator = _discriminator(row)
    clip, bicubic = _clip_pair()
    logits, penalty = _finite_difference(discriminator, clip, bicubic)
    (logits.mean() + penalty).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in discriminator.parameters())


@pytest.mark.parametrize("row", DISCRIMINATOR_ROWS)
def test_full_precision_takes_a_discriminator_out_of_autocast(row):
    discriminator = _discriminator(row).eval()
    clip, bicubic = _clip_pair()
    with torch.no_grad():
        exact = discriminator(clip, bicubic)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            full = discriminator(clip, bicubic, full_precision=True)
            assert discriminator(clip, bicubic).dtype == torch.bfloat16
    assert torch.equal(full, exact)


@pytest.mark.parametrize("row", DISCRIMINATOR_ROWS)
def test_discriminator_in_channels_last(row):
    discriminator = _discriminator(row).eval()
    clip, bicubic = _clip_pair()
    with torch.no_grad():
        discriminator(clip, bicubic)
        expected = discriminator(clip, bicubic)
        discriminator.to(memory_format=torch.channels_last)
        torch.testing.assert_close(discriminator(clip, bicubic), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "backend"),
    # C++ code takes inductor most of a minute of CPU for each; the graphs are what these networks decide.
    [("srgan_none", "aot_eager"), ("unet", "aot_eager"), ("spatiotemporal", "aot_eager_decomp_partition")],
)
def test_discriminator_compiled(row, backend):
    """Logits, and the gradient of loss and finite difference, as without compilation.

    `tests/unit/training/test_training_launch.py` makes machine code of it.
    """
    discriminator = _discriminator(row).eval()
    clip, bicubic = _clip_pair()

    def gradients(network):
        torch.manual_seed(1)
        logits, penalty = _finite_difference(network, clip, bicubic)
        loss = logits.sigmoid().mean() + penalty
        return torch.autograd.grad(loss, list(discriminator.parameters()))

    compiled = torch.compile(discriminator, backend=backend)
    torch.testing.assert_close(compiled(clip, bicubic), discriminator(clip, bicubic), atol=1e-4, rtol=1e-4)
    for found, expected in zip(gradients(compiled), gradients(discriminator), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def _listed_unet(state, images_NCYX):
    """Real-ESRGAN's UNetDiscriminatorSN, line by line, on plain weights."""

    def conv(name, x, stride=1):
        return torch.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride=stride, padding=1)

    def lrelu(x):
        return torch.where(x > 0, x, 0.2 * x)

    def twice(x):
        return torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    x0 = lrelu(conv("first", images_NCYX))
    x1 = lrelu(conv("down.0", x0, 2))
    x2 = lrelu(conv("down.1", x1, 2))
    x3 = lrelu(conv("down.2", x2, 2))
    x4 = lrelu(conv("up.0", twice(x3))) + x2
    x5 = lrelu(conv("up.1", twice(x4))) + x1
    x6 = lrelu(conv("up.2", twice(x5))) + x0
    out = lrelu(conv("head.0", x6))
    out = lrelu(conv("head.2", out))
    return conv("head.4", out)


def test_unet_equals_real_esrgans():
    discriminator = _discriminator("unet").double().eval()
    clip, bicubic = (images.double() for images in _clip_pair())
    normed = dict(discriminator.net.named_modules())
    state = {
        f"{name}.{part}": getattr(module, part).detach()
        for name, module in normed.items()
        for part in ("weight", "bias")
        if isinstance(module, torch.nn.Conv2d) and getattr(module, part) is not None
    }
    listed = _listed_unet(state, clip.flatten(0, 1))
    logits = discriminator(clip, bicubic).detach()
    assert (logits.flatten(0, 1) - listed[:, 0]).abs().max() < 1e-12


def test_unets_spectral_norm_bounds_every_inner_convolution():
    discriminator = _discriminator("unet")
    for _ in range(30):  # each forward in training is one power iteration
        discriminator(*_clip_pair())
    discriminator.eval()
    inner = [module for module in discriminator.modules() if hasattr(module, "parametrizations")]
    assert len(inner) == 8
    for conv in inner:
        largest = torch.linalg.matrix_norm(conv.weight.detach().flatten(1), ord=2)
        assert largest.item() == pytest.approx(1.0, abs=0.05)


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
@pytest.mark.parametrize("row", ["srgan", "unet", "spatiotemporal"])
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
        (lambda: SrganDiscriminatorConfig(levels=7), BadConfigError, "levels 1 to 6"),
        (lambda: UnetConfig(levels=6), BadConfigError, "levels 1 to 5"),
        (lambda: _discriminator("unet")(*torch.rand(2, 1, 2, 3, 32, 36)), BadInputError, "multiples of 8"),
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
