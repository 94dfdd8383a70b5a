"""The relativistic average needs the mean logit of the whole batch: two processes must learn what one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from forked import forks
from torch.nn.parallel import DistributedDataParallel

from vsr_dist.core.collectives import differentiable_mean_over_ranks
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.models import build_discriminator
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig

PROCESSES = 2
# The paired objective beside it shows that what needs no mean is right without one.
NAMES = ("ragan", "rpgan")


def discriminator():
    torch.manual_seed(0)
    return build_discriminator(SpatiotemporalConfig(filters=4, levels=1), 4).double()


def batch():
    """Real, fake and condition, (4, 3, 3, 8, 8); the halves differ, so that their means do."""
    torch.manual_seed(1)
    real, fake, bicubic = torch.rand(3, 4, 3, 3, 8, 8, dtype=torch.float64)
    real[2:] *= 0.2
    fake[:2] *= 0.5
    return real, fake, bicubic


def gradients(network, clips, name):
    """Of D's loss over D's weights and of G's loss over the generated clip, and both losses."""
    real, fake, bicubic = clips
    fake = fake.clone().requires_grad_()
    objective = ADVERSARIAL[name]
    loss_d = objective.discriminator_loss(network(real, bicubic), network(fake.detach(), bicubic))
    loss_d.backward()
    by_weight = [parameter.grad.clone() for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        real_logits = network(real, bicubic)
    loss_g = objective.generator_loss(real_logits, network(fake, bicubic))
    (by_clip,) = torch.autograd.grad(loss_g, fake)
    return {"weights": by_weight, "clip": by_clip, "losses": torch.stack((loss_d, loss_g)).detach()}


def work(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    half = [part.chunk(PROCESSES)[rank] for part in batch()]
    values = torch.tensor([1.0 + rank, 5.0], requires_grad=True)
    mean = differentiable_mean_over_ranks(values)
    # Rank 0 minimises m, rank 1 minimises 3 m: each value's share is (1 + 3) / 2.
    (mean * (1.0 + 2.0 * rank)).sum().backward()
    found = {name: gradients(DistributedDataParallel(discriminator()), half, name) for name in NAMES}
    torch.save({**found, "mean": mean.detach(), "mean_grad": values.grad}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(work, args=(str(folder),), nprocs=PROCESSES, start_method=forks().get_start_method())
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_have_the_gradients_of_one(ranks, name):
    parts = [rank[name] for rank in ranks]
    whole = gradients(discriminator(), batch(), name)
    for part in parts:
        for found, expected in zip(part["weights"], whole["weights"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    # DDP averages over ranks what reaches the generator's weights, so each clip's gradient is held against that mean.
    clips = torch.cat([part["clip"] for part in parts]) / PROCESSES
    torch.testing.assert_close(clips, whole["clip"], rtol=1e-9, atol=1e-12)
    losses = torch.stack([part["losses"] for part in parts]).mean(0)
    torch.testing.assert_close(losses, whole["losses"], rtol=1e-12, atol=1e-12)


def test_the_means_gradient_takes_in_every_ranks_loss(ranks):
    for part in ranks:
        assert part["mean"].tolist() == [1.5, 5.0]
        assert part["mean_grad"].tolist() == [2.0, 2.0]


def test_alone_the_mean_is_the_value_itself():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    assert differentiable_mean_over_ranks(values) is values
