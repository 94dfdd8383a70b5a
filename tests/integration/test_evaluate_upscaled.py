"""`evaluate` measures the frames that `upscale` delivers: to the last digit."""

from __future__ import annotations

import numpy as np
import pytest
from engine_streams import WINDOWED, make
from evaluate_films import evaluate, write_frames
from upscale_media import make_generator, moving, write_video

from vsr_dist.cli import main
from vsr_dist.inference.generator_io import save_generator
from vsr_dist.models.recurrent import RecurrentConfig

REMEMBERS = RecurrentConfig(channels=4, num_blocks=1, recurrence="convgru")
METRICS = ("--metrics", "psnr_y,ssim_y,psnr_rgb,ssim_rgb,tdiff", "--no-pictures")


@pytest.fixture
def film(tmp_path):
    """(input, truth) as folders of frames with a scene cut, at frame 12 of 24."""
    shots = moving(12, 96, 128), [255 - frame[::-1] for frame in moving(12, 96, 128)]
    real = np.stack([frame for shot in shots for frame in shot])
    return write_frames(tmp_path / "low", real[:, ::2, ::2]), write_frames(tmp_path / "real", real)


@pytest.mark.parametrize("kind", ["recurrent", "paper", "bidirectional", "vsrnet"])
def test_the_numbers_are_those_of_the_delivered_frames(tmp_path, film, kind):
    """With a state that is reset at the cut, tiles that are blended, and windows that end at the cut."""
    low, real = film
    config = REMEMBERS if kind == "recurrent" else WINDOWED[kind]
    (tmp_path / "run").mkdir()
    save_generator(tmp_path / "run", make(config), config, {})
    ours = evaluate(tmp_path / "e", "--checkpoint", tmp_path / "run", "--low", low, "--real", real, *METRICS)
    assert main(["upscale", str(low), str(tmp_path / "frames"), "--checkpoint", str(tmp_path / "run")]) == 0
    delivered = evaluate(tmp_path / "d", "--fake", tmp_path / "frames", "--low", low, "--real", real, *METRICS)
    for scope, by_method in ours["table"].items():
        assert delivered["table"][scope]["result"] == by_method["ours"]
        assert delivered["table"][scope]["bicubic"] == by_method["bicubic"]


def test_a_video_is_decoded_as_upscale_decodes_it(tmp_path, film):
    """Ten bits, tagged as BT.709, delivered as lossless FFV1."""
    low, real = film
    frames = [frame[::2, ::2] for frame in moving(12, 96, 128, np.uint16)]
    source = write_video(
        tmp_path / "in.mkv", frames, pixel_format="yuv420p10le", matrix=1, tags=(1, 1, 1, 1), options={"crf": "4"}
    )
    run = make_generator(tmp_path / "run", noise=0.2)
    sides = ("--low", source, "--real", real, "--frames", 12, *METRICS)
    ours = evaluate(tmp_path / "e", "--checkpoint", run, *sides)
    lossless = ("--codec", "ffv1", "--pixel-format", "gbrp16le")
    assert main(["upscale", str(source), str(tmp_path / "o.mkv"), "--checkpoint", str(run), *lossless]) == 0
    delivered = evaluate(tmp_path / "d", "--fake", tmp_path / "o.mkv", *sides)
    assert delivered["table"]["overall"]["result"] == ours["table"]["overall"]["ours"]
    # The colours are those of the frames before encoding: the tags of the video are used.
    plain = evaluate(tmp_path / "p", "--checkpoint", run, "--low", low, "--real", real, "--frames", 12, *METRICS)
    assert ours["table"]["overall"]["ours"]["psnr_rgb"] == pytest.approx(
        plain["table"]["overall"]["ours"]["psnr_rgb"], abs=0.2
    )


@pytest.mark.parametrize("options", [("--tile", "20", "--tile-overlap", "0"), ("--precision", "bf16"), ("--no-cuts",)])
def test_the_options_of_the_network_are_those_of_upscale(tmp_path, film, options):
    """And they act: without the reset at the cut, for instance, the numbers are other ones."""
    low, real = film
    run = make_generator(tmp_path / "run", noise=0.2)
    sides = ("--low", low, "--real", real, *METRICS)
    ours = evaluate(tmp_path / "e", "--checkpoint", run, *sides, *options)
    assert main(["upscale", str(low), str(tmp_path / "f"), "--checkpoint", str(run), *options]) == 0
    delivered = evaluate(tmp_path / "d", "--fake", tmp_path / "f", *sides)
    assert delivered["table"]["overall"]["result"] == ours["table"]["overall"]["ours"]
    plain = evaluate(tmp_path / "p", "--checkpoint", run, *sides)
    assert plain["table"]["overall"]["ours"] != ours["table"]["overall"]["ours"]
    assert "The network ran with" in (tmp_path / "e" / "report.md").read_text()
    assert "The network ran with" not in (tmp_path / "p" / "report.md").read_text()
