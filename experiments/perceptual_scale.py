"""What the perceptual loss weighs: its scale against the MSE, and its share of the gradient, on training crops.

    vsr-dist samples demo/clips; vsr-dist pack ... (as `demo.sh` does)
    python experiments/perceptual_scale.py --data demo/data

SRGAN (Ledig et al. 2017, section 3.2) multiplies VGG's feature maps by 1/12.75, "to obtain VGG losses of a scale that
is comparable to the MSE loss", and says that this is a factor of about 0.006 on the loss. The paper takes over the
0.006 with another VGG, another layer and another range of the images. Here the missing factor, `perceptual.rescale`,
is measured for our trunk by SRGAN's rule:

    0.006 * rescale * perceptual loss = MSE,   both of a reconstruction, images in [0, 1]

for two reconstructions: bicubic enlargement and the shipped generator's. (SRGAN's perceptual stage begins with a
generator trained on the MSE, so its scales were compared there.) The factor is the geometric mean over both and over
the crop sizes of the reduced and the full configurations. Beside it: the same for an untrained generator, the ratio of
the gradients' norms at the image, and each shipped configuration's share at its first step, the norm of the weighted
perceptual gradient at the generator's output over the image term's.

Writes experiments/results/perceptual_scale.json; about 3 CPU-minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
from machine import describe_machine  # noqa: E402 - benchmarks/machine.py, shared by both folders

from vsr_dist.build import build_networks  # noqa: E402
from vsr_dist.config import Config, load_config  # noqa: E402
from vsr_dist.core.collectives import World  # noqa: E402
from vsr_dist.core.errors import run_cli  # noqa: E402
from vsr_dist.data.loader import TrainLoader  # noqa: E402
from vsr_dist.data.shards import open_shard_set  # noqa: E402
from vsr_dist.inference.generator_io import load_generator  # noqa: E402
from vsr_dist.losses.perceptual import perceptual  # noqa: E402
from vsr_dist.losses.pixel import PIXEL  # noqa: E402
from vsr_dist.models.features import PerceptualConfig, PerceptualTrunk  # noqa: E402
from vsr_dist.ops.color import from_uint8  # noqa: E402
from vsr_dist.ops.resample import bicubic_upsample  # noqa: E402
from vsr_dist.training.gan_step import spread_frames  # noqa: E402

RESULT = ROOT / "experiments/results/perceptual_scale.json"
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
CONFIGS = ("paper/base", "paper/lstm", "paper/improved")


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


def run(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    scales = measure_scales(arguments.data)
    factors = {
        f"layer {trunk.layer}, normalise {str(trunk.normalise).lower()}": factor_of(scales, trunk) for trunk in TRUNKS
    }
    shares = {}
    for name in CONFIGS:
        shares[name] = first_step_share(load_config(ROOT / f"configs/{name}.yaml", [f"data.root={arguments.data}"]))
        print(name, shares[name], flush=True)
    result = {
        "command": "python experiments/perceptual_scale.py --data demo/data",
        "rule": "0.006 * rescale * perceptual = MSE of a reconstruction (Ledig et al. 2017, section 3.2)",
        "windows": {f"{crop_px} px": num for crop_px, num in CROPS_PX.items()},
        "rescale": factors,
        "shares_at_first_step": shares,
        "scales": [{**asdict(scale), "rescale": scale.rescale} for scale in scales],
        "machine": describe_machine(),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(_short(result), indent=1) + "\n")
    print(f"written: {RESULT.relative_to(ROOT)}: {factors}")
    return 0


def _short(value: object) -> object:
    """Floats to 4 significant digits."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the demo's shard set; only its training part is read")
    return run_cli(lambda argv: run(parser.parse_args(argv)), None)


if __name__ == "__main__":
    sys.exit(main())
