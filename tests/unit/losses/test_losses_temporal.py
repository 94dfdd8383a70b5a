"""Temporal losses and total variation against loops and hand values, and the flow that the warped one follows."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from vsr_dist.core.errors import BadInputError
from vsr_dist.losses.perceptual import perceptual
from vsr_dist.losses.pixel import PIXEL, TV, anisotropic_tv, isotropic_tv
from vsr_dist.losses.temporal import (
    enlarge_flow,
    estimate_flow,
    flow_back,
    flow_there_and_back,
    split_there_and_back,
    temporal_difference,
    temporal_ping_pong,
    temporal_warped,
    there_and_back,
    unpack_flow,
)


def smooth_clip(num_frames=4, side=48, step=(2, 1), seed=0):
    """(1, T, 3, side, side) float32: a window that moves by (dx, dy) px per frame over a smooth texture."""
    noise = np.random.default_rng(seed).normal(size=(side + 16, side + 16, 3))
    texture = cv2.GaussianBlur(noise, (0, 0), 2.0)
    texture = (texture - texture.min()) / (texture.max() - texture.min())
    dx, dy = step
    frames = [texture[t * dy : t * dy + side, t * dx : t * dx + side] for t in range(num_frames)]
    return torch.from_numpy(np.stack(frames)).float().permute(0, 3, 1, 2).unsqueeze(0)


def constant_flow(clip, dx, dy):
    batch, frames = clip.shape[0], clip.shape[1] - 1
    return torch.tensor([dx, dy], dtype=clip.dtype).view(1, 1, 2, 1, 1).expand(batch, frames, 2, *clip.shape[-2:])


def sampled(image_CYX, flow_2YX):
    """`image(p + flow(p))` by OpenCV, one channel after the other."""
    height, width = image_CYX.shape[-2:]
    row, column = np.mgrid[0:height, 0:width].astype(np.float32)
    maps = column + flow_2YX[0].numpy(), row + flow_2YX[1].numpy()
    options = {"interpolation": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
    return np.stack([cv2.remap(channel.numpy(), *maps, **options) for channel in image_CYX])


def test_warped_loss_equals_a_loop_over_pairs():
    torch.manual_seed(0)
    fake, real = torch.rand(2, 2, 3, 3, 10, 12)
    flow = torch.randint(-2, 3, (2, 2, 2, 10, 12)).float()
    terms = []
    for b in range(2):
        for t in range(2):
            moved = sampled(real[b, t], flow[b, t])
            mask = np.exp(-50.0 * ((real[b, t + 1].numpy() - moved) ** 2).sum(0))
            terms.append((mask * np.abs(fake[b, t + 1].numpy() - sampled(fake[b, t], flow[b, t]))).mean())
    assert temporal_warped(fake, real, flow).item() == pytest.approx(float(np.mean(terms)), abs=1e-6)


def test_warped_loss_is_zero_along_the_motion_and_sees_flicker():
    real = smooth_clip()
    # The crop leaves out what the warp takes from outside: there the edge is repeated.
    flow = constant_flow(real, 2.0, 1.0)
    inner = temporal_warped(real, real, flow).item()
    assert inner < 5e-3
    flicker = real + torch.tensor([0.1, -0.1, 0.1, -0.1]).view(1, 4, 1, 1, 1)
    assert temporal_warped(flicker, real, flow).item() > 0.15
    assert temporal_warped(real, real, torch.zeros_like(flow)).item() > 2 * inner, "the flow is followed"


def test_what_the_flow_cannot_explain_counts_little():
    """A cut in the real clip: whatever the generator does there, the mask all but silences it."""
    dark, bright = torch.zeros(1, 1, 3, 8, 8), torch.ones(1, 1, 3, 8, 8)
    real = torch.cat((dark, bright), 1)
    assert temporal_warped(real, real, constant_flow(real, 0.0, 0.0)).item() < 1e-30
    still = torch.cat((dark, dark), 1)
    assert temporal_warped(real, still, constant_flow(real, 0.0, 0.0)).item() == pytest.approx(1.0)


def test_warped_gradient_reaches_both_frames_and_not_the_truth():
    real = smooth_clip(2).requires_grad_()
    fake = (smooth_clip(2, seed=1)).requires_grad_()
    flow = constant_flow(real, 2.0, 1.0).clone().requires_grad_()
    temporal_warped(fake, real, flow).backward()
    assert real.grad is None and flow.grad is None
    assert fake.grad[:, 0].any() and fake.grad[:, 1].any()


def test_warped_gradient_by_finite_differences():
    torch.manual_seed(2)
    fake = torch.rand(1, 3, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    real = torch.rand(1, 3, 3, 5, 5, dtype=torch.float64)
    flow = 0.3 + torch.rand(1, 2, 2, 5, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: temporal_warped(x, real, flow), fake)


def test_estimated_flow_leads_back():
    real = smooth_clip(3, 64, (2, 1))
    flow = estimate_flow(real)
    assert flow.shape == (1, 2, 2, 64, 64) and flow.dtype == torch.float32
    inner = flow[..., 8:-8, 8:-8]
    assert inner[:, :, 0].median().item() == pytest.approx(2.0, abs=0.1)
    assert inner[:, :, 1].median().item() == pytest.approx(1.0, abs=0.1)
    assert temporal_warped(real, real, flow).item() < 0.5 * temporal_warped(real, real, torch.zeros_like(flow)).item()


def test_packed_flow_is_enlarged_in_size_and_length_and_its_way_back_is_taken():
    packed = torch.zeros(1, 2, 2, 2, 4, 4, dtype=torch.int16)
    packed[:, :, 0] = 99  # forward, not used
    packed[:, :, 1, 0], packed[:, :, 1, 1] = 32, -16  # 1 px right, half a pixel up
    flow = enlarge_flow(unpack_flow(packed), 4)
    assert flow.shape == (1, 2, 2, 16, 16)
    assert (flow[:, :, 0] == 4.0).all() and (flow[:, :, 1] == -2.0).all()
    real = torch.rand(1, 3, 3, 16, 16)
    assert torch.equal(flow_back("packed", real, unpack_flow(packed), 4), flow)


def test_flow_that_is_missing_or_cannot_be_had_is_said():
    with pytest.raises(ValueError, match=r"data.flow=true"):
        flow_back("packed", torch.rand(1, 2, 3, 16, 16), None, 4)
    with pytest.raises(BadInputError, match="at least 24 px"):
        flow_back("dis", torch.rand(1, 2, 3, 16, 16), None, 4)


def test_there_and_back():
    clip = torch.arange(4.0).view(1, 4, 1, 1, 1)
    whole = there_and_back(clip)
    assert whole.flatten().tolist() == [0, 1, 2, 3, 2, 1, 0]
    there, back = split_there_and_back(whole)
    assert there.flatten().tolist() == [0, 1, 2, 3]
    assert back.flatten().tolist() == [0, 1, 2]
    assert temporal_ping_pong(there, back).item() == 0.0
    assert temporal_ping_pong(there, back + torch.tensor([0.0, 3.0, 0.0]).view(1, 3, 1, 1, 1)).item() == 1.0


def test_the_flow_of_there_and_back_is_the_flow_of_that_clip():
    real = smooth_clip(3, 64, (2, 1))
    forward, backward = -estimate_flow(real), estimate_flow(real)  # steady motion: one is minus the other
    flow = flow_there_and_back(torch.stack((forward, backward), dim=2))
    assert flow.shape == (1, 4, 2, 2, 64, 64)
    whole = there_and_back(real)
    along = temporal_warped(whole, whole, flow[:, :, 1])
    assert along.item() < 0.5 * temporal_warped(whole, whole, flow[:, :, 0]).item()


def test_ping_pong_refuses_clips_that_do_not_belong_together():
    clip = torch.rand(1, 3, 3, 4, 4)
    with pytest.raises(ValueError, match="T - 1 back"):
        temporal_ping_pong(clip, clip)
    with pytest.raises(ValueError, match="at least 2 frames"):
        temporal_ping_pong(clip[:, :1], clip[:, :0])


def test_total_variations_by_hand():
    image = torch.tensor([[0.0, 0.3], [0.4, 0.9]], dtype=torch.float64).view(1, 1, 1, 2, 2)
    # Steps down 0.4 and 0.6, to the right 0.3 and 0.5; the pixel with both neighbours has (0.4, 0.3).
    assert anisotropic_tv(image).item() == pytest.approx(0.5 + 0.4)
    assert isotropic_tv(image).item() == pytest.approx(0.5, abs=1e-3)
    assert TV["squared_mean"](image).item() == pytest.approx(2 * ((0.16 + 0.36) / 2 + (0.09 + 0.25) / 2))


@pytest.mark.parametrize("name", TV)
def test_total_variation_of_a_flat_image_is_zero_with_a_finite_gradient(name):
    flat = torch.full((2, 3, 3, 6, 5), 0.4, requires_grad=True)
    loss = TV[name](flat)
    loss.backward()
    assert loss.item() == 0.0 and not flat.grad.any()


@pytest.mark.parametrize("name", TV)
def test_total_variation_gradient_by_finite_differences(name):
    torch.manual_seed(0)
    image = torch.rand(1, 2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(TV[name], image)


def _terms(fake, real, flow):
    """Every loss of images that training can be given."""
    there, back = split_there_and_back(torch.cat((fake, fake[:, :-1].flip(1) * 0.9), dim=1))
    return {
        **{f"pixel {name}": loss(fake, real) for name, loss in PIXEL.items()},
        **{f"tv {name}": loss(fake) for name, loss in TV.items()},
        "difference": temporal_difference(fake, real),
        "warped": temporal_warped(fake, real, flow),
        "ping_pong": temporal_ping_pong(there, back),
        "perceptual": perceptual(fake, real),
    }


def _values_and_gradients(compute, fake, real, flow):
    fake = fake.detach().requires_grad_()
    terms = compute(fake, real, flow)
    return {
        name: (term.detach(), torch.autograd.grad(term, fake, retain_graph=True)[0]) for name, term in terms.items()
    }


def _close(found, expected, tolerance):
    for name, (value, gradient) in expected.items():
        torch.testing.assert_close(found[name][0].float(), value, atol=1e-6, rtol=tolerance, msg=name)
        error = (found[name][1].float() - gradient).norm() / gradient.norm()
        assert error < tolerance, f"{name}: {error}"


@pytest.fixture
def images():
    real = smooth_clip(3, 24)
    return smooth_clip(3, 24, seed=1), real, constant_flow(real, 1.5, -0.5).clone()


def test_losses_of_frames_in_channels_last(images):
    """As the loader delivers them: rows, columns, channels in memory."""
    plain = _values_and_gradients(_terms, *images)
    last = [image.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for image in images]
    assert last[0].stride()[2] == 1
    _close(_values_and_gradients(_terms, *last), plain, 1e-5)


def test_losses_under_autocast(images):
    """The generator's output is float32 by then (Accelerate), and autocast leaves these operations alone."""
    plain = _values_and_gradients(_terms, *images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _values_and_gradients(_terms, *images)
    assert all(value.dtype == torch.float32 for value, _ in found.values())
    _close(found, plain, 1e-5)


@pytest.mark.slow
def test_losses_compiled(images):
    """Into one graph with its derivatives; training compiles networks only, so no machine code of this is needed."""
    plain = _values_and_gradients(_terms, *images)
    compiled = torch.compile(_terms, backend="aot_eager_decomp_partition")
    _close(_values_and_gradients(compiled, *images), plain, 1e-4)
