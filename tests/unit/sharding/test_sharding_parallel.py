from __future__ import annotations

import pytest

from sharding.console import Progress
from sharding.parallel import Workers, report_frames


def square(number: int) -> int:
    report_frames(number)
    return number * number


def fail(number: int) -> int:
    raise ValueError(f"task {number}")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_frames_are_counted_wherever_a_task_runs(num_workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    with Workers(num_workers) as workers:
        for _ in range(2):
            assert workers.run(square, [3, 4, 5], Progress(12, "frame", verb="squared")) == [9, 16, 25]
        lines = capsys.readouterr().out.splitlines()
        with pytest.raises(ValueError, match="task 3"):
            workers.run(fail, [3, 4], Progress(2, "frame", verb="failed"))
    report_frames(5)  # outside of a task: no effect
    assert [line.split(" frames")[0] for line in lines] == ["squared 12 of 12"] * 2
