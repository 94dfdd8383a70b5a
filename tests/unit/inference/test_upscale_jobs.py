"""Jobs of `vsr-dist upscale`: damage, options, folders, places, a kill in the middle, several parts."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from forked import Forked
from upscale_media import clip, decoded, generator, make_generator, moving, said, times_of, upscale, write_video

from vsr_dist import upscale as upscale_command
from vsr_dist.core.collectives import World
from vsr_dist.inference.frames import fingerprint
from vsr_dist.inference.generator_io import load_generator
from vsr_dist.inference.video import video_in
from vsr_dist.inference.video.job import UpscaleOptions, begin, finish, prepare, run_part
from vsr_dist.inference.video.video_in import MOVED, MediaReader, Place, read_facts

__all__ = ["clip", "generator"]


def test_of_a_damaged_video_what_can_be_read_is_kept_and_the_loss_is_said(tmp_path, generator, capsys):
    whole = write_video(tmp_path / "whole.mkv", moving(60, 48, 64), options={"g": "10", "crf": "1"})
    data = whole.read_bytes()
    source = tmp_path / "in.mkv"
    source.write_bytes(data[: len(data) * 6 // 10])
    assert upscale(generator, source, tmp_path / "out.mp4") == 0
    _, error = said(capsys)
    assert len(error.splitlines()) == 1
    num_kept = len(times_of(tmp_path / "out.mp4"))
    assert 20 < num_kept < 60
    assert error.startswith("warning: ")
    assert f"Kept {num_kept} of 60 frames" in error


def test_packets_that_cannot_be_decoded_are_skipped(tmp_path, generator, capsys):
    options = {"crf": "1", "g": "1", "bf": "0"}
    source = write_video(tmp_path / "in.mp4", moving(20, 48, 64), options=options)
    data = bytearray(source.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    source.write_bytes(data)
    assert upscale(generator, source, tmp_path / "out.mp4") == 0
    assert "packets cannot be decoded" in said(capsys)[1]
    assert 10 <= len(times_of(tmp_path / "out.mp4")) <= 20


@pytest.mark.parametrize("content", [b"", b"no video at all", None])
def test_what_is_no_video_is_an_error(tmp_path, generator, capsys, content):
    source = tmp_path / "in.mp4"
    if content is None:  # its index lies at its end
        data = write_video(tmp_path / "whole.mp4", moving(20)).read_bytes()
        content = data[: len(data) // 2]
    source.write_bytes(content)
    assert upscale(generator, source, tmp_path / "out.mp4") == 2
    assert str(source) in said(capsys)[1]
    assert not (tmp_path / "out.mp4").exists()


def test_a_video_with_hidden_frames_is_not_damaged(tmp_path, generator, capsys):
    """As after a lossless trim: the header of an mp4 counts frames that its edit list hides."""
    whole = write_video(tmp_path / "whole.mp4", moving(30), options={"g": "10", "bf": "0"})
    with av.open(str(whole)) as source, av.open(str(tmp_path / "in.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                # What lies before 0 is hidden.
                packet.pts, packet.dts = packet.pts - 5 * packet.duration, packet.dts - 5 * packet.duration
                target.mux(packet)
    assert len(times_of(tmp_path / "in.mp4")) == 25
    assert upscale(generator, tmp_path / "in.mp4", tmp_path / "out.mp4") == 0
    assert said(capsys)[1] == ""
    assert len(times_of(tmp_path / "out.mp4")) == 25


def test_names_with_colons(tmp_path, generator, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "in.mp4", moving(3)).rename("12:30.mp4")
    assert upscale(generator, "12:30.mp4", "a:b.mkv", "--compare", "c:d.mp4") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["12:30.mp4", "a:b.mkv", "c:d.mp4"]


def test_a_pipe_is_an_error_that_says_why(tmp_path, generator, capsys):
    os.mkfifo(tmp_path / "in.mp4")
    assert upscale(generator, tmp_path / "in.mp4", tmp_path / "out.mp4") == 2
    assert "is a pipe or a device" in said(capsys)[1]


def test_a_path_with_spaces_and_other_letters(tmp_path, generator):
    folder = tmp_path / "\u00dcn\u00efcode ordner \u52d5\u753b"
    folder.mkdir()
    source = write_video(folder / "mein Film 1.mp4", moving(3))
    assert upscale(generator, source, folder / "gr\u00f6\u00dfer 2.mp4") == 0
    assert len(times_of(folder / "gr\u00f6\u00dfer 2.mp4")) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--codec", "libx264x"), ["did you mean 'libx264'", "ffv1"]),
        (("--quality", "99"), ["0 to 51"]),
        (("--preset", "fastt"), ["did you mean 'fast'"]),
        (("--codec", "ffv1", "--quality", "3"), ["lossless"]),
        (("--pixel-format", "yuv411p"), ["yuv420p"]),
        (("--frames", "0"), ["--frames", "at least 1, found 0"]),
        (("--fps", "30/0"), ["24 or 30000/1001 above 0, found 30/0"]),
        (("--codec", "prores_ks"), ["prores_ks", ".mkv"]),
    ],
)
def test_options_that_cannot_be_are_errors_that_teach(tmp_path, generator, clip, capsys, options, words):
    assert upscale(generator, clip, tmp_path / "out.mp4", *options) == 2
    error = said(capsys)[1]
    assert len(error.splitlines()) == 1
    for word in words:
        assert word in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("codec", "suffix", "name"),
    [
        ("libx265", ".mp4", "hevc"),
        ("libsvtav1", ".webm", "av1"),
        ("libvpx-vp9", ".webm", "vp9"),
        ("prores_ks", ".mov", "prores"),
        ("ffv1", ".mkv", "ffv1"),
    ],
)
def test_other_codecs(tmp_path, generator, codec, suffix, name):
    source = write_video(tmp_path / "in.mp4", moving(5, 48, 64))
    output = tmp_path / f"out{suffix}"
    assert upscale(generator, source, output, "--codec", codec, "--segment-frames", "2") == 0
    with av.open(str(output)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == name
    assert np.abs(np.subtract(times_of(output), times_of(source))).max() <= 0.0005
    _, inputs = decoded(source)
    _, results = decoded(output)
    mean = np.mean(results, axis=(0, 1, 2)) / (257 if results[0].dtype == np.uint16 else 1)
    assert np.abs(mean - np.mean(inputs, axis=(0, 1, 2))).max() < 1.5


def test_folders_of_images_in_and_out(tmp_path, generator, capsys):
    frames = moving(5, 20, 30)
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / "in" / f"shot_{number + 8}.png"), frame[..., ::-1])
    assert upscale(generator, tmp_path / "in", tmp_path / "out", "--segment-frames", "2") == 0
    names = [f"shot_{number}.png" for number in range(8, 13)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    for name, frame in zip(names, frames, strict=True):
        result = cv2.imread(str(tmp_path / "out" / name))[..., ::-1]
        assert np.abs(result.mean(axis=(0, 1)) - frame.mean(axis=(0, 1))).max() < 1
    assert upscale(generator, tmp_path / "in", tmp_path / "out.mp4", "--fps", "30000/1001") == 0
    assert [float(time) for time in times_of(tmp_path / "out.mp4")] == pytest.approx(
        [n * 1001 / 30000 for n in range(5)]
    )
    assert upscale(generator, tmp_path / "in", tmp_path / "out") == 2
    assert "--overwrite" in said(capsys)[1]
    assert upscale(generator, tmp_path / "in", tmp_path / "out", "--overwrite") == 0
    (tmp_path / "out" / "thesis.txt").write_text("")
    assert upscale(generator, tmp_path / "in", tmp_path / "out", "--overwrite") == 2
    assert "thesis.txt" in said(capsys)[1]


def test_a_video_to_a_folder_of_frames_with_their_times(tmp_path, generator, capsys):
    source = write_video(
        tmp_path / "in.mkv", moving(3, dtype=np.uint16), pixel_format="yuv420p10le", pts=[0, 1, 5], audio="flac"
    )
    assert upscale(generator, source, tmp_path / "frames") == 0
    assert "dropped" in said(capsys)[0]
    lines = (tmp_path / "frames" / "timestamps.txt").read_text().splitlines()
    assert [float(line) for line in lines[1:]] == pytest.approx([0, 33.3, 166.7], abs=0.5)
    picture = cv2.imread(str(tmp_path / "frames" / "00000002.png"), cv2.IMREAD_UNCHANGED)
    assert (picture.shape, picture.dtype) == ((48, 64, 3), np.uint16)
    assert upscale(generator, source, tmp_path / "part", "--start", "0.03") == 0
    lines = (tmp_path / "part" / "timestamps.txt").read_text().splitlines()
    assert [float(line) for line in lines[1:]] == pytest.approx([0, 133.3], abs=1.1)


def test_comparison_shows_bicubic_and_the_result(tmp_path):
    network = make_generator(tmp_path / "run", noise=0.2)
    source = write_video(tmp_path / "in.mp4", moving(4, 48, 160), pts=[0, 1, 4, 5])
    compare = tmp_path / "compare.mp4"
    assert upscale(network, source, tmp_path / "out.mp4", "--compare", str(compare)) == 0
    assert times_of(compare) == times_of(source)
    _, frames = decoded(compare)
    assert frames[0].shape == (96 + 28, 2 * 320 + 4, 3)
    left, right = frames[0][28:, :320].astype(float), frames[0][28:, -320:].astype(float)
    bicubic = cv2.resize(decoded(source)[1][0], (320, 96), interpolation=cv2.INTER_CUBIC)
    result = decoded(tmp_path / "out.mp4")[1][0]
    assert np.abs(left - bicubic).mean() < 4 < np.abs(left - result).mean()
    assert np.abs(right - result).mean() < 4


def wait_for(done, process):
    limit_s = time.monotonic() + 60
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit_s
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_job_goes_on_and_ends_in_the_same_bytes(tmp_path, capsys):
    output = "out.mkv"
    network = make_generator(tmp_path / "run", noise=0.2)
    # Two shots, so that the detector's memory counts, too.
    frames = [*moving(60, 48, 64), *(255 - frame for frame in moving(60, 48, 64))]
    source = write_video(tmp_path / "in.mp4", frames, pts=[3 * n + n % 3 for n in range(120)], audio="aac")
    options = ["--segment-frames", "7", "--preset", "veryfast"]
    assert upscale(network, source, tmp_path / "undisturbed" / output, *options) == 0
    arguments = [str(source), str(tmp_path / output), "--checkpoint", str(network), *options]
    process = Forked("vsr_dist.upscale", arguments, tmp_path / "run")
    work = tmp_path / f".{output}.work"
    wait_for((work / "part_000" / "000002").exists, process)
    process.kill()
    process.wait()
    assert not (tmp_path / output).exists()
    capsys.readouterr()
    assert upscale(network, source, tmp_path / output, *options, "--segment-frames", "8") == 2
    error = said(capsys)[1]
    assert "options.segment_frames was 7 and is 8" in error
    assert str(work) in error
    other = make_generator(tmp_path / "other", noise=0.1)
    assert upscale(other, source, tmp_path / output, *options) == 2
    assert "generator.digest" in said(capsys)[1]
    assert upscale(network, source, tmp_path / output, *options) == 0
    assert re.search(r"resuming: (14|21|28|35|42|49) of 120 frames are done", said(capsys)[0])
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / output).read_bytes() == (tmp_path / "undisturbed" / output).read_bytes()


_ENCODE = """
import sys, zlib
from pathlib import Path
from upscale_media import moving
from vsr_dist.inference.video.video_in import read_facts
from vsr_dist.inference.video.video_out import PacketWriter, choose_encoder
settings, _ = choose_encoder(read_facts(Path(sys.argv[1]), 25), 1, "mp4")
writer = PacketWriter(Path(sys.argv[2]), settings)
for number, frame in enumerate(moving(24, 48, 64)):
    writer.write(frame[:, ::-1] if number % 3 else frame, 512 * number)
