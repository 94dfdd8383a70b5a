"""The GAN step on several ranks: the undivided batch in float64, who talks when, and set-ups that are refused."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from forked import forks
from torch.nn.parallel import DistributedDataParallel

from vsr_dist.core.collectives import Vote, shutdown
from vsr_dist.core.errors import BadConfigError, NonFiniteError
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.losses.objective import LossConfig
from vsr_dist.models import build_discriminator, build_generator
from vsr_dist.models.recurrent import RecurrentConfig
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.training.adversary import AdversaryConfig
from vsr_dist.training.gan_step import GanStep, Players

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


def make_step():
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    generator = Double(build_generator(RecurrentConfig(channels=4, num_blocks=1), 4))
    torch.nn.init.normal_(generator.network.tail[0].weight, std=0.02)
    discriminator = Double(build_discriminator(SpatiotemporalConfig(filters=4, levels=1, dropout=0.0), 4))
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3) for net in (generator, discriminator)]
    players = Players(*accelerator.prepare(generator, discriminator, *optimizers))
    return GanStep(
        accelerator,
        players,
        LossConfig(perceptual=0.0, adversarial=0.1),
        ADVERSARIAL["ragan"],
        AdversaryConfig(r1_gamma=0.1, r2_gamma=0.1),
        scale=4,
        max_grad_norm=0.5,
        perceptual_frames=0,
    )


def batch(step):
    generator = torch.Generator().manual_seed(step)
    low = torch.randint(0, 256, (4, 3, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return low, torch.randint(0, 256, (4, 3, 3, 32, 32), generator=generator, dtype=torch.uint8)


def weights(step):
    accelerator = step.accelerator
    networks = [accelerator.unwrap_model(net) for net in (step.players.generator, step.players.discriminator)]
    return [parameter.detach().clone() for network in networks for parameter in network.parameters()]


def train(step, rank, size, num_steps):
    for number in range(num_steps):
        step.micro_step(*(clips.chunk(size)[rank] for clips in batch(number)), adversarial_factor=1.0)
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
        getattr(step.players, name).register_comm_hook(name, count)
    low, real = (clips.chunk(size)[rank].float() / 255 for clips in batch(0))
    bicubic, found = bicubic_upsample(low, 4), {}
    with step.accelerator.accumulate(step.players.generator, step.players.discriminator):
        fake, _ = step._generator_step(low, real, bicubic, 1.0)
        found["G's turn"] = dict(sent)
        found["D's gradients"] = sum(p.grad is not None for p in step.players.discriminator.parameters())
        sent.update(dict.fromkeys(sent, 0))
        step._discriminator_turn(real, fake.detach(), bicubic)
        found["D's turn"] = dict(sent)
    return found


def fault(step, rank, size):
    """Rank 1 alone reads pictures whose loss is not finite: what each rank then says, and whether it moved."""
    before = weights(step)
    step.loss = LossConfig(perceptual=0.0, adversarial=0.0, tv=0.0, temporal=0.0)
    low, real = (clips.chunk(size)[rank] for clips in batch(0))
    try:
        with step.accelerator.accumulate(step.players.generator, step.players.discriminator):
            real = real.float() / 255 + (math.inf if rank == 1 else 0.0)
            step._generator_step(low.float() / 255, real, None, 0.0)
    except NonFiniteError as error:
        return str(error), all(torch.equal(a, b) for a, b in zip(before, weights(step), strict=True))
    return "", False


def refusal():
    network = DistributedDataParallel(torch.nn.Linear(2, 2), static_graph=True)
    try:
        GanStep(
            None, Players(network, network, None, None), LossConfig(), None, AdversaryConfig(),
            scale=4, max_grad_norm=1.0, perceptual_frames=0,
        )  # fmt: skip
    except BadConfigError as error:
        return str(error)
    return ""


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
    found = {"weights": train(make_step(), rank, size, STEPS[size]), "votes": votes(rank)}
    if size == 2:
        found |= {"traffic": traffic(make_step(), rank, size), "refusal": refusal()}
        found["fault"] = fault(make_step(), rank, size)
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
    expected = train(make_step(), 0, 1, STEPS[size])
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


def test_a_static_graph_is_refused(two):
    assert all("static_graph" in rank["refusal"] for rank in two)


def test_a_yes_of_one_rank_is_the_answer_of_all_at_the_next_call(two, four):
    for rank in (*two, *four):
        assert rank["votes"] == [False, False, False, True, False]


def test_alone_a_vote_is_the_answer_itself():
    vote = Vote()
    assert [vote(False), vote(True), vote(False)] == [False, True, False]
    assert vote.close() is False
