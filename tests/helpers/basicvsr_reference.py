"""BasicVSR as its paper and SPyNet's describe it, on a dictionary of tensors; nothing is shared with the package.

Names of tensors are those of the published files (BasicSR). The parts that the papers leave open are those of the
weights: 7 x 7 kernels and ReLU in SPyNet, slopes of 0.1, 3 x 3 kernels elsewhere, features of 0 outside of the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

SPYNET = ((8, 32), (32, 64), (64, 32), (32, 16), (16, 2))


def random_weights(channels, num_blocks):
    """Weights of the sizes of a network at scale 4 whose features and flow neither vanish nor explode."""
    weights = {
        "spynet.mean": torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
        "spynet.std": torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
    }

    def conv(name, num_in, num_out, side, gain=1.0):
        weights[f"{name}.weight"] = torch.randn(num_out, num_in, side, side) * gain / (num_in * side**2) ** 0.5
        weights[f"{name}.bias"] = torch.randn(num_out) * 0.1

    for level in range(6):
        for number, (num_in, num_out) in enumerate(SPYNET):
            conv(f"spynet.basic_module.{level}.basic_module.{2 * number}", num_in, num_out, 7, 1.4)
    for direction in ("backward", "forward"):
        conv(f"{direction}_trunk.main.0", 3 + channels, channels, 3)
        for block in range(num_blocks):
            conv(f"{direction}_trunk.main.2.{block}.conv1", channels, channels, 3, 0.3)
            conv(f"{direction}_trunk.main.2.{block}.conv2", channels, channels, 3, 0.3)
    conv("fusion", 2 * channels, channels, 1)
    conv("upconv1", channels, 4 * channels, 3)
    conv("upconv2", channels, 4 * channels, 3)
    conv("conv_hr", channels, channels, 3)
    conv("conv_last", channels, 3, 3)
    return weights


def warp(image, flow, outside):
    """image(p + flow(p)), bilinear from the four pixels around; outside: `edge`, or `zero` pixels beyond the image."""
    height, width = image.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = columns + flow[:, 0], rows + flow[:, 1]
    if outside == "edge":
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    out = torch.zeros_like(image)
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            share = (1 - (y - row).abs()) * (1 - (x - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            pixels = image.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, image.shape[1], -1))
            out += pixels.view_as(image) * (share * inside)[:, None]
    return out


class Reference:
    """The network with the given weights; `enlarge` maps a clip (B, T, 3, H, W) to (B, T, 3, 4 H, 4 W)."""

    def __init__(self, weights):
        self.weights = weights

    def conv(self, name, images):
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(images, weight, self.weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def flow(self, first, second):
        """second(p + flow(p)) is first(p): on six levels the flow of half the size is doubled and corrected."""
        height, width = first.shape[-2:]
        size = [32 * ((side + 31) // 32) for side in (height, width)]
        pairs = []
        for image in (first, second):
            resized = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
            pairs.append([(resized - self.weights["spynet.mean"]) / self.weights["spynet.std"]])
            for _ in range(5):
                pairs[-1].append(F.avg_pool2d(pairs[-1][-1], 2))
        flow = torch.zeros(len(first), 2, size[0] // 64, size[1] // 64)
        for level in range(6):
            one, other = pairs[0][5 - level], pairs[1][5 - level]
            up = torch.zeros(len(first), 2, *one.shape[-2:])
            if level > 0:
                up = 2 * F.interpolate(flow, size=one.shape[-2:], mode="bilinear", align_corners=True)
            hidden = torch.cat((one, warp(other, up, "edge"), up), dim=1)
            for number in range(5):
                hidden = self.conv(f"spynet.basic_module.{level}.basic_module.{2 * number}", hidden)
                hidden = hidden if number == 4 else hidden.relu()
            flow = up + hidden
        flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False)
        return torch.stack((flow[:, 0] * width / size[1], flow[:, 1] * height / size[0]), dim=1)

    def trunk(self, direction, image, features):
        name = f"{direction}_trunk.main"
        features = F.leaky_relu(self.conv(f"{name}.0", torch.cat((image, features), dim=1)), 0.1)
        block = 0
        while f"{name}.2.{block}.conv1.weight" in self.weights:
            hidden = self.conv(f"{name}.2.{block}.conv1", features).relu()
            features = features + self.conv(f"{name}.2.{block}.conv2", hidden)
            block += 1
        return features

    def enlarge(self, low):
        num_frames = low.shape[1]
        nothing = torch.zeros(len(low), self.weights["fusion.bias"].numel(), *low.shape[-2:])
        backward, forward = [nothing] * num_frames, [nothing] * num_frames
        for t in reversed(range(num_frames)):
            features = nothing
            if t < num_frames - 1:
                features = warp(backward[t + 1], self.flow(low[:, t], low[:, t + 1]), "zero")
            backward[t] = self.trunk("backward", low[:, t], features)
        for t in range(num_frames):
            features = warp(forward[t - 1], self.flow(low[:, t], low[:, t - 1]), "zero") if t > 0 else nothing
            forward[t] = self.trunk("forward", low[:, t], features)
        images = []
        for t in range(num_frames):
            image = F.leaky_relu(self.conv("fusion", torch.cat((backward[t], forward[t]), dim=1)), 0.1)
            for name in ("upconv1", "upconv2"):
                image = F.leaky_relu(F.pixel_shuffle(self.conv(name, image), 2), 0.1)
            image = self.conv("conv_last", F.leaky_relu(self.conv("conv_hr", image), 0.1))
            size = [4 * side for side in low.shape[-2:]]
            images.append(image + F.interpolate(low[:, t], size=size, mode="bilinear", align_corners=False))
        return torch.stack(images, dim=1)
