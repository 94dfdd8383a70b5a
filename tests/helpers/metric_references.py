"""Every metric once more, written from its definition or asked of another package: what ours are held against.

Used by the tests and by benchmarks/metric_parity.py, which writes the table of docs/evaluation.md.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

PSNR_CAP_DB = 100.0


def luma(frame, rounded):
    luma = frame.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16
    return np.rint(luma) if rounded else luma


def scikit_fidelity(fake, real, rounded):
    options = {"data_range": 255.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    lumas = (luma(real, rounded), luma(fake, rounded))
    wide = (real.astype(np.float64), fake.astype(np.float64))
    with np.errstate(divide="ignore"):
        psnr = [min(PSNR_CAP_DB, peak_signal_noise_ratio(*pair, data_range=255.0)) for pair in (lumas, wide)]
    return {
        "psnr_y": psnr[0],
        "ssim_y": structural_similarity(*lumas, **options),
        "psnr_rgb": psnr[1],
        "ssim_rgb": structural_similarity(*wide, channel_axis=-1, **options),
    }


def tdiff_in_float(fake, real):
    return np.mean(np.diff(fake / 255.0 - real / 255.0, axis=0) ** 2)


def flicker_in_float(fake, real):
    """The mean over the pairs of frames; all have static pixels."""
    real_steps, fake_steps = (np.abs(np.diff(luma(clip, False), axis=0)) for clip in (real, fake))
    return np.mean([step[still < 1.0].mean() for step, still in zip(fake_steps, real_steps, strict=True)])


def spectral_gap(fake, real):
    """Log power in eight radial bands from 0.25 to 0.5 cycles per pixel, one band and one clip at a time."""
    window = np.outer(np.hanning(real.shape[1]), np.hanning(real.shape[2]))
    radius = np.hypot(np.fft.fftfreq(real.shape[1])[:, None], np.fft.fftfreq(real.shape[2]))
    powers = []
    for clip in (fake, real):
        lumas = [luma(frame, False) / 255 for frame in clip]
        power = np.mean([np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2 for image in lumas], axis=0)
        bands = [power[(radius >= low / 32) & (radius < (low + 1) / 32)].mean() for low in range(8, 16)]
        powers.append(np.mean(np.log(np.array(bands) / window.size + 1e-10)))
    return powers[0] - powers[1]


def tecogan_tof(fake, real, cut=2):
    """metrics.py of TecoGAN, written out: flow of whole frames, of which the centre is kept."""
    grays = [[cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip] for clip in (fake, real)]
    height, width = real.shape[1:3]
    rows, columns = height // 32 * 32, width // 32 * 32
    while rows > height - 16:
        rows -= 32
    while columns > width - 16:
        columns -= 32
    top, left = (height - rows) // 2, (width - columns) // 2
    lengths = []
    for t in range(cut + 1, len(real) - cut):
        flows = [
            cv2.calcOpticalFlowFarneback(gray[t - 1], gray[t], None, 0.5, 3, 15, 3, 5, 1.2, 0)[
                top : top + rows, left : left + columns
            ]
            for gray in grays
        ]
        difference = np.absolute(flows[1] - flows[0])
        lengths.append(np.sqrt(np.sum(difference * difference, axis=-1)).mean())
    return np.mean(lengths)


def _bilinear(image, x, y):
    """Edge pixels repeated, in float64: a transcription of FlowNet2's Resample2d."""
    height, width = image.shape[:2]
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    part_x, part_y = (x - left)[..., None], (y - top)[..., None]
    columns = [np.clip(left + step, 0, width - 1) for step in (0, 1)]
    rows = [np.clip(top + step, 0, height - 1) for step in (0, 1)]
    upper = image[rows[0], columns[0]] * (1 - part_x) + image[rows[0], columns[1]] * part_x
    lower = image[rows[1], columns[0]] * (1 - part_x) + image[rows[1], columns[1]] * part_x
    return upper * (1 - part_y) + lower * part_y


