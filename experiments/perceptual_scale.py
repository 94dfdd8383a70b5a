"""The weight of the perceptual loss: its scale relative to the MSE, its share of the gradient, and 60 steps with it.

    make experiment NAME=perceptual_scale         about 10 CPU-minutes

SRGAN (Ledig et al. 2017, section 3.2) multiplies VGG's feature maps by 1/12.75, "to obtain VGG losses of a scale that
is comparable to the MSE loss", and says that this is a factor of about 0.006 on the loss. The paper uses the 0.006 with
another VGG, another layer and another range of the images. Here the missing factor, `perceptual.rescale`, is measured
for our trunk by SRGAN's rule:

    0.006 * rescale * perceptual loss = MSE,   both of a reconstruction, images in [0, 1]

for two reconstructions: bicubic enlargement and the shipped generator's. (SRGAN's perceptual stage begins with a
generator trained on the MSE, so its scales were compared there.) The factor is the geometric mean over both and over
the crop sizes of the reduced and the full configurations. Also measured: the factor for an untrained generator, the
ratio of the gradient norms at the image, and for each shipped configuration the share at its first step: the norm of
the weighted perceptual gradient at the generator's output over the image term's. All on training crops of the demo's
clips; `experiments/results/perceptual_scale/scales.json`.

Then the paper's base is trained for 60 steps with the term as it was first configured (standardised inputs, no factor),
as printed (no factor), calibrated, without it, and on the MSE alone: one result file each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from paper_table import pack_demo
from runner import ROOT, Experiment, Run, Runner, describe_machine, main, rounded
from torch import Tensor

from vsr_dist.build import build_networks
from vsr_dist.config import Config, load_config
from vsr_dist.core.collectives import World
from vsr_dist.data.loader import TrainLoader
from vsr_dist.data.shards import open_shard_set
from vsr_dist.inference.generator_io import load_generator
from vsr_dist.losses.perceptual import perceptual
from vsr_dist.losses.pixel import PIXEL
from vsr_dist.models.features import PerceptualConfig, PerceptualTrunk
from vsr_dist.ops.color import from_uint8
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.training.gan_step import spread_frames

NAME = "perceptual_scale"
WORK = f"runs/{NAME}"
DATA = f"{WORK}/data"
SHIPPED = ROOT / "vsr_dist/inference/default"
BASE = ROOT / "configs/paper/base.yaml"
SRGAN_WEIGHT = 0.006
# Low-resolution crops of the reduced and of the full configurations, and how many windows of each are measured.
CROPS_PX = {24: 12, 64: 6}
RECONSTRUCTIONS = ("bicubic", "shipped generator")
# The paper's trunk as printed, with standardised inputs, and that of configs/baselines/srgan.yaml.
TRUNKS = (
    PerceptualConfig(layer=31, normalise=False),
    PerceptualConfig(layer=31, normalise=True),
    PerceptualConfig(layer=30, normalise=False),
)
CONFIGS = ("base", "lstm", "improved", "full/base")
# Name of a run of 60 steps -> what it changes in configs/paper/base.yaml.
VARIANTS = {
    "first-configured": ("perceptual.normalise=true", "perceptual.rescale=1"),
    "as-printed": ("perceptual.rescale=1",),
    "calibrated": (),
    "no-perceptual": ("loss.perceptual=0",),
    "mse-only": ("loss.perceptual=0", "adversarial.weight=0"),
}


@dataclass(frozen=True)
class Scale:
    """Losses before weighting, and norms of their gradients at the image, of one kind of image in one crop size."""

    images: str
    layer: int
    normalise: bool
    crop_px: int
    perceptual: float
    mse: float
    perceptual_gradient: float
    mse_gradient: float

    @property
    def rescale(self) -> float:
        """The factor with which 0.006 times the perceptual loss equals the MSE."""
        return self.mse / (SRGAN_WEIGHT * self.perceptual)


def loss_and_gradient(loss_of: Callable[[Tensor], Tensor], images: Tensor) -> tuple[float, float]:
    """(Loss, L2 norm of its gradient at the images)."""
    images = images.detach().requires_grad_(True)
    loss = loss_of(images)
    (gradient,) = torch.autograd.grad(loss, images)
    return loss.item(), gradient.norm().item()


def first_batch(config: Config) -> tuple[Tensor, Tensor]:
    """The clips of the first training step: low and real, (B, T, C, H, W) and (B, T, C, Y, X) in [0, 1]."""
    loader = TrainLoader(config.data, open_shard_set(config.data), config.seed, World(), 1)
    batches = loader.batches(0)
    batch = next(batches)
    low_BTCHW, real_BTCYX = from_uint8(batch.low_BTCHW).clone(), from_uint8(batch.real_BTCYX).clone()
    batches.close()
    return low_BTCHW, real_BTCYX


@torch.no_grad()
def images_of(config: Config, low_BTCHW: Tensor) -> dict[str, Tensor]:
    """Kind of image -> enlarged clips. The untrained generator runs as at the first step, with batch statistics."""
    untrained, _ = build_networks(config)
    shipped, _ = load_generator(SHIPPED)
    return {
        "untrained generator": untrained.train()(low_BTCHW),
        "bicubic": bicubic_upsample(low_BTCHW, config.scale),
        "shipped generator": shipped(low_BTCHW),
    }


def measure_scales(data: Path) -> list[Scale]:
    """Every kind of image, crop size and trunk."""
    found = []
    for crop_px, num_windows in CROPS_PX.items():
        sizes = [f"data.crop_px={crop_px}", f"data.val_crop_px={crop_px}", f"data.batch_clips={num_windows}"]
        config = load_config(BASE, [f"data.root={data}", "data.clip_frames=2", *sizes])
        low_BTCHW, real_BTCYX = first_batch(config)
        # One frame of each window: neighbours look alike.
        real_BCYX = real_BTCYX[:, 0]
        enlarged = images_of(config, low_BTCHW)
        for trunk_config in TRUNKS:
            trunk = PerceptualTrunk(trunk_config)
            with torch.no_grad():
                real_features = trunk(real_BCYX)
            for name, fake_BTCYX in enlarged.items():
                fake_BCYX = fake_BTCYX[:, 0]
                loss, gradient = loss_and_gradient(lambda x: perceptual(trunk(x), real_features), fake_BCYX)  # noqa: B023
                mse, mse_gradient = loss_and_gradient(lambda x: PIXEL["mse"](x, real_BCYX), fake_BCYX)  # noqa: B023
                where = (name, trunk_config.layer, trunk_config.normalise, crop_px)
                found.append(Scale(*where, loss, mse, gradient, mse_gradient))
                print(f"{where}: rescale {found[-1].rescale:.4f}", flush=True)
    return found


def factor_of(scales: list[Scale], trunk: PerceptualConfig) -> float:
    """Geometric mean of `rescale` over the reconstructions and crop sizes."""
    chosen = [
        math.log(scale.rescale)
        for scale in scales
        if (scale.layer, scale.normalise) == (trunk.layer, trunk.normalise) and scale.images in RECONSTRUCTIONS
    ]
    return math.exp(sum(chosen) / len(chosen))


def first_step_share(config: Config) -> dict[str, float]:
    """The perceptual term at the first training step of a configuration: its share of loss and of gradient."""
    low_BTCHW, real_BTCYX = first_batch(config)
    generator, _ = build_networks(config)
    with torch.no_grad():
        fake_BTCYX = generator.train()(low_BTCHW)
    trunk = PerceptualTrunk(config.perceptual)
    frames = spread_frames(config.data.clip_frames, config.train.perceptual_frames)

    def term(fake_BTCYX: Tensor) -> Tensor:
        with torch.no_grad():
            real_features = trunk(real_BTCYX[:, frames].flatten(0, 1))
        loss = perceptual(trunk(fake_BTCYX[:, frames].flatten(0, 1)), real_features, trunk.rescale)
        return config.loss.perceptual * loss

    loss, gradient = loss_and_gradient(term, fake_BTCYX)
    image = PIXEL[config.loss.pixel]
    image_loss, image_gradient = loss_and_gradient(lambda x: config.loss.image * image(x, real_BTCYX), fake_BTCYX)
    return {
        "weighted_perceptual": loss,
        "weighted_image": image_loss,
        "loss_over_image": loss / image_loss,
        "gradient_over_image": gradient / image_gradient,
    }


def measure(experiment: Experiment, runner: Runner) -> None:
    """Write scales.json, unless it is there."""
    pack_demo(WORK, runner)
    path = experiment.result_path("scales")
    if path.exists():
        return
    torch.set_num_threads(1)
    scales = measure_scales(ROOT / DATA)
    factors = {
        f"layer {trunk.layer}, normalise {str(trunk.normalise).lower()}": factor_of(scales, trunk) for trunk in TRUNKS
    }
    shares = {}
    for name in CONFIGS:
        shares[name] = first_step_share(load_config(ROOT / f"configs/paper/{name}.yaml", [f"data.root={ROOT / DATA}"]))
        runner.say(f"{name}: {shares[name]}")
    result = {
        "rule": "0.006 * rescale * perceptual = MSE of a reconstruction (Ledig et al. 2017, section 3.2)",
        "windows": {f"{crop_px} px": num for crop_px, num in CROPS_PX.items()},
        "rescale": factors,
        "shares_at_first_step": shares,
        "scales": [{**asdict(scale), "rescale": scale.rescale} for scale in scales],
        "machine": describe_machine(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    runner.publish(path, rounded(result))
    runner.say(f"scales: {factors}")


def make_runs() -> list[Run]:
    """60 steps of the paper's base under each variant."""
    fixed = (f"data.root={DATA}", "train.steps=60", "train.validate_every=20", "train.log_every=10", "train.pictures=0")
    columns = ("val/psnr_y", "val/ssim_y")
    return [Run(name, "configs/paper/base.yaml", (*fixed, *changed), 0, columns) for name, changed in VARIANTS.items()]


if __name__ == "__main__":
    sys.exit(main(NAME, __doc__, make_runs(), prepare=measure))
