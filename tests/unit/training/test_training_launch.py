"""What the launcher may ask for, and networks that are compiled or laid out channels last."""

from __future__ import annotations

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from small_gan import make_step, play, small_networks

from vsr_dist.build import check_world, compile_in_place, launch_faults, refuse_compile, set_memory_format
from vsr_dist.config import check_config, parse_config
from vsr_dist.core.collectives import World
from vsr_dist.core.errors import BadConfigError
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig
from vsr_dist.training.config import AdversarialConfig, TrainConfig
from vsr_dist.training.ema import make_ema

PENALTIES = "adversarial: {r1_gamma: 0.1, r2_gamma: 0.1, penalty: %s}\ntrain: {compile: true}"


pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.mark.parametrize(
    ("fields", "environment", "expected"),
    [
        ({}, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision is fp16, which these networks do not support"),
        ({"precision": "bf16"}, {"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision is fp8"),
        ({}, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision is bf16, but train.precision is float32"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "configured for FSDP"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "configured for DeepSpeed"),
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
    def config(yes="false", norm="batch", weight=0.1):
        text = f"discriminator: {{kind: srgan, norm: {norm}}}\ntrain: {{allow_batch_norm: {yes}}}"
        return parse_config(yaml.safe_load(f"{text}\nadversarial: {{weight: {weight}}}"), "test")

    with pytest.raises(BadConfigError, match=r"srgan has batch norm, .* train.allow_batch_norm=true"):
        check_world(config(), World(0, 2))
    check_world(config(), World())
    check_world(config(yes="true"), World(0, 2))
    check_world(config(norm="group"), World(0, 2))
    check_world(config(weight=0.0), World(0, 2))


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
    networks = small_networks(SpatiotemporalConfig(filters=4, levels=1, dropout=0.0), channels=4, num_blocks=1)
    generator, network = networks
    set_memory_format(config, *networks)
    ema = make_ema(generator, 0.9)
    adversarial = AdversarialConfig(loss="bce", weight=0.1, r1_gamma=0.1, penalty="finite_difference")
    step = make_step(
        adversarial=adversarial, networks=networks, optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr, fused=True)
    )
    compile_in_place(config, *networks)
    for number in range(num_steps):
        torch.manual_seed(number)
        (result,) = play(step, number=number)
        ema.update_parameters(generator)
    return generator, network, result.scalars


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
