"""Several parts of one upscaling job, in one process: what each counts."""

from __future__ import annotations

from contextlib import ExitStack
from fractions import Fraction

import torch
from upscale_media import generator, moving, write_video

from vsr_dist.core.collectives import World
from vsr_dist.inference.generator_io import load_generator
from vsr_dist.inference.video import video_in
from vsr_dist.inference.video.job import UpscaleOptions, begin, finish, prepare, run_part
from vsr_dist.inference.video.video_in import MOVED, MediaReader, Place, read_facts

__all__ = ["generator"]


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


def test_damage_before_a_place_is_not_counted_again(tmp_path, monkeypatch):
    source = write_video(tmp_path / "in.mkv", moving(40))
    facts = read_facts(source, Fraction(25))
    decoded = video_in._decoded

    def stumbling(container, damage):
        before = 0
        for number, frame in enumerate(decoded(container, damage)):
            # Two frames have the time of the frame before.
            frame.pts = before if number in (10, 30) else frame.pts
            before = frame.pts
            yield frame

    monkeypatch.setattr(video_in, "_decoded", stumbling)

    def moved(place):
        return [frame.damage[MOVED] for frame in MediaReader(facts).frames(place)]

    assert [number for number, is_moved in enumerate(moved(Place())) if is_moved] == [10, 30]
    assert [number for number, is_moved in enumerate(moved(Place(20))) if is_moved] == [10]
