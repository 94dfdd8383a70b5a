"""What the launcher may ask for, and networks that are compiled or laid out channels last."""

from __future__ import annotations

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from vsr_dist.build import check_world
from vsr_dist.config import check_config, parse_config
from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.world import World
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.losses.objective import LossConfig
from vsr_dist.models import build_discriminator, build_generator
from vsr_dist.models.recurrent import RecurrentConfig
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig
from vsr_dist.training.adversary import AdversaryConfig
from vsr_dist.training.ema import make_ema
from vsr_dist.training.gan_step import GanStep, Players
from vsr_dist.training.launch import compile_in_place, launch_faults, lay_out, refuse_compile
from vsr_dist.training.train_config import TrainConfig

PENALTIES = "adversary: {r1_gamma: 0.1, r2_gamma: 0.1, penalty: %s}\ntrain: {compile: true}"


pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.mark.parametrize(
    ("fields", "environment", "expected"),
    [
        ({}, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision is fp16, in which these networks are not safe"),
        ({"precision": "bf16"}, {"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision is fp8"),
        ({}, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision is bf16, but train.precision is float32"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "told to use FSDP"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "told to use DeepSpeed"),
        ({}, {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "use train.compile=true"),
        ({}, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "gradient_accumulation_steps is 4"),
    ],
)
def test_a_launch_that_is_refused(fields, environment, expected):
    (fault,) = launch_faults(TrainConfig(**fields), environment)
    assert expected in fault


@pytest.mark.parametrize(
    ("fields", "environment"),
    [
        ({}, {}),
        ({}, {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_FSDP": "false"}),
        ({"precision": "bf16"}, {"ACCELERATE_MIXED_PRECISION": "no"}),
        ({"precision": "bf16"}, {"ACCELERATE_MIXED_PRECISION": "bf16"}),
        ({"accumulation_steps": 4}, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}),
    ],
)
def test_a_launch_that_fits(fields, environment):
    assert launch_faults(TrainConfig(**fields), environment) == []


def test_batch_norm_in_the_discriminator_needs_a_yes_on_several_processes():
    def config(yes="false", norm="batch", adversarial=0.1):
        text = f"discriminator: {{kind: srgan, norm: {norm}}}\ntrain: {{allow_batch_norm: {yes}}}"
        return parse_config(yaml.safe_load(f"{text}\nloss: {{adversarial: {adversarial}}}"), "test")

    with pytest.raises(BadConfigError, match=r"srgan has batch norm, .* train.allow_batch_norm=true"):
        check_world(config(), World(0, 2))
    check_world(config(), World())
    check_world(config(yes="true"), World(0, 2))
    check_world(config(norm="group"), World(0, 2))
    check_world(config(adversarial=0.0), World(0, 2))


def test_compiled_networks_take_no_second_derivative():
    with pytest.raises(BadConfigError, match=r"train.compile=true cannot differentiate twice"):
        check_config(parse_config(yaml.safe_load(PENALTIES % "exact"), "test"))
    check_config(parse_config(yaml.safe_load(PENALTIES % "finite_difference"), "test"))


def test_compiling_on_a_cpu_without_a_compiler_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BadConfigError, match=r"needs a C\+\+ compiler, and g\+\+ is not on the PATH"):
        refuse_compile(torch.device("cpu"))
    monkeypatch.setenv("CXX", "icpx")
    with pytest.raises(BadConfigError, match="and icpx is not on the PATH"):
        refuse_compile(torch.device("cpu"))
    (tmp_path / "icpx").write_text("#!/bin/sh\n")
    (tmp_path / "icpx").chmod(0o755)
    refuse_compile(torch.device("cpu"))


def train_steps(config, num_steps=3):
    torch.manual_seed(0)
    generator = build_generator(RecurrentConfig(channels=4, num_blocks=1), 4)
    network = build_discriminator(SpatiotemporalConfig(filters=4, levels=1, dropout=0.0), 4)
    torch.nn.init.normal_(generator.tail[0].weight, std=0.02)
    lay_out(config, generator, network)
    ema = make_ema(generator, 0.9)
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3, fused=True) for net in (generator, network)]
    accelerator = Accelerator(cpu=True)
    players = Players(*accelerator.prepare(generator, network, *optimizers))
    compile_in_place(config, generator, network)
    adversary = AdversaryConfig(r1_gamma=0.1, penalty="finite_difference")
    step = GanStep(
        accelerator, players, LossConfig(perceptual=0.0, adversarial=0.1), ADVERSARIAL["bce"], adversary,
        scale=4, max_grad_norm=1.0, perceptual_frames=0,
    )  # fmt: skip
    low = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8)
    real = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    for number in range(num_steps):
        torch.manual_seed(number)
        scalars = step.micro_step(low, real, adversarial_factor=1.0)
        ema.update_parameters(generator)
    return generator, network, scalars


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"channels_last": True}, {"compile": True}], ids=str)
def test_layout_and_compilation_change_rounding_only(fields):
    generator, network, scalars = train_steps(TrainConfig(**fields))
    AcceleratorState._reset_state()
    plain_generator, plain_network, expected = train_steps(TrainConfig())
    for name, value in expected.items():
        torch.testing.assert_close(scalars[name], value, rtol=1e-3, atol=1e-5, msg=name)
    for net, plain in ((generator, plain_generator), (network, plain_network)):
        assert net.state_dict().keys() == plain.state_dict().keys()
    if "channels_last" in fields:
        assert generator.tail[0].weight.is_contiguous(memory_format=torch.channels_last)