writer.finish()
"""


@pytest.mark.slow
def test_the_encoder_does_not_depend_on_what_its_memory_held(tmp_path):
    """What glibc fills fresh memory with must not show in the packets: else a resumed job ends in other bytes."""
    source = write_video(tmp_path / "in.mp4", moving(2, 48, 64))
    helpers = Path(__file__).parents[2] / "helpers"
    for fill in ("85", "170"):
        variables = {"MALLOC_PERTURB_": fill, "PYTHONPATH": f"{helpers}:{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, "-c", _ENCODE, str(source), str(tmp_path / fill)]
        subprocess.run(command, check=True, env={**os.environ, **variables}, cwd=helpers.parents[1])
    assert (tmp_path / "85").read_bytes() == (tmp_path / "170").read_bytes()


@pytest.mark.slow
def test_ctrl_c_ends_all_threads_and_says_how_to_go_on(tmp_path):
    network = make_generator(tmp_path / "run", noise=0.2)
    source = write_video(tmp_path / "in.mp4", moving(400, 96, 128), options={"preset": "ultrafast"})
    arguments = [str(source), str(tmp_path / "out.mp4"), "--checkpoint", str(network), "--segment-frames", "5"]
    process = Forked("vsr_dist.upscale", arguments, tmp_path / "run")
    work = tmp_path / ".out.mp4.work"
    wait_for((work / "part_000" / "state.safetensors").exists, process)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "run the same command again" in out
    assert error == "error: interrupted\n"


def test_two_jobs_for_one_output_do_not_mix(tmp_path, generator, clip, capsys):
    work = tmp_path / ".out.mp4.work"
    work.mkdir()
    with (work / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert upscale(generator, clip, tmp_path / "out.mp4") == 2
        assert "another process" in said(capsys)[1]
    assert upscale(generator, clip, tmp_path / "out.mp4") == 0


def test_the_plan_is_plain_to_read(tmp_path, generator, clip, monkeypatch):
    kept = {}
    monkeypatch.setattr("vsr_dist.inference.video.job.shutil.rmtree", lambda path, **_: kept.update(path=Path(path)))
    assert upscale(generator, clip, tmp_path / "out.mp4") == 0
    job = json.loads((kept["path"] / "job.json").read_text())
    assert job["input"]["name"] == "in.mp4"


def test_a_place_that_cannot_be_written_is_an_error_before_work_begins(tmp_path, generator, clip, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert upscale(generator, clip, tmp_path / "file" / "out.mp4") == 2
    assert "cannot be created" in said(capsys)[1]
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: path != folder)
    assert upscale(generator, clip, folder / "out.mp4") == 2
    out, error = said(capsys)
    assert "is not writable" in error
    assert out == ""
    assert upscale(generator, clip, tmp_path / "out.mp4", "--work-dir", str(tmp_path / "file" / "work")) == 2
    assert "--work-dir" in said(capsys)[1]


def test_a_link_is_no_place_for_frames(tmp_path, generator, clip, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert upscale(generator, clip, tmp_path / "link") == 2
    assert f"is a link; use its target {tmp_path / 'folder'}" in said(capsys)[1]


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
        (output, ("--work-dir", str(work)), "contains thesis.txt"),
        (output, ("--work-dir", str(tmp_path)), "inside each other"),
        (tmp_path / "new" / "out.mp4", ("--work-dir", str(tmp_path / "new")), "inside each other"),
        (tmp_path / "new", ("--work-dir", str(tmp_path / "new" / "work")), "inside each other"),
        (output, ("--compare", str(source), "--overwrite"), "is INPUT or OUTPUT"),
        (output, ("--compare", str(output)), "is INPUT or OUTPUT"),
        (tmp_path / "plain", ("--overwrite",), "is a file"),
        (tmp_path / "..", ("--overwrite",), "has no file name"),
        (output, ("--start", "9"), "the last one is at 0.07 s"),
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


def test_a_scene_cut_near_the_border_of_two_parts_is_counted_once(tmp_path, generator):
    network, _ = load_generator(generator)
    # The border is at 30. Both parts see all of these cuts: the second from its warm-up on, and the first knows of one
    # at 26 when it has frame 34.
    for number, first_of_second_shot in enumerate((26, 30, 33)):
        shown, hidden = moving(first_of_second_shot, 48, 64), moving(60 - first_of_second_shot, 48, 64)
        source = write_video(tmp_path / f"{number}.mp4", [*shown, *(255 - frame for frame in hidden)])
        options = UpscaleOptions(source, tmp_path / f"out{number}.mp4", torch.device("cpu"), "tiny", segment_frames=7)
        job = prepare(options, network)
        with ExitStack() as stack:
            parts = begin(job, 2, stack)
            assert [part.num_expected for part in parts] == [30, 30]
            for rank in (1, 0):
                run_part(job, parts, World(rank, 2), stack)
            assert finish(job, parts).num_cuts == 1


def test_a_place_behind_a_jump_of_the_clock_is_found(tmp_path):
    part = write_video(tmp_path / "part.ts", moving(20)).read_bytes()
    (tmp_path / "in.ts").write_bytes(part + part)
    facts = read_facts(tmp_path / "in.ts", Fraction(25))
    every = list(MediaReader(facts).frames(Place()))
    assert [round((b.pts - a.pts) * facts.time_base * 30, 6) for a, b in pairwise(every)] == [1] * 39
    for number in (5, 25):
        found = list(MediaReader(facts).frames(Place(number, every[number - 1].pts)))
        assert [frame.pts for frame in found] == [frame.pts for frame in every[number:]]
        np.testing.assert_array_equal(found[0].rgb, every[number].rgb)


def test_damage_before_a_place_is_not_counted_again(tmp_path, monkeypatch):
    source = write_video(tmp_path / "in.mkv", moving(40))
    facts = read_facts(source, Fraction(25))
    decoded = video_in._decoded

    def stumbling(container, damage, offsets):
        before = 0
        for number, frame in enumerate(decoded(container, damage, offsets)):
            # Two frames have the time of the frame before.
            frame.pts = before if number in (10, 30) else frame.pts
            before = frame.pts
            yield frame

    monkeypatch.setattr(video_in, "_decoded", stumbling)

    def moved(place):
        return [frame.damage[MOVED] for frame in MediaReader(facts).frames(place)]

    assert [number for number, is_moved in enumerate(moved(Place())) if is_moved] == [10, 30]
    assert [number for number, is_moved in enumerate(moved(Place(20))) if is_moved] == [10]
