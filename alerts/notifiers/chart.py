"""The evidence over time as a small PNG: ln M, the threshold it crossed, and the interval in which the change began.

Drawn from `message.facts["chart"]`, a list of [UTC seconds, ln M] pairs, oldest first; without one there is no picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from alerts.message import Message

SIZE = (720, 300)  # pixels
LEFT, TOP, RIGHT, BOTTOM = 64, 40, 700, 262  # the plot's frame
INK, GRID, LINE, LIMIT, SHADE = "#1d1c1d", "#dddddd", "#1565c0", "#c62828", "#fff3c4"
MAX_POINTS = 2000


def drawn(message: Message) -> bytes | None:
    """A PNG, or None when the message carries fewer than two points."""
    points = _points(message.facts.get("chart"))
    if len(points) < 2:
        return None
    return _png(points, threshold=_finite(message.facts.get("threshold")), since=message.facts.get("since"))


def _png(points: Sequence[tuple[float, float]], *, threshold: float | None, since: Any) -> bytes:
    values = [value for _, value in points] + ([threshold] if threshold is not None else [])
    low, high = min(0.0, *values), max(*values, min(values) + 1.0)
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1.0)

    def place(at: float, value: float) -> tuple[float, float]:
        across, up = (at - first) / (last - first), (value - low) / (high - low)
        return LEFT + min(max(across, 0.0), 1.0) * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    image = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=13)
    began = [_finite(at) for at in since] if isinstance(since, (list, tuple)) and len(since) == 2 else [None]
    if all(at is not None for at in began):
        draw.rectangle([place(began[0], high), place(began[1], low)], fill=SHADE)
    for step in range(5):
        value = low + (high - low) * step / 4
        draw.line([place(first, value), place(last, value)], fill=GRID)
        draw.text((LEFT - 8, place(first, value)[1]), f"{value:.3g}", fill=INK, font=font, anchor="rm")
    for at, anchor in ((first, "la"), (last, "ra")):
        draw.text((place(at, low)[0], BOTTOM + 8), f"{datetime.fromtimestamp(at, UTC):%d %b %H:%M} UTC", fill=INK, font=font, anchor=anchor)
    if threshold is not None:
        draw.line([place(first, threshold), place(last, threshold)], fill=LIMIT, width=2)
    draw.line([place(at, value) for at, value in points], fill=LINE, width=3, joint="curve")
    legend = "Evidence ln M (blue)" + (f", threshold {threshold:.3g} (red)" if threshold is not None else "")
    draw.text((LEFT, 14), f"{legend}; shaded: when the change began", fill=INK, font=font)
    found = io.BytesIO()
    image.save(found, format="PNG", optimize=True)
    return found.getvalue()


def _points(given: Any) -> list[tuple[float, float]]:
    """The drawable pairs, in order of time, the newest MAX_POINTS of them."""
    found = []
    for pair in given if isinstance(given, (list, tuple)) else ():
        at, value = (_finite(each) for each in pair) if isinstance(pair, (list, tuple)) and len(pair) == 2 else (None, None)
        if at is not None and value is not None and 0 <= at < 4e9 and abs(value) < 1e9:
            found.append((at, value))
    return sorted(found)[-MAX_POINTS:]


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None
