"""Temporal profiles: one row of the picture over time, in which flicker shows as stripes and jitter as saw teeth.

Axis letters: T time, R candidate rows, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsr_dist.inference.pictures.showcase import TRUTH, FrameSet
from vsr_dist.ops.picture import Picture, side_by_side, with_caption, with_titles

# Memory stays bounded: rows of the first frames only; of the first few of them every eighth row, until one is chosen.
MAX_FRAMES = 480
MAX_COLUMNS = 480
CHOICE_FRAMES = 16
ROW_STEP_PX = 8
_PANEL_PX = 320


class TimeProfile:
    """Collects one row of each frame under every treatment, up to the first `MAX_FRAMES` frames.

    The row is chosen from the first `CHOICE_FRAMES` frames of the truth alone, so that it favours no method: of every
    eighth row the one that changes most from frame to frame (mean absolute difference), the one nearest to the middle
    if several do. Of frames wider than `MAX_COLUMNS` the columns that change most in that row are shown.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[NDArray[np.uint8]]] = {}
        self._numbers: list[int] = []
        self._candidates: NDArray[np.int64] | None = None
        self.row: int | None = None
        self.first_column = 0

    def add(self, frame: FrameSet, number: int) -> None:
        """Take the rows of one frame."""
        if len(self._numbers) == MAX_FRAMES:
            return
        if self._candidates is None:
            height = frame.real_YXC.shape[0]
            self._candidates = np.arange(min(ROW_STEP_PX // 2, height - 1), height, ROW_STEP_PX)
        self._numbers.append(number)
        for title, picture in frame.treatments().items():
            rows = picture[self._candidates] if self.row is None else self._columns(picture[self.row : self.row + 1])
            self._rows.setdefault(title, []).append(rows.copy())
        if len(self._numbers) == CHOICE_FRAMES:
            self._choose()

    def profiles(self) -> dict[str, Picture]:
        """Title -> (T, X, 3) uint8: the chosen row of every frame, one under the other."""
        if self.row is None:
            self._choose()
        return {title: np.concatenate(rows) for title, rows in self._rows.items()}

    def picture(self, heading: str) -> Picture:
        """The profiles side by side, enlarged by whole factors, time running down."""
        profiles = self.profiles()
        num_frames, num_columns = next(iter(profiles.values())).shape[:2]
        wide, high = max(1, round(_PANEL_PX / num_columns)), max(1, round(_PANEL_PX / num_frames))
        panels = [panel.repeat(high, axis=0).repeat(wide, axis=1) for panel in profiles.values()]
        row = with_titles(side_by_side(panels, panels[0].shape[0]), list(profiles))
        last_column = self.first_column + num_columns - 1
        caption = (
            f"row {self.row} over time: right is x (columns {self.first_column} to {last_column}), "
            f"down is time (frames {self._numbers[0]} to {self._numbers[-1]})"
        )
        return with_caption(with_caption(row, heading, above=True), caption)

    def _choose(self) -> None:
        """Fix row and columns, and keep nothing else of the frames so far."""
        assert self._candidates is not None
        real_TRXC = np.stack(self._rows[TRUTH]).astype(np.float32)
        activity_RX = np.abs(np.diff(real_TRXC, axis=0)).mean(axis=3).sum(axis=0)
        middle = (len(self._candidates) - 1) / 2
        by_nearness = sorted(range(len(self._candidates)), key=lambda place: abs(place - middle))
        chosen = max(by_nearness, key=lambda place: float(activity_RX[place].sum()))
        self.row = int(self._candidates[chosen])
        num_columns = activity_RX.shape[1]
        if num_columns > MAX_COLUMNS:
            sums = np.convolve(activity_RX[chosen], np.ones(MAX_COLUMNS), mode="valid")
            self.first_column = int(sums.argmax())
        self._rows = {
            title: [self._columns(rows[chosen : chosen + 1]).copy() for rows in kept]
            for title, kept in self._rows.items()
        }

    def _columns(self, rows_RXC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return rows_RXC[:, self.first_column : self.first_column + MAX_COLUMNS]
