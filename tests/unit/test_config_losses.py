"""Which losses, penalties and discriminators go together with which data and generators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vsr_dist.config import check_config, config_tree, load_config, parse_config
from vsr_dist.core.config_io import flatten
from vsr_dist.core.errors import BadConfigError
from vsr_dist.training.config import learning_rate_at

ROOT = Path(__file__).parents[2]


def config(**sections):
    return parse_config(sections, "test")


WARPED = {"temporal_kind": "warped"}
PENALTY = {"r1_gamma": 1.0, "penalty": "finite_difference"}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"adversarial": {"loss": "ragan"}, "discriminator": {"kind": "unet", "filters": 8}},
        {"loss": {"temporal_kind": "ping_pong"}},
        {"loss": WARPED},
        {"loss": {**WARPED, "temporal_flow": "packed"}, "data": {"flow": True}},
        # What is switched off asks for nothing.
        {"loss": {**WARPED, "temporal_flow": "packed", "temporal": 0.0}},
        {"loss": {"temporal_kind": "ping_pong"}, "generator": {"kind": "paper_srgan", "input_px": 24}, "data": "same"},
        {"adversarial": PENALTY},
        {"adversarial": {**PENALTY, "r1_gamma": 0.0}, "discriminator": {"kind": "srgan", "dropout": 0.2}},
        {"loss": {"tv_kind": "isotropic", "tv": 1e-3, "pixel": "charbonnier"}},
        {"discriminator": {"kind": "srgan", "filters": 8, "levels": 5, "norm": "spectral", "dropout": 0.2}},
    ],
)
def test_what_goes_together(sections):
    if sections.get("data") == "same":
        sections = {**sections, "data": {"crop_px": 24, "val_crop_px": 24}}
    check_config(config(**sections))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"loss": {**WARPED, "temporal_flow": "packed"}}, "temporal_flow=packed needs data.flow=true"),
        ({"loss": WARPED, "data": {"crop_px": 5}}, "at least 24 high-resolution px; data.crop_px 5 x scale 4"),
        ({"train": {"carry_state": True}}, "train.carry_state needs data.order=ordered, found"),
        (
            {"train": {"carry_state": True}, "data": {"order": "ordered"}, "generator": {"recurrence": "none"}},
            "has no state to carry; use recurrent with a recurrence",
        ),
        (
            {"train": {"carry_state": True}, "data": {"order": "ordered"}, "loss": {"temporal_kind": "ping_pong"}},
            "carry_state and loss.temporal_kind=ping_pong cannot be combined",
        ),
        (
            {"loss": {"temporal_kind": "ping_pong"}, "generator": {"recurrence": "none"}},
            "ping_pong needs a recurrent generator",
        ),
        (
            {"loss": {"temporal_kind": "ping_pong"}, "generator": {"kind": "paper_srgan", "lstm": False}},
            "ping_pong needs a recurrent generator",
        ),
        (
            {"loss": {"temporal_kind": "ping_pong"}, "generator": {"bidirectional": True}},
            "ping_pong needs a recurrent generator",
        ),
        (
            {"discriminator": {"kind": "unet", "levels": 5}, "data": {"crop_px": 20}},
            "data.crop_px 20 x scale 4 is not a multiple of the 32 px that discriminator unet needs",
        ),
        (
            {"adversarial": PENALTY, "discriminator": {"kind": "srgan", "dropout": 0.1}},
            "penalty=finite_difference would measure the noise of dropout",
        ),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(sections, words):
    with pytest.raises(BadConfigError) as error:
        check_config(config(**sections))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"adversarial": {"sigma": 0.0}}, "adversarial: out of range: sigma 0.0"),
        ({"adversarial": {"penalty": "r3"}}, "penalty"),
        ({"loss": {"temporal_kind": "pingpong"}}, "temporal_kind"),
        ({"loss": {"tv_kind": "l1"}}, "tv_kind"),
        ({"adversarial": {"loss": "rgan"}}, "loss"),
        ({"discriminator": {"kind": "u-net"}}, "unet"),
    ],
)
def test_values_that_do_not_exist_are_refused(sections, words):
    with pytest.raises(BadConfigError, match=words):
        config(**sections)


def test_realvsr_trains_as_recurrent_does():
    """The file says so: only what the data and the crops ask for differs."""
    trees = [flatten(config_tree(load_config(ROOT / "configs" / f"{name}.yaml"))) for name in ("recurrent", "realvsr")]
    different = {key for key in trees[0].keys() | trees[1].keys() if trees[0].get(key) != trees[1].get(key)}
    assert different == {"name", "run_dir", "scale", "data.root", "data.crop_px", "data.val_crop_px"}


def test_recurrent_begins_with_the_adversary_that_was_measured():
    """For 1000 adversarial steps it trains as "cure, ratio 0.3" of docs/drift.md: loss, penalties, rates."""
    measured, shipped = (load_config(ROOT / f"configs/{name}.yaml") for name in ("drift/cure", "recurrent"))
    chosen = replace(measured.adversarial.weight_control, ratio=0.3)
    adversarial = replace(shipped.adversarial, gamma_control=measured.adversarial.gamma_control)
    assert adversarial == replace(measured.adversarial, weight_control=chosen)
    assert shipped.adversarial.gamma_control.after >= 1000, "gamma stays where it was measured"
    assert shipped.discriminator_optimizer.betas == measured.discriminator_optimizer.betas
    for player in ("generator_optimizer", "discriminator_optimizer"):
        theirs, ours = getattr(measured, player), getattr(shipped, player)
        for step in (0, 500, 999):
            expected = learning_rate_at(theirs, step, measured.train.steps, measured.train.warmup_steps)
            done = shipped.train.warmup_steps + step
            found = learning_rate_at(ours, done, shipped.train.steps, shipped.train.warmup_steps)
            assert found == pytest.approx(expected, rel=0.03), (player, step)
