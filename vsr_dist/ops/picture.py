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


def with_titles(picture_YXC: Picture, titles: Sequence[str], bar_px: int = 28) -> Picture:
    """A row of equally wide panels (see `side_by_side`) under a white bar with one centred title each."""
    height, width, channels = picture_YXC.shape
    panel_px = (width - _GAP_PX * (len(titles) - 1)) / len(titles)
    canvas = np.full((height + bar_px, width, channels), 255, np.uint8)
    canvas[bar_px:] = picture_YXC
    for number, title in enumerate(titles):
        size = 0.55
        (text_px, _), _ = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
        size *= min(1.0, 0.95 * panel_px / text_px)
        (text_px, text_height_px), _ = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
        left = round(number * (panel_px + _GAP_PX) + (panel_px - text_px) / 2)
        place = (left, (bar_px + text_height_px) // 2)
        cv2.putText(canvas, title, place, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas
