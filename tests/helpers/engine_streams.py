"""What the tests of the engine share: small generators whose every part acts, and clips to run them on."""

from __future__ import annotations

import numpy as np
import torch

from vsr_dist.inference.engine import StreamOptions, VideoStream
from vsr_dist.models import build_generator
from vsr_dist.models.espcn import EspcnConfig
from vsr_dist.models.paper_srgan import PaperSrganConfig
from vsr_dist.models.recurrent import RecurrentConfig
from vsr_dist.models.vsrnet import VsrnetConfig

CPU = torch.device("cpu")
SMALL = {"channels": 6, "num_blocks": 2}
GRU = RecurrentConfig(**SMALL)
LEARNED = RecurrentConfig(**SMALL, recurrence="convlstm", alignment="learned", smoothing="gaussian")
PACKED = RecurrentConfig(**SMALL, alignment="packed", smoothing="ema")
STATELESS = RecurrentConfig(**SMALL, recurrence="none")
LOOKAHEAD = RecurrentConfig(**SMALL, recurrence="rlsp", lookahead_frames=1)
LOOKAHEAD_PACKED = RecurrentConfig(**SMALL, recurrence="rlsp", lookahead_frames=1, alignment="packed")
RRN = RecurrentConfig(**SMALL, recurrence="rrn")
STEPWISE = {"gru": GRU, "learned": LEARNED, "packed": PACKED, "stateless": STATELESS, "rrn": RRN}
STEPWISE |= {"lookahead": LOOKAHEAD, "lookahead_packed": LOOKAHEAD_PACKED}
WINDOWED = {
    "espcn": EspcnConfig(channels=6, inner_channels=4),
    "vsrnet": VsrnetConfig(channels=4, inner_channels=4, num_frames=3),
    "bidirectional": RecurrentConfig(**SMALL, bidirectional=True),
    "paper": PaperSrganConfig(channels=4, num_blocks=1, lstm_hidden=8, input_px=16),
}
ALL = {**STEPWISE, **WINDOWED}


def make(config, scale=2):
    """In eval mode, with no weight at zero: a fresh one is bicubic, with its memory and its flow switched off."""
    torch.manual_seed(0)
    generator = build_generator(config, scale)
    with torch.no_grad():
        for parameter in generator.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return generator.eval().requires_grad_(False)


def stream_of(generator, **options):
    return VideoStream(generator, StreamOptions(**options), CPU)


def run(stream, frames):
    """All results as one array (T, Y, X, 3)."""
    images = [image for frame in frames for image in stream.push(frame)]
    return np.stack(images + stream.finish())


def difference(found, expected):
    """The largest difference in levels."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return int(np.abs(found.astype(np.int64) - expected).max())
