"""The places of `vsr-dist upscale`: what it writes to, what it must not replace or remove, the GPU of each process."""

from __future__ import annotations

import os

import torch
from upscale_media import generator, moving, said, times_of, upscale, write_video

from vsr_dist import upscale as upscale_command
from vsr_dist.core.collectives import World
from vsr_dist.inference.fingerprint import fingerprint

__all__ = ["generator"]


def test_a_place_that_cannot_be_written_is_an_error_before_work_begins(tmp_path, generator, capsys, monkeypatch):
    source = write_video(tmp_path / "in.mp4", moving(3))
    (tmp_path / "file").write_text("")
    assert upscale(generator, source, tmp_path / "file" / "out.mp4") == 2
    assert "cannot be made" in said(capsys)[1]
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: path != folder)
    assert upscale(generator, source, folder / "out.mp4") == 2
    out, error = said(capsys)
    assert "cannot be written" in error
    assert out == ""
    assert upscale(generator, source, tmp_path / "out.mp4", "--work-dir", str(tmp_path / "file" / "work")) == 2
    assert "--work-dir" in said(capsys)[1]


def test_a_link_is_no_place_for_frames(tmp_path, generator, capsys):
    source = write_video(tmp_path / "in.mp4", moving(3))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert upscale(generator, source, tmp_path / "link") == 2
    assert f"is a link; give the folder {tmp_path / 'folder'} itself" in said(capsys)[1]


def test_inputs_of_equal_size_and_ends_are_told_apart(tmp_path):
    """An interrupted job must not go on with a film that was changed in the middle."""
    content = bytes(4 << 20)
    for name, middle in (("a", b"0"), ("b", b"1" * (1 << 17))):
        (tmp_path / name).mkdir()
        changed = content[: 2 << 20] + middle + content[(2 << 20) + len(middle) :]
        (tmp_path / name / "in.mp4").write_bytes(changed)
    first, second = (fingerprint(tmp_path / name / "in.mp4") for name in "ab")
    assert first["bytes"] == second["bytes"] and first["digest"] != second["digest"]


def test_what_exists_is_not_overwritten_unless_asked(tmp_path, generator, capsys):
    source = write_video(tmp_path / "in.mp4", moving(3))
    output = tmp_path / "out.mp4"
    output.write_text("old")
    assert upscale(generator, source, output) == 2
    assert "--overwrite" in said(capsys)[1]
    assert output.read_text() == "old"
    (tmp_path / "folder.mp4").mkdir()
    assert upscale(generator, source, tmp_path / "folder.mp4") == 2
    assert "a folder with the name of a video" in said(capsys)[1]
    assert upscale(generator, source, source, "--overwrite") == 2
    assert upscale(generator, source, output, "--overwrite") == 0
    assert len(times_of(output)) == 3


def test_no_file_of_the_user_is_replaced_or_removed(tmp_path, generator, capsys):
    source = write_video(tmp_path / "in.mp4", moving(3))
    output, (content, work) = tmp_path / "out.mp4", (source.read_bytes(), tmp_path / "work")
    work.mkdir()
    (work / "thesis.txt").write_text("")
    (tmp_path / "plain").write_text("old")
    for target, options, words in (
        (output, ("--work-dir", str(work)), "holds thesis.txt"),
        (output, ("--work-dir", str(tmp_path)), "inside each other"),
        (tmp_path / "new" / "out.mp4", ("--work-dir", str(tmp_path / "new")), "inside each other"),
        (tmp_path / "new", ("--work-dir", str(tmp_path / "new" / "work")), "inside each other"),
        (output, ("--compare", str(source), "--overwrite"), "is INPUT or OUTPUT"),
        (output, ("--compare", str(output)), "is INPUT or OUTPUT"),
        (tmp_path / "plain", ("--overwrite",), "is a file"),
        (tmp_path / "..", ("--overwrite",), "no name of its own"),
        (output, ("--start", "9"), "its last is at 0.07 s"),
    ):
        assert upscale(generator, source, target, *options) == 2
        assert words in said(capsys)[1]
    assert source.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "plain", "work"]
    assert upscale(generator, source, output, "--work-dir", str(tmp_path / "other")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4", "plain", "work"]


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    # As PyTorch does: a device without a number is the current one.
    monkeypatch.setattr(upscale_command, "find_device", lambda name: torch.device({"cuda": "cuda:0"}.get(name, name)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert upscale_command._device("cuda", World(2, 4)) == torch.device("cuda:2")
    assert upscale_command._device("cuda:1", World(2, 4)) == torch.device("cuda:1")
    assert upscale_command._device("cuda", World()) == torch.device("cuda:0")
    assert upscale_command._device("cpu", World(2, 4)) == torch.device("cpu")
