"""The paper's training step as its listings and its base code (github.com/leftthomas/SRGAN) write it.

Names and structure are theirs; nothing is imported from this project but the residue that the listings leave open:
the loss network is handed in, so that both sides use the same weights. Three liberties, each in the paper's favour
or neutral: frames are RGB, all frames of a batch run at once as in listing 2, and the generator is updated before
the discriminator, as this project does, so that the losses of the two sides can be compared step by step.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import nn


# Listing 1.
def estimate_motion_vectors(frames):
    motion_vectors = []
    prev_gray = cv2.cvtColor(frames[0], cv2.COLOR_RGB2GRAY)
    for i in range(1, len(frames)):
        gray = cv2.cvtColor(frames[i], cv2.COLOR_RGB2GRAY)
        flow = cv2.calcOpticalFlowFarneback(prev_gray, gray, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        motion_vectors.append(flow)
        prev_gray = gray
    return motion_vectors


def smooth_motion_vectors(motion_vectors, alpha=0.9):
    smoothed_vectors = [motion_vectors[0]]
    for i in range(1, len(motion_vectors)):
        smoothed_vectors.append(alpha * motion_vectors[i] + (1 - alpha) * smoothed_vectors[-1])
    return smoothed_vectors


def align_frames(frames, smoothed_vectors):
    aligned_frames = [frames[0]]
    for i in range(1, len(frames)):
        flow = smoothed_vectors[i - 1]
        h, w = flow.shape[:2]
        grid = np.column_stack((np.repeat(np.arange(h), w), np.tile(np.arange(w), h)))
        flow_map = grid + flow.reshape(-1, 2)
        remap_frame = cv2.remap(
            frames[i],
            flow_map[:, 0].reshape(h, w).astype(np.float32),
            flow_map[:, 1].reshape(h, w).astype(np.float32),
            cv2.INTER_LINEAR,
        )
        aligned_frames.append(remap_frame)
    return aligned_frames


def align_batch(x):
    """Listing 1 on each clip of a batch (B, T, 3, H, W) in [0, 1], on the 8-bit frames that OpenCV works on."""
    clips = (x * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    aligned = [
        np.stack(align_frames(frames, smooth_motion_vectors(estimate_motion_vectors(frames)))) for frames in clips
    ]
    return torch.from_numpy(np.stack(aligned)).permute(0, 1, 4, 2, 3).contiguous().float() / 255


# The base code's blocks, listing 2, and the base code's discriminator.
class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        residual = self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))
        return x + residual


class UpsampleBlock(nn.Module):
    def __init__(self, in_channels, up_scale):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels * up_scale**2, kernel_size=3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(up_scale)
        self.prelu = nn.PReLU()

    def forward(self, x):
        return self.prelu(self.pixel_shuffle(self.conv(x)))


class Generator(nn.Module):
    """Listing 2; its constants 64 (channels and side) and 256 are `width`, `side` and `hidden`."""

    def __init__(self, scale_factor, sequence_length, width, side, hidden):
        super().__init__()
        self.width, self.side = width, side
        upsample_block_num = int(math.log(scale_factor, 2))
        self.conv1 = nn.Sequential(nn.Conv2d(3, width, kernel_size=9, padding=4), nn.PReLU())
        self.res_blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(sequence_length)])
        self.conv2 = nn.Sequential(nn.Conv2d(width, width, kernel_size=3, padding=1), nn.BatchNorm2d(width))
        self.upsample_blocks = nn.Sequential(*[UpsampleBlock(width, 2) for _ in range(upsample_block_num)])
        self.conv3 = nn.Conv2d(width, 3, kernel_size=9, padding=4)
        size = width * side * side
        self.lstm = nn.LSTM(input_size=size, hidden_size=hidden, num_layers=1, batch_first=True)
        self.fc = nn.Linear(hidden, size)

    def forward(self, x):
        batch_size, seq_len, c, h, w = x.size()
        x = x.reshape(batch_size * seq_len, c, h, w)
        conv1 = self.conv1(x)
        res_blocks = self.res_blocks(conv1)
        conv2 = self.conv2(res_blocks)
        res_out = conv1 + conv2
        res_out = res_out.view(batch_size, seq_len, -1)
        lstm_out, _ = self.lstm(res_out)
        lstm_out = lstm_out.contiguous().view(batch_size * seq_len, -1)
        fc_out = self.fc(lstm_out)
        fc_out = fc_out.view(batch_size * seq_len, self.width, self.side, self.side)
        upsampled = self.upsample_blocks(fc_out)
        output = self.conv3(upsampled)
        return (torch.tanh(output) + 1) / 2


class Discriminator(nn.Module):
    def __init__(self, width):
        super().__init__()
        layers = [nn.Conv2d(3, width, kernel_size=3, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for multiple, stride in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2)):
            layers.append(nn.Conv2d(before, multiple * width, kernel_size=3, stride=stride, padding=1))
            layers += [nn.BatchNorm2d(multiple * width), nn.LeakyReLU(0.2)]
            before = multiple * width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Conv2d(before, 2 * before, kernel_size=1)]
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(2 * before, 1, kernel_size=1)]
        self.net = nn.Sequential(*layers)

    def forward(self, x):
        batch_size = x.size(0)
        return torch.sigmoid(self.net(x).view(batch_size))


# The base code's TV loss and listing 3.
class TVLoss(nn.Module):
    def forward(self, x):
        batch_size, channels, h_x, w_x = x.size()
        count_h = channels * (h_x - 1) * w_x
        count_w = channels * h_x * (w_x - 1)
        h_tv = torch.pow(x[:, :, 1:, :] - x[:, :, : h_x - 1, :], 2).sum()
        w_tv = torch.pow(x[:, :, :, 1:] - x[:, :, :, : w_x - 1], 2).sum()
        return 2 * (h_tv / count_h + w_tv / count_w) / batch_size


class GeneratorLoss(nn.Module):
    def __init__(self, loss_network):
        super().__init__()
        self.loss_network = loss_network
        self.mse_loss = nn.MSELoss()
        self.tv_loss = TVLoss()
        self.temporal_loss = nn.MSELoss()

    def forward(self, out_labels, out_images, target_images, changes, target_changes):
        adversarial_loss = torch.mean(1 - out_labels)
        perception_loss = self.mse_loss(self.loss_network(out_images), self.loss_network(target_images))
        image_loss = self.mse_loss(out_images, target_images)
        tv_loss = self.tv_loss(out_images)
        temporal_consistency_loss = self.temporal_loss(changes, target_changes)
        return (
            image_loss
            + 0.001 * adversarial_loss
            + 0.006 * perception_loss
            + 2e-8 * tv_loss
            + 0.1 * temporal_consistency_loss
        )


def frame_changes(images, seq_len):
    clips = images.view(-1, seq_len, *images.shape[1:])
    return clips[:, 1:] - clips[:, :-1]


class PaperTraining:
    """The loop body of the base code's train.py. `dead_code` keeps the two forward passes at its end, unused there."""

    def __init__(self, generator, discriminator, loss_network, dead_code=True):
        self.netG, self.netD, self.dead_code = generator, discriminator, dead_code
        self.generator_criterion = GeneratorLoss(loss_network)
        self.optimizerG = torch.optim.Adam(generator.parameters(), lr=1e-4)
        self.optimizerD = torch.optim.Adam(discriminator.parameters(), lr=1e-4)

    def step(self, data, target):
        """One step on uint8 clips (B, T, 3, H, W) and (B, T, 3, Y, X); returns (g_loss, d_loss) as floats.

        In the precision of the networks' weights.
        """
        seq_len, dtype = data.size(1), next(self.netG.parameters()).dtype
        real_img = (target.flatten(0, 1).float() / 255).to(dtype)
        z = align_batch(data.float() / 255).to(dtype)
        real_changes = frame_changes(real_img, seq_len)

        # Minimise 1 - D(G(z)) + perception loss + image loss + TV loss + temporal loss.
        self.netG.zero_grad()
        fake_img = self.netG(z)
        fake_out = self.netD(fake_img)
        fake_changes = frame_changes(fake_img, seq_len)
        g_loss = self.generator_criterion(fake_out, fake_img, real_img, fake_changes, real_changes)
        g_loss.backward()

        # Maximise D(x) - 1 - D(G(z)); as in the base code the fake images are not detached.
        fake_img = self.netG(z)
        self.netD.zero_grad()
        real_out = self.netD(real_img).mean()
        fake_out = self.netD(fake_img).mean()
        d_loss = 1 - real_out + fake_out
        gradient_of_g = [parameter.grad for parameter in self.netG.parameters()]
        for parameter in self.netG.parameters():
            parameter.grad = None
        d_loss.backward(retain_graph=True)
        for parameter, gradient in zip(self.netG.parameters(), gradient_of_g, strict=True):
            parameter.grad = gradient
        self.optimizerD.step()
        self.optimizerG.step()

        if self.dead_code:
            fake_img = self.netG(z)
            fake_out = self.netD(fake_img).mean()
        return g_loss.item(), d_loss.item()
