"""The moving average against a plain loop in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vsr_dist.training.ema import decay_at, make_ema


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.PReLU(), nn.Linear(5, 2))


def drift(module, step):
    """Move the weights and statistics as training would."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    module.train()(torch.randn(8, 4, generator=generator))


@pytest.mark.parametrize(
    ("num_updates", "decay", "expected"),
    [(0, 0.999, 0.1), (1, 0.999, 2 / 11), (8, 0.999, 0.5), (8, 0.3, 0.3), (10**6, 0.999, 0.999)],
)
def test_the_memory_is_short_at_first(num_updates, decay, expected):
    assert decay_at(num_updates, decay) == pytest.approx(expected)


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.999])
def test_parameters_follow_the_recurrence(decay):
    module = network()
    ema = make_ema(module, decay)
    expected = None
    for step in range(30):
        drift(module, step)
        ema.update_parameters(module)
        current = [parameter.detach().double() for parameter in module.parameters()]
        if expected is None:
            expected = current  # the first update copies
        else:
            kept = min(decay, (1 + step) / (10 + step))
            expected = [kept * old + (1 - kept) * new for old, new in zip(expected, current, strict=True)]
    for parameter, value in zip(ema.module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.double(), value, rtol=1e-5, atol=1e-5)


def test_buffers_are_those_of_the_network():
    module = network()
    ema = make_ema(module, 0.9)
    for step in range(3):
        drift(module, step)
        ema.update_parameters(module)
    for (name, buffer), averaged in zip(module.named_buffers(), ema.module.buffers(), strict=True):
        assert torch.equal(buffer, averaged), name
    assert module[1].num_batches_tracked == 3


def test_the_average_is_a_copy_that_needs_no_gradient():
    module = network()
    ema = make_ema(module, 0.9)
    before = [parameter.clone() for parameter in ema.module.parameters()]
    drift(module, 0)
    for parameter, kept in zip(ema.module.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)
        assert not parameter.requires_grad
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_restored_average_goes_on_as_if_never_stopped():
    def run(stop_after):
        module = network()
        ema = make_ema(module, 0.999)
        for step in range(6):
            if step == stop_after:
                state = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
                ema = make_ema(network(), 0.999)
                ema.load_state_dict(state)
            drift(module, step)
            ema.update_parameters(module)
        return ema.state_dict()

    whole, resumed = run(None), run(4)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
