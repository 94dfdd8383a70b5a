"""Overhead of `vsr-dist upscale` over its network, its memory, and a check that the input's tracks are kept.

    python benchmarks/upscale_pipeline.py [--frames 16] [--long 2000] [--checkpoint RUN]

Time: a whole job on a real clip, scaled to 854x480, with the encoder's default preset and a fast one, compared with the
network's time for the same frames without decoding and encoding. Memory: the peak of a fresh process for a short and a
long video of tiny frames with sound. Writes benchmarks/results/upscale_pipeline.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from footage import endless_shot
from machine import describe_machine

from vsr_dist.core.collectives import World
from vsr_dist.inference.engine import StreamOptions, VideoStream
from vsr_dist.inference.frames import Frame
from vsr_dist.inference.generator_io import save_generator
from vsr_dist.inference.video.job import UpscaleOptions, begin, finish, prepare, run_part
from vsr_dist.inference.video.video_in import MediaReader, Place, read_facts
from vsr_dist.models import Generator, build_generator
from vsr_dist.models.recurrent import RecurrentConfig
from vsr_dist.upscaler import find_device, find_generator

RESULT = Path(__file__).parent / "results" / "upscale_pipeline.json"
WIDTH, HEIGHT = 854, 480
TIME_LIMIT, MEMORY_LIMIT = 1.1, 1.05
PRESETS = ("medium", "veryfast")


def make_input(path: Path, num_frames: int, width: int, height: int) -> Path:
    """A real clip, forward and backward, with AAC sound of the same length and uneven times."""
    time_base, rate = Fraction(1, 15360), 48000
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "18"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.time_base = video.time_base = time_base
        sound = output.add_stream("aac", rate=rate)
        for number, frame in zip(range(num_frames), endless_shot("carphone_pristine"), strict=False):
            small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC)
            picture = av.VideoFrame.from_ndarray(small, format="rgb24")
            picture.pts, picture.time_base = number * 512 + 170 * (number % 3 == 1), time_base
            output.mux(video.encode(picture))
        output.mux(video.encode(None))
        wave = (np.sin(np.arange(num_frames * rate // 30) / 20) * 0.3).astype(np.float32)
        for first in range(0, len(wave), 1024):
            piece = av.AudioFrame.from_ndarray(np.stack([wave[first : first + 1024]] * 2), "fltp", "stereo")
            piece.sample_rate, piece.pts, piece.time_base = rate, first, Fraction(1, rate)
            output.mux(sound.encode(piece))
        output.mux(sound.encode(None))
    return path


def kept(source: Path, output: Path) -> dict[str, object]:
    """Frames, times, lengths and sound of both files, and whether they are the same."""
    found = []
    for path in (source, output):
        with av.open(str(path)) as container:
            film, sound = container.streams.video[0], container.streams.audio[0]
            facts = {
                "video_s": float(film.duration * film.time_base),
                "audio_s": float(sound.duration * sound.time_base),
            }
            packets: dict[int, list[object]] = {film.index: [], sound.index: []}
            for packet in container.demux(film, sound):
                if packet.size:
                    is_film = packet.stream.index == film.index
                    packets[packet.stream.index].append(packet.pts * packet.time_base if is_film else bytes(packet))
            facts["frames"] = len(packets[film.index])
            found.append((facts, sorted(packets[film.index]), packets[sound.index]))
    (facts, times, sounds), (facts_out, times_out, sounds_out) = found
    return {
        "input": facts,
        "output": facts_out,
        "times_equal": times == times_out,
        "sound_packets_equal": sounds == sounds_out,
    }


def network_alone_s(stream: VideoStream, frames: list[Frame]) -> float:
    """The network's own time for these frames, with nothing beside it."""
    begin_s = time.perf_counter()
    for frame in frames:
        stream.push(frame)
    stream.finish()
    return time.perf_counter() - begin_s


