"""Scalars and things reach a server once each, whatever it answers and whenever the process ends."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from mlflow.utils.validation import _validate_metric_name

from vsr_dist.training.metrics_file import MetricsFile, read_metrics
from vsr_dist.training.outbox import Outbox, Target, as_uint8
from vsr_dist.training.shipping import Delivery, Rejected, Shipper, Unavailable, legal_name


class Server:
    """Takes everything, appends every point it is sent, and fails as `fault` says."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int, float]] = []
        self.jobs: list[tuple[str, dict]] = []
        self.requests = 0
        self.fault = lambda: None

    def connect(self, outbox):
        self._fail()
        return outbox.state.run_id or "run"

    def send(self, run_id, points):
        self.requests += 1
        if any(point.name == "poison" for point in points):
            raise Rejected("no such name")
        answer = self.fault()
        if answer != "before":
            self.points += [(point.name, point.step, point.value) for point in points]
        if answer:
            raise Unavailable("connection reset")

    def steps(self, run_id, name):
        self._fail()
        return {step for known, step, _ in self.points if known == name}

    def deliver(self, run_id, job):
        self._fail()
        if job.payload.get("values") == {"bad": "1"}:
            raise Rejected("changed parameter")
        self.jobs.append((job.kind, job.payload))

    def _fail(self):
        if self.fault():
            raise Unavailable("connection refused")

    def counts(self):
        return Counter((name, step) for name, step, _ in self.points)


@pytest.fixture
def server():
    return Server()


def open_run(folder: Path, server: Server, resume_step: int | None = None) -> tuple[MetricsFile, Outbox, Delivery]:
    file = MetricsFile(folder / "metrics.jsonl", resume_step)
    outbox = Outbox(folder)
    outbox.aim(Target("http://nowhere", "experiment", "name", {}))
    outbox.resume(None, file.num_bytes())
    return file, outbox, Delivery(file, outbox, server)


def deliver(delivery: Delivery, tries: int = 1000) -> None:
    for _ in range(tries):
        try:
            delivery.run()
        except Unavailable:
            continue
        return
    raise AssertionError("never delivered")


def test_each_point_arrives_once_though_answers_are_lost(tmp_path, server):
    draw = random.Random(0)
    # "before": the request never arrived; "after": it was taken, and the answer was lost.
    server.fault = lambda: draw.choice([None, "before", "after"])
    file, _, delivery = open_run(tmp_path, server)
    for step in range(1, 300):
        file.write(step, {"loss": step / 7, "speed": float(step)})
        if step % 10 == 0:
            file.write(step, {"val/psnr_y": 20.0 + step})
        if draw.random() < 0.2:
            deliver(delivery, tries=1000)
    deliver(delivery)
    written = Counter(
        (name, line["step"]) for line in read_metrics(file.path) for name in set(line) - {"step", "time_s"}
    )
    assert server.counts() == written
    assert delivery.outstanding() == (0, 0)


@pytest.mark.parametrize("answer", ["before", "after"])
def test_a_crash_at_any_moment_doubles_and_loses_nothing(tmp_path, server, answer):
    for start in range(0, 60, 10):  # a checkpoint every 10 steps; each process dies 7 steps after one
        server.fault = lambda: None
        file, _, delivery = open_run(tmp_path, server, resume_step=start)
        for step in range(start + 1, start + 18):
            file.write(step, {"loss": step / 7})
            if step == start + 14:
                server.fault = lambda: answer
                with pytest.raises(Unavailable):
                    delivery.run()
                server.fault = lambda: None
            elif step % 3 == 0:
                delivery.run()
        del delivery  # dead: nothing is closed
    server.fault = lambda: None
    _, outbox, delivery = open_run(tmp_path, server)
    delivery.run()
    assert server.counts() == Counter({("loss", step): 1 for step in range(1, 68)})
    assert {value for _, step, value in server.points if step == 20} == {20 / 7}
    assert outbox.state.acknowledged_bytes == file.num_bytes()


def test_a_rewind_inside_a_process_sends_no_step_twice(tmp_path, server):
    file, _, delivery = open_run(tmp_path, server)
    for step in range(1, 9):
        file.write(step, {"loss": 1.0})
    delivery.run()
    delivery.outbox.state.acknowledged_bytes = min(delivery.outbox.state.acknowledged_bytes, file.rewind(4))
    for step in range(5, 13):
        file.write(step, {"loss": 2.0})
    delivery.run()
    assert server.counts() == Counter({("loss", step): 1 for step in range(1, 13)})
    assert [value for _, step, value in server.points if step == 6] == [1.0]


def test_a_run_taken_over_without_its_outbox_asks_before_it_sends(tmp_path, server):
    server.points = [("loss", step, 0.0) for step in range(1, 5)]
    file = MetricsFile(tmp_path / "metrics.jsonl", None)
    outbox = Outbox(tmp_path)
    outbox.aim(Target("http://nowhere", "experiment", "name", {}))
    outbox.resume("known", 0)
    for step in range(1, 8):
        file.write(step, {"loss": 1.0})
    Delivery(file, outbox, server).run()
    assert server.counts() == Counter({("loss", step): 1 for step in range(1, 8)})
    assert outbox.state.run_id == "known"