def blind_warping_error(fake, real):
    """evaluate_WarpError.py and detect_occlusion of fast_blind_video_consistency in float64, with Farneback's flow."""
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in real]
    row, column = np.mgrid[0 : real.shape[1], 0 : real.shape[2]].astype(np.float64)
    total = 0.0
    for t in range(1, len(real)):
        there, back = (
            cv2.calcOpticalFlowFarneback(gray[a], gray[b], None, 0.5, 3, 15, 3, 5, 1.2, 0).astype(np.float64)
            for a, b in ((t - 1, t), (t, t - 1))
        )
        returned = _bilinear(back, column + there[..., 0], row + there[..., 1])
        size = [np.sum(flow**2, axis=-1) for flow in (returned + there, returned, there)]
        hidden = size[0] > 0.01 * (size[1] + size[2]) + 0.5
        slope = np.zeros_like(row)
        for part in (there[..., 0], there[..., 1]):
            slope[:, :-1] += (part[:, :-1] - part[:, 1:]) ** 2
            slope[:-1] += (part[:-1] - part[1:]) ** 2
        noc = 1.0 - np.logical_or(hidden, slope > 0.01 * size[2] + 0.002)[..., None].repeat(3, axis=-1)
        warped = _bilinear(fake[t] / 255.0, column + there[..., 0], row + there[..., 1])
        total += np.sum((noc * (warped - fake[t - 1] / 255.0)) ** 2) / np.sum(noc)
    return total / (len(real) - 1)


def lpips_by_hand(network, heads, first, second):
    """Zhang et al. 2018, equation 1, with the layers taken out of torchvision's network."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    maps = [(image * 2 - 1 - shift) / scale for image in (first, second)]
    total = torch.zeros(len(first))
    for number, layer in enumerate(network.features):
        maps = [layer.forward(m) if not isinstance(layer, torch.nn.ReLU) else F.relu(m) for m in maps]
        if number in (1, 4, 7, 9, 11):
            one, other = (m / (m.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for m in maps)
            weight = heads[(1, 4, 7, 9, 11).index(number)]
            total += ((one - other).pow(2) * weight).sum(1).mean((1, 2))
    return total


def dists_by_hand(network, weights, first, second):
    """Ding et al. 2020, equations 5 to 7, one channel's weights at a time, in float64 from the maps on."""
    window = np.hanning(5)[1:-1]
    kernel = torch.tensor(np.outer(window, window) / np.outer(window, window).sum(), dtype=torch.float32)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    all_maps = []
    for image in (first, second):
        current, maps = (image - mean) / deviation, [image]
        for number, layer in enumerate(network.features):
            if isinstance(layer, torch.nn.MaxPool2d):
                maps.append(current)
                squares = current.pow(2).flatten(0, 1)[:, None]
                pooled = F.conv2d(F.pad(squares, (1, 1, 1, 1)), kernel[None, None], stride=2)
                current = (pooled[:, 0].unflatten(0, current.shape[:2]) + 1e-12).sqrt()
            else:
                current = F.relu(current) if number and isinstance(layer, torch.nn.ReLU) else layer.forward(current)
        all_maps.append(maps)
    total = (weights["alpha"].sum() + weights["beta"].sum()).double()
    score = torch.zeros(len(first), dtype=torch.float64)
    begin = 0
    for one, other in zip(*all_maps, strict=True):
        x, y = one.double().flatten(2), other.double().flatten(2)
        alpha, beta = (weights[n][0, begin : begin + x.shape[1], 0, 0].double() / total for n in ("alpha", "beta"))
        mx, my, vx, vy = x.mean(2), y.mean(2), x.var(2, unbiased=False), y.var(2, unbiased=False)
        covariance = ((x - mx[..., None]) * (y - my[..., None])).mean(2)
        score += (alpha * (2 * mx * my + 1e-6) / (mx**2 + my**2 + 1e-6)).sum(1)
        score += (beta * (2 * covariance + 1e-6) / (vx + vy + 1e-6)).sum(1)
        begin += x.shape[1]
    return 1 - score


def sign_flip_p(differences, weights):
    """Two-sided p of all sign flips, written out."""
    observed = abs(np.average(differences, weights=weights))
    signs = itertools.product((1, -1), repeat=len(differences))
    means = [abs(np.average(np.multiply(differences, sign), weights=weights)) for sign in signs]
    return np.mean([mean >= observed - 1e-12 for mean in means])