def whole_job_s(options: UpscaleOptions, generator: Generator) -> tuple[float, float]:
    """Time of a whole job, from reading the head of the input to the finished file, and of the network inside it."""
    with ExitStack() as stack:
        begin_s = time.perf_counter()
        job = prepare(options, generator)
        parts = begin(job, 1, stack)
        network_s = run_part(job, parts, World(), stack)
        finish(job, parts)
        return time.perf_counter() - begin_s, network_s


def measure_time(folder: Path, checkpoint: str | None, device: torch.device, num_frames: int) -> dict[str, object]:
    """Interleaved: the network alone before and behind each job; a job is compared with the mean of the two."""
    source, output = make_input(folder / "input.mp4", num_frames, WIDTH, HEIGHT), folder / "output.mp4"
    generator, _ = find_generator(checkpoint)
    facts = read_facts(source, Fraction(25))
    frames = [frame.rgb for frame in MediaReader(facts).frames(Place())]
    stream = VideoStream(generator, StreamOptions(), device)
    stream.push(frames[0])  # the first call also measures the network
    stream.finish()
    alone = [network_alone_s(stream, frames)]
    jobs = {}
    for preset in PRESETS:
        options = UpscaleOptions(source, output, device, checkpoint or "default", preset=preset, overwrite=True)
        total_s, inside_s = whole_job_s(options, generator)
        alone.append(network_alone_s(stream, frames))
        beside_s = (alone[-2] + alone[-1]) / 2
        jobs[preset] = {
            "total_s": round(total_s, 2),
            "network_inside_s": round(inside_s, 2),
            "total_by_network_alone": round(total_s / beside_s, 3),
            "total_by_network_inside": round(total_s / inside_s, 3),
        }
    return {
        "input": f"{WIDTH}x{HEIGHT}, {num_frames} frames",
        "network_alone_s": [round(seconds, 2) for seconds in alone],
        "by_preset_of_libx264": jobs,
        "limit": TIME_LIMIT,
        "kept": kept(source, output),
    }


def peak_mb(source: Path, output: Path, checkpoint: Path) -> float:
    """High-water mark of the memory of one run of the command, in 1e6 bytes."""
    command = [sys.executable, "-m", "vsr_dist.upscale", str(source), str(output), "--checkpoint", str(checkpoint)]
    command += ["--preset", "veryfast", "--segment-frames", "100", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with status {status}")
    return usage.ru_maxrss * 1024 / 1e6


def measure_memory(folder: Path, lengths: tuple[int, int]) -> dict[str, object]:
    checkpoint = folder / "tiny"
    checkpoint.mkdir()
    torch.manual_seed(0)
    config = RecurrentConfig(channels=2, num_blocks=1)
    save_generator(checkpoint, build_generator(config, 2), config, {})
    peaks, everything = {}, {}
    for length in lengths:
        source, output = make_input(folder / f"{length}.mp4", length, 96, 64), folder / f"{length}_out.mp4"
        peaks[length] = round(peak_mb(source, output, checkpoint), 1)
        everything[length] = kept(source, output)
    return {
        "input": "96x64",
        "peak_mb": peaks,
        "long_by_short": round(peaks[lengths[1]] / peaks[lengths[0]], 4),
        "limit": MEMORY_LIMIT,
        "kept": everything,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16, help="frames of the timed jobs (default: %(default)s)")
    parser.add_argument(
        "--long", type=int, default=2000, help="frames of the long video, for memory (default: %(default)s)"
    )
    parser.add_argument("--checkpoint", help="run directory or weight file (default: the packaged generator)")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    parser.add_argument(
        "--result", type=Path, default=RESULT, help="output file (default: benchmarks/results/upscale_pipeline.json)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory = measure_memory(folder, (50, arguments.long))
        spent = measure_time(folder, arguments.checkpoint, find_device(arguments.device), arguments.frames)
    result = {
        "command": f"python benchmarks/upscale_pipeline.py --frames {arguments.frames} --long {arguments.long}",
        "network": arguments.checkpoint or "the generator that ships: recurrent, 32 channels, 6 blocks, x4",
        "time": spent,
        "memory": memory,
        "machine": {**describe_machine(), "load": round(os.getloadavg()[0], 1)},
    }
    print(json.dumps(result, indent=1))
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
