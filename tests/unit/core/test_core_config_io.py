"""Configurations: what is read, what is refused, and how well the refusal explains itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_dist.config import Config, check_config, config_tree, dump_config, load_config, parse_config
from vsr_dist.core.config_io import apply_overrides, flatten, read_yaml, set_path
from vsr_dist.core.errors import BadConfigError
from vsr_dist.models.paper_srgan import PaperSrganConfig


def refusal(*overrides: str, tree: dict | None = None) -> str:
    """The message with which a configuration is refused."""
    with pytest.raises(BadConfigError) as caught:
        parse_config(apply_overrides(tree or {}, overrides), "run.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=3", "seed", 3),
        ("loss.tv=1e-4", "loss.tv", 1e-4),
        ("loss.tv=0.5", "loss.tv", 0.5),
        ("loss.image=2", "loss.image", 2.0),
        ("data.symmetries=false", "data.symmetries", False),
        ("generator_optimizer.betas=[0.5, 1e-3]", "generator_optimizer.betas", [0.5, 1e-3]),
        ("run_dir=runs/a b=c", "run_dir", "runs/a b=c"),
        ("train.processes=2", "train.processes", 2),
        ("train.processes=null", "train.processes", None),
        ("train.processes=", "train.processes", None),
        ("tracking.tags={team: a}", "tracking.tags", {"team": "a"}),
        (" name = spaced ", "name", "spaced"),
        ("run_dir=/data/set #1", "run_dir", "/data/set #1"),
        ("run_dir=#1", "run_dir", "#1"),
        ("run_dir='a#1'", "run_dir", "a#1"),
    ],
)
def test_an_override_sets_its_key_and_no_other(override, path, value):
    *sections, leaf = path.split(".")
    expected = config_tree(Config())
    node = expected
    for section in sections:
        node = node[section]
    node[leaf] = value
    assert config_tree(parse_config(apply_overrides({}, [override]), "test")) == expected


def test_later_overrides_win_and_the_tree_given_is_left_alone():
    tree = {"loss": {"tv": 1.0}, "data": {"root": "x"}}
    result = apply_overrides(tree, ["loss.tv=2", "loss.image=3", "loss.tv=4", "train.steps=9"])
    assert result == {"loss": {"tv": 4, "image": 3}, "data": {"root": "x"}, "train": {"steps": 9}}
    assert tree == {"loss": {"tv": 1.0}, "data": {"root": "x"}}


@pytest.mark.parametrize("override", ["loss.tv", "=3", " =3", ""])
def test_an_override_without_path_or_value_is_refused(override):
    with pytest.raises(BadConfigError, match="not of the form PATH=VALUE"):
        apply_overrides({}, [override])


def test_an_override_that_is_no_yaml_or_goes_below_a_value_is_refused():
    with pytest.raises(BadConfigError, match=r"'loss.tv=\[1' is not valid YAML"):
        apply_overrides({}, ["loss.tv=[1"])
    with pytest.raises(BadConfigError, match="has bytes that are not UTF-8"):
        apply_overrides({}, ["run_dir=a\udcff"])
    with pytest.raises(BadConfigError, match=r"cannot set seed.x: 'seed' is a value"):
        set_path({"seed": 1}, "seed.x", 2)


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("los.tv=1", "los", "loss"),
        ("loss.imag=1", "loss.imag", "image"),
        ("generator.chanels=8", "generator.chanels", "channels"),
        ("train.step=8", "train.step", "steps"),
        ("generator_optimiser.learning_rate=1", "generator_optimiser", "generator_optimizer"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(override, key, nearest):
    assert f"unknown key {key} (did you mean '{nearest}'?)" in refusal(override)


def test_an_unknown_key_like_no_other_gets_no_hint():
    assert refusal("zzzzzz=1") == "run.yaml: unknown key zzzzzz"
    assert "unknown key 1" in refusal(tree={1: 2})


@pytest.mark.parametrize("override", ["seed=", "loss.tv=", "data.root=~", "tracking.tags=null", "loss="])
def test_an_empty_value_is_refused(override):
    key = override.partition("=")[0]
    assert f"{key} is empty" in refusal(override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=1.5", "seed: Expected int. Got value: 1.5"),
        ("seed=true", "seed: Expected int"),
        ("train.steps=many", "train.steps: Expected int. Got value: many"),
        ("data.symmetries=1", "data.symmetries: Expected bool"),
        ("name=3", "name: Expected str"),
        ("generator_optimizer.betas=[0.9]", "generator_optimizer.betas: Expected a tuple with 2 elements"),
        ("adversarial.loss=rpgam", "'rpgan'"),
        ("generator.recurrence=gru", "'convgru'"),
        ("data=3", "data is 3; expected a section"),
        ("generator.kind=recurent", "(did you mean 'recurrent'?); choose paper_srgan, recurrent"),
        ("generator.kind=[a]", "generator.kind is ['a']; choose"),
        ("discriminator.kind=3", "discriminator.kind is 3; choose srgan, unet, spatiotemporal"),
        ("loss.tv=-1", "found tv -1"),
        ("loss.tv=.inf", "found tv inf"),
        ("train.steps=0", "train: steps is 0, expected at least 1"),
        ("data.batch_clips=0", "data: batch_clips is 0, expected at least 1"),
        ("generator.channels=0", "generator: model 'recurrent'"),
        ("discriminator_optimizer.learning_rate=-1", "discriminator_optimizer: expected a learning_rate above 0"),
        ("generator_optimizer.betas=[0.9, 1.0]", "generator_optimizer: betas are (0.9, 1.0)"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(override, expected):
    message = refusal(override)
    assert message.startswith("run.yaml: ")
    assert expected in message
    assert "<class" not in message


def test_all_faults_are_told_at_once():
    message = refusal(
        tree={
            "data": {"crop_px": "x", "symmetries": 3},
            "seed": 1.5,
            "loss": {"imag": 1, "tv": None},
            "train": {"steps": 0},
            "generator": {"kind": "vdsr"},
            "trian": {},
        }
    )
    for part in (
        "data.crop_px: Expected int",
        "data.symmetries: Expected bool",
        "seed: Expected int",
        "unknown key loss.imag",
        "loss.tv is empty",
        "train: steps is 0",
        "generator.kind is 'vdsr'",
        "unknown key trian (did you mean 'train'?)",
    ):
        assert part in message


def test_the_kind_chooses_which_keys_exist():
    config = parse_config({"generator": {"kind": "paper_srgan", "lstm": False}}, "test")
    assert config.generator == PaperSrganConfig(lstm=False)
    assert "unknown key generator.lstm" in refusal("generator.lstm=false")


@settings(max_examples=12, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "seed": st.integers(-(2**70), 2**70),
            # Without control characters and surrogates, which YAML cannot hold.
            "name": st.text(st.characters(categories=["L", "N", "P", "Z"]), max_size=12),
            "generator": st.sampled_from(
                [{"kind": "paper_srgan", "lstm": False}, {"kind": "recurrent", "recurrence": "none"}]
            ),
            "generator_optimizer": st.fixed_dictionaries(
                {
                    "learning_rate": st.floats(1e-300, 1e300),
                    "betas": st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
                }
            ),
            "train": st.fixed_dictionaries({"processes": st.none() | st.integers(1, 99)}),
            "tracking": st.fixed_dictionaries(
                {"tags": st.dictionaries(st.text("abc1.-", min_size=1), st.text("yesno1~ "), max_size=2)}
            ),
        }
    )
)
def test_what_is_saved_is_read_back_as_the_same(tmp_path_factory, tree):
    config = parse_config(tree, "test")
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_the_defaults_survive_the_round_trip_and_can_be_honoured(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    config = load_config(tmp_path / "empty.yaml")
    assert config == Config()
    check_config(config)


def test_flattened_keys_are_dotted():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- a\n- b\n", "holds a list; expected a mapping"),
        (b"a: [1\n", "is not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read as a YAML text file"),
        (
            b"a: &a [x]\n"
            + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 9)) for c in range(97, 110)),
            "stand for more than 100,000 values",
        ),
        (b"a: &a [1, *a]\n", "stand for more than 100,000 values"),
        (b"a: " + 5000 * b"[", "nested too deeply"),
        (b"a: " + 5000 * b"1", "holds a value that cannot be read"),
        (b"a: 2024-13-45\n", "holds a value that cannot be read"),
        (b"a: 1\na: 2\n", "given twice: a"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, expected):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(BadConfigError, match=expected):
        read_yaml(path)


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(BadConfigError, match="no configuration file"):
        read_yaml(tmp_path / "no.yaml")
    with pytest.raises(BadConfigError, match="cannot be read"):
        read_yaml(Path(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["generator={kind: paper_srgan, input_px: 24}"],
            [r"data.val_crop_px is 36.*generator.input_px = 24"],
        ),
        (["generator.kind=paper_srgan"], [r"data.crop_px is 24", r"data.val_crop_px is 36"]),
        (["train={steps: 5, warmup_steps: 5}"], [r"train.warmup_steps 5 leaves no step of train.steps 5"]),
        (["data.clip_frames=1"], [r"loss.temporal needs data.clip_frames of at least 2"]),
        (["data.clip_frames=2"], [r"data.clip_frames is 2; discriminator spatiotemporal needs at least 3"]),
        (["scale=7"], [r"expected a scale of 1, 2, 3, 4, found 7"]),
        (["discriminator.levels=6", "data.crop_px=12"], [r"data.crop_px 12 x scale 4 is below the 64 px"]),
        (["train.warmup_steps=9", "loss={image: 0, tv: 0, temporal: 0}"], [r"warmup_steps needs a weight above 0"]),
        (
            ["data.clip_frames=1", "train={steps: 5, warmup_steps: 6}"],
            [r"train.warmup_steps 6", r"loss.temporal needs"],
        ),
    ],
)
def test_sections_that_do_not_fit_together_are_refused(overrides, expected):
    config = parse_config(apply_overrides({}, overrides), "test")
    for pattern in expected:
        with pytest.raises(BadConfigError, match=pattern):
            check_config(config)


@pytest.mark.parametrize(
    "overrides",
    [
        ["generator={kind: paper_srgan, lstm: false}"],
        ["generator={kind: paper_srgan, input_px: 24}", "data.val_crop_px=24"],
        ["train={steps: 5, warmup_steps: 5}", "adversarial.weight=0", "loss.perceptual=0"],
        ["data.clip_frames=1", "loss.temporal=0", "discriminator.kind=srgan"],
    ],
)
def test_sections_that_fit_together_are_accepted(overrides):
    check_config(parse_config(apply_overrides({}, overrides), "test"))


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("scale: 4\nloss:\n  tv: 1\nscale: 2\n")
    with pytest.raises(BadConfigError, match="given twice: scale"):
        read_yaml(path)
