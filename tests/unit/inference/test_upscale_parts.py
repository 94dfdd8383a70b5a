"""Several parts of one upscaling job, in one process: what each counts."""

from __future__ import annotations

from contextlib import ExitStack
from fractions import Fraction

import numpy as np
import torch
from upscale_media import generator, moving, write_video

from vsr_dist.core.world import World
from vsr_dist.inference.generator_io import load_generator
from vsr_dist.inference.video.colour import ToRgb
from vsr_dist.inference.video.media_facts import read_facts
from vsr_dist.inference.video.media_in import MediaReader, Place
from vsr_dist.inference.video.upscale_job import begin, finish, prepare, run_part
from vsr_dist.inference.video.upscale_options import UpscaleOptions

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
            plan = begin(job, 2, stack)
            assert len(plan.parts) == 2
            # The first part is there when rank 0 looks after the others.
            run_part(job, plan, World(1, 2))
            run_part(job, plan, World(0, 2))
            assert finish(job, plan).num_cuts == 1


def test_damage_before_a_place_is_not_counted_again(tmp_path, monkeypatch):
    source = write_video(tmp_path / "in.mkv", moving(40))
    facts = read_facts(source, Fraction(25))
    packets = MediaReader._packets

    def stumbling(self, container):
        before = 0
        for number, frame in enumerate(packets(self, container)):
            # Two frames have the time of the frame before.
            frame.pts = before if number in (10, 30) else frame.pts
            before = frame.pts
            yield frame

    monkeypatch.setattr(MediaReader, "_packets", stumbling)

    def moved(place, counted_from=None):
        reader = MediaReader(facts, ToRgb(facts.tags, deep=False), deinterlace=False)
        return np.array([frame.damage.moved_times for frame in reader.frames(place, counted_from)])

    assert list(moved(Place())[[9, 10, 29, 30, 39]]) == [0, 1, 1, 2, 2]
    assert list(moved(Place(20))[[0, 9, 10, 19]]) == [0, 0, 1, 1]
    assert moved(Place(5), round(20 / 30 / facts.time_base))[-1] == 1