def test_a_poisoned_point_and_a_rejected_thing_hold_nothing_up(tmp_path, server, capsys):
    file, outbox, delivery = open_run(tmp_path, server)
    for step in range(1, 5):
        file.write(step, {"loss": 1.0, **({"poison": 2.0} if step == 2 else {})})
    outbox.put("parameters", values={"bad": "1"})
    outbox.put("tags", values={"good": "1"})
    delivery.run()
    assert server.counts() == Counter({("loss", step): 1 for step in range(1, 5)})
    assert [kind for kind, _ in server.jobs] == ["tags", "status"]
    assert "changed parameter" in next((tmp_path / "outbox" / "rejected").iterdir()).read_text()
    out = capsys.readouterr().out
    assert "MLflow refuses poison of step 2" in out
    assert "MLflow refuses the parameters" in out


def test_the_status_goes_last_and_only_the_newest_is_sent(tmp_path, server):
    file, outbox, delivery = open_run(tmp_path, server)
    outbox.put("status", status="KILLED", time_ms=1)
    outbox.put("status", status="FINISHED", time_ms=2)
    outbox.put("tags", values={"a": "b"})
    file.write(1, {"loss": 1.0})
    delivery.run()
    assert [(kind, payload.get("status")) for kind, payload in server.jobs] == [("tags", None), ("status", "FINISHED")]


def test_points_go_in_batches(tmp_path, server):
    file, _, delivery = open_run(tmp_path, server)
    for step in range(1, 501):
        file.write(step, {f"metric/{number}": 1.0 for number in range(18)})
    delivery.run()
    assert len(server.points) == 9000
    assert server.requests == 10  # 50 lines of 18 values, step and time each


def test_an_unfinished_last_line_waits(tmp_path, server):
    file, _, delivery = open_run(tmp_path, server)
    file.write(1, {"loss": 1.0})
    with file.path.open("a") as half:
        half.write('{"step": 2, "time_s": 1.0, "lo')
    delivery.run()
    assert server.counts() == Counter({("loss", 1): 1})
    MetricsFile(file.path, 1).write(2, {"loss": 1.0})
    delivery.run()
    assert server.counts() == Counter({("loss", 1): 1, ("loss", 2): 1})


def test_pictures_survive_the_process_and_are_sent_once(tmp_path, server):
    _, outbox, _ = open_run(tmp_path, server)
    low, high = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 200, np.uint8)
    outbox.put_picture("samples/a", 10, low)
    outbox.put_picture("samples/a", 10, high)  # computed again after a crash
    outbox.put_picture("samples/b", 10, low)
    _, outbox, delivery = open_run(tmp_path, server)
    (first,) = [job for job in outbox.jobs() if job.payload.get("key") == "samples/a"]
    assert np.array_equal(cv2.imread(str(outbox.folder / first.payload["file"])), high)
    delivery.run()
    outbox.put_picture("samples/a", 10, low)
    outbox.put_picture("samples/a", 20, low)
    delivery.run()
    sent = [(payload["key"], payload["step"]) for kind, payload in server.jobs if kind == "picture"]
    assert sent == [("samples/a", 10), ("samples/b", 10), ("samples/a", 20)]
    assert not list(outbox.folder.glob("*.png"))


def test_a_picture_out_of_range_is_cut_off_and_not_stretched():
    picture = np.array([[[-0.5, 0.0, 0.25], [0.5, 1.0, 7.0]]], np.float32)
    assert as_uint8(picture).tolist() == [[[0, 0, 64], [128, 255, 255]]]
    assert as_uint8(np.full((1, 1, 3), 0.5)).max() == 128
    with pytest.raises(TypeError, match="uint16"):
        as_uint8(np.zeros((1, 1, 3), np.uint16))


NAMES = [
    "val/psnr_y",
    "psnr@x4",
    "psnr#x4",
    "a[0].lr",
    "../up",
    "/top",
    "a//b",
    ".",
    "x" * 300,
    "x" * 299 + "y",
    "\u00fcber",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_become_what_mlflow_accepts(name):
    _validate_metric_name(legal_name(name))
    assert len(legal_name(name)) <= 250
    assert legal_name("val/psnr_y") == "val/psnr_y"


def test_no_two_names_become_one():
    assert len({legal_name(name) for name in NAMES}) == len(NAMES)


def test_the_thread_costs_a_step_nothing_while_the_server_hangs(tmp_path, server, capsys):
    release = threading.Event()
    server.fault = lambda: release.wait(20) and None
    file, outbox, delivery = open_run(tmp_path, server)
    shipper = Shipper(delivery, interval_s=0.01)
    assert not shipper.start(0.05)
    begin_s = time.perf_counter()
    for step in range(1, 201):
        file.write(step, {"loss": 1.0})
        shipper.wake()
    assert (time.perf_counter() - begin_s) / 200 < 0.01
    assert not server.points
    release.set()
    outbox.put("status", status="FINISHED", time_ms=1)
    assert shipper.close(20)
    assert server.counts() == Counter({("loss", step): 1 for step in range(1, 201)})


def test_the_thread_warns_once_per_outage_and_says_when_it_is_over(tmp_path, server, capsys):
    server.fault = lambda: "before"
    file, _, delivery = open_run(tmp_path, server)
    shipper = Shipper(delivery, interval_s=0.001)
    assert not shipper.start(10)
    assert shipper.refusal is None
    file.write(1, {"loss": 1.0})
    time.sleep(0.1)
    server.fault = lambda: None
    assert shipper.close(20)
    out = capsys.readouterr().out
    assert out.count("MLflow does not take everything") == 1
    assert "takes everything again" in out


def test_a_server_that_says_no_is_told_apart_from_one_that_is_away(tmp_path, server):
    def refuse():
        raise Unavailable("403", refused=True)

    server.fault = refuse
    shipper = Shipper(open_run(tmp_path, server)[2], interval_s=0.001)
    assert not shipper.start(10)
    assert str(shipper.refusal) == "403"
    assert not shipper.close(10)
