"""Interval means, the world of ranks and collectives, all without a process group."""

from __future__ import annotations

import pytest
import torch

from vsr_dist.core import collectives
from vsr_dist.core.collectives import World
from vsr_dist.training.trainer import IntervalMeans


def test_means_are_over_the_steps_that_held_the_name():
    means = IntervalMeans()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(10.0)})
    means.add({"a": torch.tensor(2.0)})
    means.add({"a": torch.tensor(6.0), "b": torch.tensor(-4.0)})
    assert means.pop() == {"a": 3.0, "b": 3.0}


def test_reading_begins_a_new_interval():
    means = IntervalMeans()
    assert means.pop() == {}
    means.add({"a": torch.tensor(1.0)})
    assert means.pop() == {"a": 1.0}
    assert means.pop() == {}
    means.add({"b": torch.tensor(5.0)})
    assert means.pop() == {"b": 5.0}


def test_sums_are_kept_in_double_precision_and_hold_no_graph():
    means = IntervalMeans()
    weight = torch.ones((), requires_grad=True)
    for value in [1e8, 1.0, 1.0, -1e8]:
        means.add({"loss": weight * value})
    assert means.pop() == {"loss": 0.5}  # float32 sums would lose both ones


def test_the_order_of_names_is_kept():
    means = IntervalMeans()
    means.add({"z": torch.tensor(1.0), "a": torch.tensor(2.0), "m": torch.tensor(3.0)})
    assert list(means.pop()) == ["z", "a", "m"]


def test_non_finite_values_stay_visible():
    means = IntervalMeans()
    means.add({"a": torch.tensor(float("nan")), "b": torch.tensor(float("inf"))})
    values = means.pop()
    assert values["a"] != values["a"]
    assert values["b"] == float("inf")


@pytest.mark.parametrize(("rank", "is_main"), [(0, True), (1, False), (7, False)])
def test_rank_0_is_the_main_one(rank, is_main):
    assert World(rank, 8).is_main is is_main


def test_without_a_process_group_every_collective_is_the_one_rank_answer():
    assert not collectives.is_active()
    assert collectives.current_world() == World(rank=0, size=1)
    values = torch.tensor([1.0, 2.5])
    assert torch.equal(collectives.mean_over_ranks(values), values)
    assert collectives.gather_lists([3, "a"]) == [3, "a"]
    assert collectives.from_main({"step": 4}) == {"step": 4}
    collectives.barrier()
    collectives.shutdown()


def test_a_gathered_list_is_a_new_list():
    mine = [1]
    gathered = collectives.gather_lists(mine)
    gathered.append(2)
    assert mine == [1]
