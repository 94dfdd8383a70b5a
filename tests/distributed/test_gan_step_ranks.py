"""The GAN step on several ranks: the undivided batch in float64, who talks when, and set-ups that are refused."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState, GradientState, PartialState
from forked import forks
from small_gan import batch_of, make_step, plan_of, play, small_networks

from vsr_dist.core.collectives import Vote, shutdown
from vsr_dist.core.errors import NonFiniteError
from vsr_dist.losses.objective import LossConfig
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig
from vsr_dist.training.config import AdversarialConfig

pytestmark = pytest.mark.slow
STEPS = {2: 10, 4: 3}


class Double(torch.nn.Module):
    """A network in float64, whatever comes in."""

    def __init__(self, network):
        super().__init__()
        self.network = network.double()

    def forward(self, first, second=None, full_precision=False):
        second = None if second is None else second.double()
        if full_precision:
            return self.network(first.double(), second, full_precision=True)
        return self.network(first.double(), second)


def double_step():
    torch.manual_seed(0)
    networks = small_networks(SpatiotemporalConfig(filters=4, levels=1, dropout=0.0), channels=4, num_blocks=1)
    return make_step(
        LossConfig(perceptual=0.0),
        AdversarialConfig(loss="ragan", weight=0.1, r1_gamma=0.1, r2_gamma=0.1),
        networks=tuple(map(Double, networks)),
        optimizer=torch.optim.Adam,
        max_grad_norm=0.5,
    )


def batch(step, rank=0, size=1):
    """This rank's part of the global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    low = torch.randint(0, 256, (4, 3, 3, 8, 8), generator=generator, dtype=torch.uint8)
    real = torch.randint(0, 256, (4, 3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return batch_of(*(clips.chunk(size)[rank] for clips in (low, real)))


def weights(step):
    networks = [step.accelerator.unwrap_model(player.network) for player in (step.generator, step.discriminator)]
    return [parameter.detach().clone() for network in networks for parameter in network.parameters()]


def train(step, rank, size, num_steps):
    for number in range(num_steps):
        play(step, batch(number, rank, size), number=number)
    return weights(step)


def traffic(step, rank, size):
    """Bytes of gradients that each network exchanges in G's turn and in D's."""
    sent = {"generator": 0, "discriminator": 0}

    def count(name, bucket):
        sent[name] += bucket.buffer().numel() * bucket.buffer().element_size()
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    for name in sent:
        getattr(step, name).network.register_comm_hook(name, count)
    plan, network, found = plan_of(step), step.discriminator.network, {}
    clips = step._on_device(batch(0, rank, size), plan)
    with step.accelerator.accumulate(step.generator.network, network):
        fake, _ = step._generator_turn(clips, plan, [])
        found["G's turn"] = dict(sent)
        found["D's gradients"] = sum(p.grad is not None for p in network.parameters())
        sent.update(dict.fromkeys(sent, 0))
        step._discriminator_turn(clips, fake.detach(), plan, [])
        found["D's turn"] = dict(sent)
    return found


def fault(step, rank, size):
    """Rank 1 alone reads pictures whose loss is not finite: what each rank then says, and whether it moved."""
    before = weights(step)
    step.loss = LossConfig(perceptual=0.0, tv=0.0, temporal=0.0)
    read = batch(0, rank, size)
    real = read.real_BTCYX.float() + (math.inf if rank == 1 else 0.0)
    try:
        play(step, replace(read, real_BTCYX=real), plan=plan_of(step, 0.0))
    except NonFiniteError as error:
        return str(error), all(torch.equal(a, b) for a, b in zip(before, weights(step), strict=True))
    return "", False


def votes(rank):
    """Answers of a vote in which rank 1 alone says yes, in the third call."""
    vote = Vote()
    answers = [vote(rank == 1 and number == 2) for number in range(5)]
    vote.close()
    return answers


def work(rank, size, port, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    found = {"weights": train(double_step(), rank, size, STEPS[size]), "votes": votes(rank)}
    if size == 2:
        found["traffic"] = traffic(double_step(), rank, size)
        found["fault"] = fault(double_step(), rank, size)
    torch.save(found, Path(folder) / f"{rank}.pt")
    shutdown()


def ranks_of(size, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(work, args=(size, port, str(folder)), nprocs=size, start_method=forks().get_start_method())
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return ranks_of(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return ranks_of(4, tmp_path_factory.mktemp("four"))


@pytest.fixture
def alone():
    yield
    for kept in (AcceleratorState, GradientState, PartialState):
        kept._reset_state()


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_learn_what_one_learns_from_the_undivided_batch(request, alone, size):
    ranks = request.getfixturevalue({2: "two", 4: "four"}[size])
    expected = train(double_step(), 0, 1, STEPS[size])
    assert len(expected) == len(ranks[0]["weights"]) > 10
    for rank in ranks:
        # The last is D's last bias, which an objective on differences does not see: Adam makes steps of its rounding.
        for found, whole in list(zip(rank["weights"], expected, strict=True))[:-1]:
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    for first, other in zip(ranks[0]["weights"], ranks[-1]["weights"], strict=True):
        assert torch.equal(first, other)


def test_the_discriminator_is_silent_in_the_generators_turn_and_the_other_way_round(two):
    for rank in two:
        found = rank["traffic"]
        assert found["G's turn"]["generator"] > 0
        assert found["G's turn"]["discriminator"] == 0
        assert found["D's gradients"] == 0
        assert found["D's turn"]["discriminator"] > 0
        assert found["D's turn"]["generator"] == 0


def test_a_fault_on_one_rank_stops_all_before_the_step_and_names_the_term(two):
    for rank in two:
        message, untouched = rank["fault"]
        assert "not finite: the term(s) loss_g/image" in message
        assert untouched


def test_a_yes_of_one_rank_is_the_answer_of_all_at_the_next_call(two, four):
    for rank in (*two, *four):
        assert rank["votes"] == [False, False, False, True, False]


def test_alone_a_vote_is_the_answer_itself():
    vote = Vote()
    assert [vote(False), vote(True), vote(False)] == [False, True, False]
    assert vote.close() is False
