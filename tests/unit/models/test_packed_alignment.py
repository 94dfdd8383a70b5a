"""A generator that wants packed flow: what its configuration asks of the data, and a step of its training."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from sharding.pack import PackJob, pack
from sharding.plan import PackOptions
from vsr_dist.build import build_parts, make_accelerator, open_inputs
from vsr_dist.config import check_config, parse_config
from vsr_dist.core.errors import BadConfigError

PACKED = {"channels": 8, "num_blocks": 2, "alignment": "packed", "smoothing": "ema"}
DATA = {"clip_frames": 3, "crop_px": 24, "val_crop_px": 24, "batch_clips": 2, "val_clips": 2, "flow": True}


def parse(generator=None, **data):
    return parse_config(
        {
            "data": {**DATA, **data},
            "generator": {**PACKED, **(generator or {})},
            "discriminator": {"filters": 8, "levels": 2},
            "loss": {"perceptual": 0.0},
        },
        "test",
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A picture of 160 x 192 px that moves by 4 and 8 px per frame, packed with DIS flow."""
    folder = tmp_path_factory.mktemp("moving")
    noise = cv2.GaussianBlur(np.random.default_rng(5).normal(size=(240, 320, 3)), (0, 0), 9)
    texture = np.interp(noise, (noise.min(), noise.max()), (0, 255)).round().astype(np.uint8)
    (folder / "pan").mkdir()
    for number in range(12):
        view = texture[4 * number : 4 * number + 160, 8 * number : 8 * number + 192]
        cv2.imwrite(str(folder / "pan" / f"{number:02d}.png"), view)
    options = PackOptions(clip_frames=6, flow="dis", holdout_tail=0.5)
    pack(PackJob(folder / "set", (folder / "pan",), options=options))
    return folder / "set"


pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.mark.parametrize(
    ("generator", "data", "words"),
    [
        ({}, {"flow": False}, "set data.flow=true, and pack the data with --flow dis"),
        ({"flow_method": "farneback"}, {"flow": False}, "--flow farneback"),
        ({}, {"val_crop_px": 20}, "data.val_crop_px is 20; generator recurrent as configured needs at least 24 px"),
        ({"alignment": "learned"}, {"flow": False, "clip_frames": 1}, "needs at least 2"),
    ],
)
def test_what_the_data_cannot_serve_is_refused(generator, data, words):
    with pytest.raises(BadConfigError, match=words):
        check_config(parse(generator, **data))


@pytest.mark.parametrize("generator", [{}, {"bidirectional": True}, {"alignment": "learned"}], ids=str)
def test_what_it_can_serve_is_accepted(generator):
    check_config(parse(generator))


def test_another_method_than_the_packed_one_is_refused(root):
    accelerator, world = make_accelerator(parse().train)
    del accelerator
    config = parse({"flow_method": "farneback"}, root=str(root))
    with pytest.raises(BadConfigError, match=r"flow_method is farneback, but .* was packed with --flow dis; set"):
        open_inputs(config, world)
    # Without that alignment the method is nobody's business.
    open_inputs(replace(config, generator=parse({"alignment": "learned"}).generator), world)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_step_and_a_validation(root, bidirectional, monkeypatch):
    config = parse({"bidirectional": bidirectional}, root=str(root))
    accelerator, world = make_accelerator(config.train)
    parts = build_parts(config, accelerator, world, open_inputs(config, world))
    generator = parts.live.modules["generator"]
    torch.nn.init.normal_(generator.memory.project.weight, std=0.1)
    torch.nn.init.normal_(generator.tail[0].weight, std=0.1)
    batch = next(parts.loader.batches(0))
    before = [parameter.detach().clone() for parameter in generator.parameters()]
    with monkeypatch.context() as patch:
        patch.setattr("vsr_dist.models.alignment.estimate_flow", None)  # training must not need it
        scalars = parts.step.run(iter([batch]), parts.controllers.plan(1.0), 0)[0].scalars
    assert all(torch.isfinite(value).all() for value in scalars.values())
    assert any(not torch.equal(old, new) for old, new in zip(before, generator.parameters(), strict=True))
    # The held-out windows carry no flow; the generator estimates it.
    assert parts.validator.batch.flow_BTKCHW is None
    assert np.isfinite(parts.validator.quality(generator)["val/psnr_y"])
