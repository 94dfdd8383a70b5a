"""Pictures for people: panels in a row."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
_GAP_PX = 4


def side_by_side(panels_YXC: Sequence[Picture], height_px: int) -> Picture:
    """uint8 RGB pictures of one size in a row with white gaps between them.

    Each is enlarged without smoothing by the whole factor that brings its height nearest to `height_px`.
    """
    factor = max(1, round(height_px / panels_YXC[0].shape[0]))
    enlarged = [panel.repeat(factor, axis=0).repeat(factor, axis=1) for panel in panels_YXC]
    gap = np.full((enlarged[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    return np.hstack([part for panel in enlarged for part in (gap, panel)][1:])


def two_by_two(panels_YXC: Sequence[Picture], height_px: int) -> Picture:
    """Four uint8 RGB pictures of one size, row by row, with white gaps; enlarged as by `side_by_side`."""
    rows = [side_by_side(panels_YXC[first : first + 2], height_px) for first in (0, 2)]
    gap = np.full((_GAP_PX, rows[0].shape[1], 3), 255, np.uint8)
    return np.vstack([rows[0], gap, rows[1]])


def four_of(picture_YXC: Picture) -> list[Picture]:
    """The four panels of a `two_by_two`, row by row."""
    rows, columns = ((size - _GAP_PX) // 2 for size in picture_YXC.shape[:2])
    return [
        picture_YXC[top : top + rows, left : left + columns]
        for top in (0, rows + _GAP_PX)
        for left in (0, columns + _GAP_PX)
    ]


def with_titles(picture_YXC: Picture, titles: Sequence[str], bar_px: int = 28) -> Picture:
    """A row of equally wide panels (see `side_by_side`) under a white bar with one centred title each."""
    height, width, channels = picture_YXC.shape
    panel_px = (width - _GAP_PX * (len(titles) - 1)) / len(titles)
    canvas = np.full((height + bar_px, width, channels), 255, np.uint8)
    canvas[bar_px:] = picture_YXC
    for number, title in enumerate(titles):
        left, room_px = round(number * (panel_px + _GAP_PX) + 0.025 * panel_px), 0.95 * panel_px
        draw_text(canvas[:bar_px], title, left, room_px, align="centre")
    return canvas


def with_caption(picture_YXC: Picture, text: str, *, above: bool = False, bar_px: int = 28) -> Picture:
    """uint8 RGB picture with a line of text at the left of a white bar below (or above) it, made to fit."""
    bar = np.full((bar_px, picture_YXC.shape[1], 3), 255, np.uint8)
    draw_text(bar, text, 4, picture_YXC.shape[1] - 8)
    return np.vstack([bar, picture_YXC] if above else [picture_YXC, bar])


def draw_text(bar_YXC: Picture, text: str, left_px: int, room_px: float, *, align: str = "left") -> None:
    """Write black text into a bar, in place: vertically in its middle, `align` left, centre or right within the room.

    Text that needs more than `room_px` is made smaller.
    """
    size = 0.55
    (text_px, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    size *= min(1.0, room_px / max(text_px, 1))
    (text_px, text_height_px), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    left_px += round({"left": 0.0, "centre": 0.5, "right": 1.0}[align] * (room_px - text_px))
    place = (left_px, (bar_YXC.shape[0] + text_height_px) // 2)
    cv2.putText(bar_YXC, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
