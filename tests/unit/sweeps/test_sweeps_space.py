"""Search spaces: what is refused before a trial starts, and what reaches the training unharmed."""

from __future__ import annotations

import math

import optuna
import pytest
import yaml

from sweeps.space import Categorical, FloatRange, IntRange, as_override, check_space, parse_space, suggest
from vsr_dist.core.config_io import apply_overrides
from vsr_dist.core.errors import BadConfigError

BASE = {"discriminator": {"kind": "spatiotemporal", "filters": 16}, "train": {"steps": 10, "warmup_steps": 5}}


def parsed(text):
    space, faults = parse_space(yaml.safe_load(text))
    assert not faults
    return space


def test_the_three_kinds_are_read():
    space = parsed(
        """
        adversarial.weight: {type: float, low: 1e-4, high: 1.0e-2, log: true}
        loss.tv: {type: float, low: 0, high: 1, step: 0.25}
        discriminator.filters: {type: int, low: 8, high: 24, step: 8}
        adversarial.loss: {type: categorical, choices: [rpgan, ragan]}
        """
    )
    assert space == {
        "adversarial.weight": FloatRange(1e-4, 1e-2, log=True),
        "loss.tv": FloatRange(0.0, 1.0, step=0.25),
        "discriminator.filters": IntRange(8, 24, step=8),
        "adversarial.loss": Categorical(("rpgan", "ragan")),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "at least one entry"),
        ("loss.tv: 3", "space.loss.tv is 3; expected a mapping"),
        ("loss.tv: {type: flot, low: 0, high: 1}", "(did you mean 'float'?)"),
        ("loss.tv: {type: float, low: 0, hihg: 1}", "unknown key space.loss.tv.hihg (did you mean 'high'?)"),
        ("loss.tv: {type: float, low: 0}", "the following arguments are required: space.loss.tv.high"),
        ("loss.tv: {type: float, low: 2, high: 1}", "low below high"),
        ("loss.tv: {type: float, low: 0, high: .inf}", "both finite"),
        ("loss.tv: {type: float, low: 0, high: 1, log: true}", "log: true needs low above 0"),
        ("loss.tv: {type: float, low: 1, high: 2, log: true, step: 1}", "cannot be combined"),
        ("loss.tv: {type: float, low: 0, high: 1, step: 0.3}", "divides high - low = 1, found 0.3"),
        ("loss.tv: {type: float, low: 0, high: 1, step: 0}", "expected a step above 0"),
        ("train.steps: {type: int, low: 1.5, high: 3}", "space.train.steps.low: Expected int"),
        ("train.steps: {type: int, low: 1, high: 8, log: true, step: 2}", "cannot be combined"),
        ("loss.pixel: {type: categorical, choices: [mse]}", "at least 2 different values"),
        ("loss.pixel: {type: categorical, choices: [mse, mse]}", "at least 2 different values"),
    ],
)
def test_a_bad_entry_is_named_and_explained(text, expected):
    space, faults = parse_space(yaml.safe_load(text))
    assert expected in "; ".join(faults)
    assert not space or faults


def test_all_bad_entries_are_named_at_once():
    _, faults = parse_space({"a": 1, "b": {"type": "int", "low": 3, "high": 1}, "loss.tv": {"type": "x"}})
    assert len(faults) == 3


def test_suggestions_stay_inside_and_keep_their_types():
    space = {
        "log": FloatRange(1e-4, 1e-2, log=True),
        "stepped": FloatRange(0.0, 1.0, step=0.25),
        "int": IntRange(8, 24, step=8),
        "choice": Categorical((True, 2, 0.5, "x")),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    values = [suggest(study.ask(), space) for _ in range(40)]
    assert list(values[0]) == list(space)
    assert all(1e-4 <= v["log"] <= 1e-2 for v in values)
    assert {v["stepped"] for v in values} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {v["int"] for v in values} == {8, 16, 24}
    assert all(type(v["int"]) is int for v in values)
    assert {repr(v["choice"]) for v in values} == {"True", "2", "0.5", "'x'"}


@pytest.mark.parametrize(
    "value", [1e-5, 1e22, math.pi, 8, -3, True, False, "rpgan", "1e-5", "3", "true", "a: b # c", "", "x" * 300]
)
def test_an_override_is_read_back_to_the_same_value_and_type(value):
    override = as_override("a.b", value)
    assert "\n" not in override
    result = apply_overrides({}, [override])["a"]["b"]
    assert (result, type(result)) == (value, type(value))


def test_a_space_that_fits_its_base_passes():
    check_space(
        {"adversarial.weight": FloatRange(1e-4, 1e-2, log=True), "train.warmup_steps": IntRange(0, 9)},
        BASE,
        "base.yaml",
    )


def test_every_misfit_is_named_before_a_trial_starts():
    space = {
        "adversarial.wieght": FloatRange(0.0, 1.0),
        "loss": FloatRange(0.0, 1.0),
        "discriminator.filters": FloatRange(8.0, 24.5),
        "loss.tv": FloatRange(-1.0, 1.0),
        "train.warmup_steps": IntRange(0, 10),
        "adversarial.loss": Categorical(("rpgan", "wgan")),
        "run_dir": Categorical(("a", "b")),
        "tracking.tags.study": Categorical(("a", "b")),
    }
    with pytest.raises(BadConfigError) as caught:
        check_space(space, BASE, "base.yaml")
    message = str(caught.value)
    assert message.startswith("base.yaml: ")
    assert (
        "space.adversarial.wieght: no such key in the training configuration (did you mean 'adversarial.weight'?)"
        in message
    )
    assert "space.loss: no such key" in message
    assert "discriminator.filters=24.5" in message
    assert "loss.tv=-1.0" in message and "loss.tv=1.0" not in message
    assert "train.warmup_steps=10" in message and "train.warmup_steps=0:" not in message
    assert "adversarial.loss=wgan" in message and "adversarial.loss=rpgan" not in message
    assert "the driver sets run_dir" in message
    assert "the driver sets tracking.tags.study" in message


def test_another_network_does_not_meet_keys_that_the_base_left_at_their_defaults():
    base = {"data": {"crop_px": 24}}
    check_space({"discriminator.kind": Categorical(("spatiotemporal", "srgan"))}, base, "base.yaml")
