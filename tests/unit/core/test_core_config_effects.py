"""Every leaf of a configuration says what it may change."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import pytest

from vsr_dist.config import Config, config_tree, parse_config
from vsr_dist.core.config_io import effect_of, effects, flatten, io, speed
from vsr_dist.models import DISCRIMINATORS, GENERATORS
from vsr_dist.training.tracking import TrackingConfig


@dataclass(frozen=True)
class Inner:
    width: int = 3
    threads: int = speed(2)


@dataclass(frozen=True)
class Outer:
    name: str = io("x")
    pair: tuple[int, int] = (1, 2)
    tags: dict[str, str] = field(default_factory=dict, metadata={"effect": "io"})
    inner: Inner = field(default_factory=Inner)


def test_marked_fields_keep_their_defaults():
    assert Outer().name == "x"
    assert Inner().threads == 2
    assert [effect_of(entry) for entry in fields(Inner)] == ["result", "speed"]


def test_effects_are_listed_by_dotted_key_down_to_the_leaves():
    expected = {"name": "io", "pair": "result", "inner.width": "result", "inner.threads": "speed"}
    assert effects(Outer()) == expected
    assert effects(Outer(tags={"a": "1", "b": "2"})) == {**expected, "tags.a": "io", "tags.b": "io"}


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
def test_every_leaf_of_the_configuration_is_classified(generator, discriminator):
    tree = {"generator": {"kind": generator}, "discriminator": {"kind": discriminator}}
    config = replace(parse_config(tree, "test"), tracking=TrackingConfig(tags={"team": "a"}))
    kinds = effects(config)
    assert kinds.keys() == flatten(config_tree(config)).keys()
    assert set(kinds.values()) == {"result", "speed", "io"}


def test_what_is_not_a_result_is_listed_here():
    """A resumed run may change these and nothing else, so a new entry wants thought."""
    kinds = effects(Config())
    assert {key for key, kind in kinds.items() if kind == "speed"} == {
        "data.reader_threads",
        "data.read_ahead_batches",
        "data.frame_cache_mb",
        "train.threads",
    }
    assert {key for key, kind in kinds.items() if kind == "io"} == {
        "name",
        "run_dir",
        *(
            f"data.{key}"
            for key in (
                "root",
                "on_bad_sample",
                "max_bad_samples",
                "check_hashes",
                "cache_dir",
                "cache_gb",
                "fetch_tries",
                "fetch_backoff_s",
                "s3_endpoint",
            )
        ),
        *(f"tracking.{key}" for key in ("mlflow", "uri", "experiment", "log_model", "system_metrics")),
        *(
            f"train.{key}"
            for key in (
                "processes",
                "log_every",
                "validate_every",
                "checkpoint_every",
                "keep_checkpoints",
                "best_metric",
                "best_mode",
                "allow_batch_norm",
                "pictures",
                "perceptual_metric",
            )
        ),
    }
