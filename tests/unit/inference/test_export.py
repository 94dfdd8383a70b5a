"""A written graph runs without this package and gives the generator's images, frame after frame."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from engine_streams import GRU, LEARNED, LOOKAHEAD, PACKED, SMALL, WINDOWED, make

from vsr_dist.cli import main
from vsr_dist.inference import exported
from vsr_dist.inference.generator_io import save_generator
from vsr_dist.models.recurrent import RecurrentConfig

ALIGNED = RecurrentConfig(**SMALL, recurrence="convlstm", alignment="learned")


@pytest.fixture
def checkpoint(tmp_path):
    def save(config):
        folder = tmp_path / config.kind
        folder.mkdir()
        save_generator(folder, make(config), config, {"run": "demo"})
        return str(folder)

    return save


def frames_of(height, width, count=5):
    return np.random.default_rng(0).random((count, 1, 3, height, width), np.float32)


def from_the_generator(config, frames):
    generator, state, images = make(config), None, []
    for frame in frames:
        image, state = generator.step(torch.from_numpy(frame), state)
        images.append(image.clamp(0, 1).numpy())
    return np.stack(images)


def test_the_step_in_onnxruntime(checkpoint, tmp_path, capsys):
    out = tmp_path / "deep" / "step.onnx"
    assert main(["export", "--checkpoint", checkpoint(GRU), "--format", "onnx", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "frame, state_0 -> image, next_state_0; rows and columns free" in text
    assert "all states are zeros" in text
    assert [path.name for path in out.parent.iterdir()] == ["step.onnx"]
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    # Any size, also one that is odd; zeros at the beginning of the shot.
    for height, width in ((31, 45), (40, 24)):
        frames, state, images = frames_of(height, width), np.zeros((1, 6, height, width), np.float32), []
        for frame in frames:
            image, state = session.run(["image", "next_state_0"], {"frame": frame, "state_0": state})
            images.append(image)
        assert np.abs(np.stack(images) - from_the_generator(GRU, frames)).max() <= 1e-5
    described = json.loads({p.key: p.value for p in onnx.load(out).metadata_props}["vsr_dist"])
    assert described["inputs"]["state_0"] == [1, 6, "height", "width"]
    assert described["outputs"]["image"] == [1, 3, "2*height", "2*width"]
    assert described["states"] == {"state_0": "hidden state of the recurrence"}
    assert described["provenance"] == {"run": "demo"}
    assert described["scale"] == 2


def test_the_step_in_torch(checkpoint, tmp_path, capsys):
    out = tmp_path / "step.pt2"
    assert main(["export", "--checkpoint", checkpoint(GRU), "--format", "torch", "--out", str(out)]) == 0
    assert "largest difference from the generator over four inputs" in capsys.readouterr().out
    extra = {"vsr_dist.json": ""}
    step = torch.export.load(out, extra_files=extra).module()
    frames, state, images = frames_of(31, 45), (torch.zeros(1, 6, 31, 45),), []
    for frame in frames:
        image, *state = step(torch.from_numpy(frame), tuple(state))
        images.append(image.numpy())
    assert np.abs(np.stack(images) - from_the_generator(GRU, frames)).max() <= 1e-6
    assert json.loads(extra["vsr_dist.json"])["format_version"] == 1


@pytest.mark.slow
def test_an_aligned_step_carries_the_frame_before(checkpoint, tmp_path):
    out = tmp_path / "step.onnx"
    size = ["--height", "32", "--width", "44"]
    assert main(["export", "--checkpoint", checkpoint(ALIGNED), "--format", "onnx", "--out", str(out), *size]) == 0
    described = json.loads({p.key: p.value for p in onnx.load(out).metadata_props}["vsr_dist"])
    assert described["states"]["state_2"] == "frame before"
    assert described["inputs"]["state_2"] == [1, 3, 32, 44]
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    frames, images = frames_of(32, 44), []
    state = [np.zeros(shape.shape, np.float32) for shape in session.get_inputs()[1:]]
    for frame in frames:
        names = [one.name for one in session.get_inputs()]
        image, *state = session.run(None, dict(zip(names, [frame, *state], strict=True)))
        images.append(image)
    assert np.abs(np.stack(images) - from_the_generator(ALIGNED, frames)).max() <= 1e-4


def test_with_lookahead_the_next_frame_is_an_input(checkpoint, tmp_path, capsys):
    out = tmp_path / "step.onnx"
    assert main(["export", "--checkpoint", checkpoint(LOOKAHEAD), "--format", "onnx", "--out", str(out)]) == 0
    assert "frame, next_frame, state_0, state_1, state_2 -> image" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    described = json.loads({p.key: p.value for p in onnx.load(out).metadata_props}["vsr_dist"])
    assert list(described["states"].values()) == [
        "hidden state of the recurrence",
        "image before, folded by space-to-depth",
        "frame before",
    ]
    assert "at the end of a shot it is the frame itself" in described["rule"]
    frames = frames_of(31, 45)
    state = [np.zeros((1, channels, 31, 45), np.float32) for channels in (6, 12, 3)]
    names, images = [one.name for one in session.get_inputs()], []
    for frame, following in zip(frames, [*frames[1:], frames[-1]], strict=True):
        image, *state = session.run(None, dict(zip(names, [frame, following, *state], strict=True)))
        images.append(image)
    expected = make(LOOKAHEAD)(torch.from_numpy(frames).transpose(0, 1)).clamp(0, 1)[0]
    assert np.abs(np.concatenate(images) - expected.numpy()).max() <= 1e-5


@pytest.mark.parametrize(("kind", "num_frames"), [("espcn", 1), ("bidirectional", 3)])
def test_a_window_is_exported_where_there_is_no_step(kind, num_frames, checkpoint, tmp_path, capsys):
    out, config = tmp_path / "window.pt2", WINDOWED[kind]
    command = ["export", "--checkpoint", checkpoint(config), "--format", "torch", "--out", str(out)]
    assert main(command + ([] if num_frames == 1 else ["--frames", str(num_frames)])) == 0
    assert "frames -> images" in capsys.readouterr().out
    low = torch.from_numpy(frames_of(30, 26, num_frames)).transpose(0, 1)
    (images,) = torch.export.load(out).module()(low)
    torch.testing.assert_close(images, make(config)(low).clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (PACKED, [], "its optical flow is computed by OpenCV"),
        (WINDOWED["vsrnet"], [], "its optical flow is computed by OpenCV"),
        (LEARNED, [], "its initial state is not all zeros"),
        (GRU, ["--frames", "3"], "--frames is for generators that run on windows"),
        (GRU, ["--height", "30"], "--height and --width together"),
        (GRU, ["--height", "0", "--width", "5"], "--height of at least 1, found 0"),
        (WINDOWED["paper"], ["--height", "20", "--width", "20"], "takes 16 x 16 px only, found 20 x 20"),
    ],
)
def test_what_cannot_be_exported_says_why(config, options, words, checkpoint, tmp_path, capsys):
    out = tmp_path / "out.pt2"
    command = ["export", "--checkpoint", checkpoint(config), "--format", "torch", "--out", str(out), *options]
    assert main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert not out.exists()


def test_the_suffix_says_the_format(checkpoint, tmp_path, capsys):
    command = ["export", "--checkpoint", checkpoint(GRU), "--format", "onnx", "--out", str(tmp_path / "x.pt2")]
    assert main(command) == 2
    assert "--out with the suffix .onnx for --format onnx" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "sub" / "x.pt2")
    assert main(["export", "--checkpoint", checkpoint(GRU), "--format", "torch", "--out", out]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_graph_that_differs_is_not_kept(checkpoint, tmp_path, capsys, monkeypatch):
    def wrong(exportable, path, description):
        weights = next(exportable.module.parameters())
        multiple_px = write(exportable, path, description)
        weights.add_(0.01)
        return multiple_px

    write = exported.write_torch
    monkeypatch.setattr("vsr_dist.export.write_torch", wrong)
    command = ["export", "--checkpoint", checkpoint(GRU), "--format", "torch", "--out", str(tmp_path / "x.pt2")]
    assert main(command) == 2
    assert "differs from the generator by" in capsys.readouterr().err
    assert not list(tmp_path.glob("*pt2"))


def test_the_missing_extra_is_named(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    command = ["export", "--checkpoint", checkpoint(GRU), "--format", "onnx", "--out", str(tmp_path / "x.onnx")]
    assert main(command) == 2
    assert "pip install 'vsr-dist[onnx]'" in capsys.readouterr().err
