"""The outbox while two threads use it, and when a long outage has filled it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vsr_dist.training.outbox import Outbox


def test_what_waits_is_not_read_again_for_each_picture(tmp_path, monkeypatch):
    """Thousands wait after a weekend without the server, and every step would wait for their reading."""
    outbox = Outbox(tmp_path)
    monkeypatch.setattr(Outbox, "jobs", lambda self: pytest.fail("read all that waits"))
    for step in (10, 20, 20):
        outbox.put_picture("samples/a", step, np.zeros((4, 6, 3), np.uint8))
    assert len(list(outbox.folder.glob("*-picture.json"))) == len(list(outbox.folder.glob("*.png"))) == 2


def test_two_threads_may_save_the_state(tmp_path):
    """Training does so when it describes the run, while the first things are delivered."""
    outbox = Outbox(tmp_path)

    def save(prefix):
        for number in range(200):
            outbox.state.attempted[f"{prefix}{number}"] = number
            outbox.save()

    with ThreadPoolExecutor(4) as pool:
        for task in [pool.submit(save, prefix) for prefix in "abcd"]:
            task.result()
    assert Outbox(tmp_path).state == outbox.state
