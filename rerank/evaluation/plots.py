"""Charts as SVG strings to put inside an HTML page: no script, no font, no file beside it.

Every colour is a custom property of the page: `--ink` for text and axes, `--grid` for hairlines and `--c0` to `--c7`
for data, with `--paper`, the background, for a halo around names; so the page alone decides about light and dark
(`STYLE` holds both). Drawings are 360 units wide and scale to their container: one unit is about one pixel on a
phone and 1.3 on a desk. Text inherits the page's font. Every mark has a `<title>`, which browsers show as a tooltip,
and all text is escaped.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rerank.errors import DataError

Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom
Leader: TypeAlias = tuple[float, float, float, float] | None  # from and to

# Contrast with the page is above 7:1 for text, the faint one too, and above 3:1 for data (WCAG 2.1, 1.4.6 and 1.4.11).
STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1d2129; --grid: #e3e6eb;
  --c0: #1f5fbf; --c1: #c2410c; --c2: #0f8a6c; --c3: #8b2fa8;
  --c4: #a3720a; --c5: #1590b8; --c6: #c22561; --c7: #5b6472;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171c; --ink: #e8eaee; --grid: #2e333c;
    --c0: #6ea8ff; --c1: #ff9159; --c2: #46cfa6; --c3: #d08cf0;
    --c4: #e3b341; --c5: #5fd0f0; --c6: #ff7fa8; --c7: #a3adbb;
  }
}
.plot .hit:hover { fill-opacity: .12; }
"""

_WIDTH = 360.0
_TEXT = 12.0
_SMALL = 11.0
_N_COLOURS = 8
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2")
_MARKS = ("circle", "square", "diamond", "up", "down", "cross")
# Differences of mere rounding are drawn and counted as none.
_EQUAL = 1e-12
# What is smaller is drawn as 0, so that no step between ticks underflows.
_TINY = 1e-200
# More hover targets than this over the width of a chart could not be hit.
_MAX_TARGETS = 240
# Names beyond this number would hide the points of a scatter plot.
_MAX_NAMES = 40
# C0 controls, surrogates and non-characters, which no XML document may hold.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Point(NamedTuple):
    """A system in a scatter plot: its cost, its quality, and the interval of the quality (NaN where unknown)."""

    label: str
    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


class Row(NamedTuple):
    """A line of a forest plot: a mean, its interval, and whether it differs from the baseline (None: is it)."""

    label: str
    mean: float
    low: float
    high: float
    significant: bool | None = None


def scatter(points: Sequence[Point], x_label: str, y_label: str, *, log_x: bool = False) -> str:
    """Scatter plot of quality against cost: intervals as whiskers, names beside the points.

    A dotted line follows the points that no other beats at the same or a lower cost. Names never overlap: one that
    finds no room is left to the tooltip, and of more than 40 points only those on the dotted line are named. Points
    that have no place (NaN, or a cost of 0 on a logarithmic axis) are named below the chart.

    >>> svg = scatter([Point("bm25", 0.01, 0.32, 0.30, 0.34)], "seconds per query", "nDCG@10", log_x=True)
    >>> svg[:4], svg[-6:]
    ('<svg', '</svg>')
    """
    has_place = [math.isfinite(p.x) and math.isfinite(p.y) and (p.x > _TINY or not log_x) for p in points]
    shown = [p for p, has in zip(points, has_place, strict=True) if has]
    missing = [p.label for p, has in zip(points, has_place, strict=True) if not has]
    summary = f"Scatter plot of {y_label} against {x_label}: " + "; ".join(
        f"{p.label} {_figure(p.y)} at {_short(p.x)}" for p in shown
    )
    height = 264.0 + (14.0 if missing else 0.0)
    if not shown:
        return _nothing("scatter", summary, y_label)
    bounds = [bound for p in shown for bound in (p.y, p.low, p.high) if math.isfinite(bound)]
    y = _Scale.over(bounds, 218.0, 28.0)
    y_ticks = y.ticks(6)
    left = _tick_column(y_ticks)
    x = _Scale.over([p.x for p in shown], left + 4.0, _WIDTH - 14.0, is_log=log_x)
    parts = [*_y_axis(y_ticks, y, left, y_label), *_x_axis(x, 218.0, left, x_label)]
    places = [(x(p.x), y(p.y)) for p in shown]
    lines: list[Box] = []
    best = _frontier(shown)
    steps = f"M{_n(places[best[0]][0])} {_n(places[best[0]][1])}"
    for (px, py), (until, _) in pairwise([*(places[i] for i in best), (_WIDTH, 0.0)]):
        lines.append((px, py - 1.0, until, py + 1.0))
        steps += f"V{_n(py)}H{_n(until)}"
    parts.append(_path(steps, "var(--ink)", 1.0, dash="1 3", opacity=0.6))
    for index, (p, (px, _)) in enumerate(zip(shown, places, strict=True)):
        if math.isfinite(p.low) and math.isfinite(p.high):
            top, bottom = y(p.high), y(p.low)
            lines.append((px - 1.0, top, px + 1.0, bottom))
            parts.append(_path(f"M{_n(px)} {_n(top)}V{_n(bottom)}", _colour(index), 1.5, opacity=0.75))
    named = list(range(len(shown))) if len(shown) <= _MAX_NAMES else best[-_MAX_NAMES:]
    labels = [_shorten(shown[i].label, 150.0) for i in named]
    marks = np.array([(px - 5.5, py - 5.5, px + 5.5, py + 5.5) for px, py in places])
    area = (left + 2.0, 20.0, _WIDTH - 1.0, 216.0)
    boxes = _place_labels(labels, [places[i] for i in named], marks, lines, area)
    for i, label, found in zip(named, labels, boxes, strict=True):
        if found is not None:
            box, leader = found
            if leader is not None:
                line = f"M{_n(leader[0])} {_n(leader[1])}L{_n(leader[2])} {_n(leader[3])}"
                parts.append(_path(line, "var(--ink)", 0.8, opacity=0.5))
            parts.append(_label(places[i][0], box, label))
    for index, (p, (px, py)) in enumerate(zip(shown, places, strict=True)):
        tip = f"{p.label}: {y_label} {_figure(p.y)}{_interval(p.low, p.high)}, {x_label} {_short(p.x)}"
        parts.append(_mark("circle", px, py, _colour(index), tip, size=4.5))
    if missing:
        parts.append(_text(left, height - 4.0, _shorten("not shown: " + ", ".join(missing), 300.0), faint=True))
    return _svg("scatter", height, summary, parts)


def difference_bars(differences: Sequence[float], labels: Sequence[str], y_label: str) -> str:
    """Bar chart of per-query differences to the baseline, the largest gain first, a bar per query.

    `labels` are what the tooltips call the queries (an id, with the text or without). Where there are more queries
    than a pointer can tell apart, neighbours share a tooltip. Queries without a value are left out, and counted.

    Raises:
        DataError: there are not as many labels as differences.

    >>> difference_bars([0.2, -0.1], ["q1: who", "q2: why"], "difference in nDCG@10").count("<title>")
    2
    """
    if len(differences) != len(labels):
        message = f"difference_bars got {len(differences)} differences and {len(labels)} labels: give one per query"
        raise DataError(message)
    finite = [(d, label) for d, label in zip(differences, labels, strict=True) if math.isfinite(d)]
    bars = sorted(finite, key=lambda bar: -bar[0])
    n_better = sum(d > _EQUAL for d, _ in bars)
    n_worse = sum(d < -_EQUAL for d, _ in bars)
    n_equal = len(bars) - n_better - n_worse
    summary = f"{y_label} of {len(bars):,} queries, sorted: {n_better:,} better, {n_equal:,} equal, {n_worse:,} worse"
    if not bars:
        return _nothing("differences", summary, y_label)
    top, bottom = 44.0, 220.0
    y = _Scale.over([0.0, bars[0][0], bars[-1][0]], bottom, top)
    y_ticks = y.ticks(6)
    left, right = _tick_column(y_ticks), _WIDTH - 4.0
    parts = _y_axis(y_ticks, y, left, y_label)
    slot = (right - left) / len(bars)
    heights = [round(y(d), 1) for d, _ in bars]
    n_up = sum(d > 0.0 for d, _ in bars)
    for first, stop, colour in ((0, n_up, 0), (n_up, len(bars), 1)):
        drawing = _bar_path(heights[first:stop], left + first * slot, slot, round(y(0.0), 1))
        if drawing:
            parts.append(f'<path d="{drawing}" fill="{_colour(colour)}"/>')
    parts.append(_path(f"M{_n(left)} {_n(y(0.0))}H{_n(right)}", "var(--ink)", 1.0))
    place = 0.0
    for words, key in (
        (f"{n_better:,} better", _colour(0)),
        (f"{n_equal:,} equal", None),
        (f"{n_worse:,} worse", _colour(1)),
    ):
        if key is not None:
            parts.append(_mark("square", place + 5.0, 27.0, key, "", size=5.0))
            place += 14.0
        parts.append(_text(place, 31.0, words))
        place += _text_width(words) + 14.0
    n_missing = len(differences) - len(bars)
    noun = "query" if len(bars) == 1 else "queries"
    caption = f"{len(bars):,} {noun}, largest gain first" + (f" ({n_missing:,} without a value)" if n_missing else "")
    parts.append(_text((left + right) / 2.0, bottom + 18.0, caption, anchor="middle", size=_SMALL, faint=True))
    n_targets = min(len(bars), _MAX_TARGETS)
    edges = [len(bars) * target // n_targets for target in range(n_targets + 1)]
    for first, stop in pairwise(edges):
        lines = [f"{_cut(label)}: {_signed(d)}" for d, label in bars[first:stop]]
        if len(lines) > 3:
            lines[2:-1] = [f"… {len(lines) - 3} more"]
        tip = "\n".join(lines)
        parts.append(
            f'<rect class="hit" x="{_n(left + first * slot)}" y="{_n(top)}" width="{_n((stop - first) * slot)}" '
            f'height="{_n(bottom - top)}" fill="var(--ink)" fill-opacity="0">{_title(tip)}</rect>'
        )
    return _svg("differences", bottom + 26.0, summary, parts)


def curves(series: Mapping[str, Sequence[float]], x_values: Sequence[float], x_label: str, y_label: str) -> str:
    """Line chart of several series over common `x_values`, such as interpolated precision at 11 levels of recall.

    Series differ in colour, dash and mark at once, so that they stay apart without colour. A NaN interrupts its
    line. The vertical axis begins at 0 (or at the least value, where that is negative).

    Raises:
        DataError: a series is not as long as `x_values`.

    >>> svg = curves({"bm25": [0.9, 0.5, 0.1]}, [0.0, 0.5, 1.0], "recall", "precision")
    >>> svg.count("<title>")
    3
    """
    for name, values in series.items():
        if len(values) != len(x_values):
            message = f"curve {name!r} has {len(values)} values for {len(x_values)} places on the x axis: give one each"
            raise DataError(message)
    summary = f"Line chart of {y_label} against {x_label}: " + "; ".join(
        f"{name} from {_figure(finite[0])} to {_figure(finite[-1])}"
        for name, values in series.items()
        if (finite := [value for value in values if math.isfinite(value)])
    )
    heights = [value for values in series.values() for value in values if math.isfinite(value)]
    places = [value for value in x_values if math.isfinite(value)]
    if not heights or not places:
        return _nothing("curves", summary, y_label)
    legend, top = _legend(list(series), 34.0)
    bottom = top + 186.0
    y = _Scale.over([0.0, max(heights) or 1.0, *heights], bottom, top, margin=0.0).rounded_out(6)
    y_ticks = y.ticks(6)
    left = _tick_column(y_ticks)
    x = _Scale.over(places, left + 4.0, _WIDTH - 14.0, margin=0.0)
    parts = [*_y_axis(y_ticks, y, left, y_label), *_x_axis(x, bottom, left, x_label), *legend]
    marks: list[str] = []
    for index, (name, values) in enumerate(series.items()):
        line, is_down = "", False
        for where, value in zip(x_values, values, strict=True):
            if not (math.isfinite(where) and math.isfinite(value)):
                is_down = False
                continue
            line += f"{'L' if is_down else 'M'}{_n(x(where))} {_n(y(value))}"
            is_down = True
            tip = f"{name}: {y_label} {_figure(value)} at {x_label} {_short(where)}"
            marks.append(_mark(_MARKS[index % len(_MARKS)], x(where), y(value), _colour(index), tip, size=3.2))
        if line:
            parts.append(_path(line, _colour(index), 1.8, dash=_DASHES[index % len(_DASHES)]))
    return _svg("curves", bottom + 46.0, summary, [*parts, *marks])


def forest(rows: Sequence[Row], x_label: str) -> str:
    """Dot plot of means with their intervals, one row each, in the order given, with the means at the right.

    A filled dot differs significantly from the baseline, a hollow one does not. Where exactly one of several rows is
    the baseline (`significant` None), it is drawn as a square, and a vertical line carries its mean through the others.

    >>> svg = forest([Row("bm25", 0.32, 0.30, 0.34), Row("dense", 0.35, 0.33, 0.37, True)], "nDCG@10")
    >>> "significant" in svg
    True
    """
    summary = f"Means of {x_label} with intervals: " + "; ".join(
        f"{row.label} {_figure(row.mean)}{_interval(row.low, row.high)}" for row in rows
    )
    bounds = [bound for row in rows for bound in (row.mean, row.low, row.high) if math.isfinite(bound)]
    if not bounds:
        return _nothing("forest", summary, x_label)
    untested = [row for row in rows if row.significant is None]
    baseline = untested[0] if len(untested) == 1 < len(rows) else None
    labels = [_shorten(row.label, 140.0) for row in rows]
    left = max(map(_text_width, labels)) + 14.0
    right = _WIDTH - max(_text_width(_figure(row.mean)) for row in rows) - 10.0
    pitch, top = 24.0, 8.0
    bottom = top + pitch * len(rows)
    x = _Scale.over(bounds, left, right)
    parts = _x_axis(x, bottom, left, x_label, grid_top=top, right=right)
    if baseline is not None and math.isfinite(baseline.mean):
        line = f"M{_n(x(baseline.mean))} {_n(top)}V{_n(bottom)}"
        parts.append(_path(line, "var(--ink)", 1.0, dash="3 3", opacity=0.6))
    looks = {
        True: ("circle", _colour(0), "significant"),
        False: ("ring", _colour(0), "not significant"),
        None: ("circle", _colour(0), "") if baseline is None else ("square", "var(--ink)", "baseline"),
    }
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        middle = top + pitch * (index + 0.5)
        mark, colour, verdict = looks[row.significant]
        parts.append(_text(left - 12.0, middle + 4.0, label, anchor="end"))
        weight = 600 if row.significant else 400
        parts.append(_text(_WIDTH, middle + 4.0, _figure(row.mean), anchor="end", weight=weight))
        if not math.isfinite(row.mean):
            continue
        if math.isfinite(row.low) and math.isfinite(row.high):
            # The line stops at a hollow dot, which would otherwise need the page's colour to hide it.
            gap = 4.5 if mark == "ring" else 0.0
            ends = ((x(row.low), x(row.mean) - gap), (x(row.mean) + gap, x(row.high)))
            line = "".join(f"M{_n(start)} {_n(middle)}H{_n(stop)}" for start, stop in ends if start < stop)
            parts.append(_path(line, colour, 2.0) if line else "")
        tip = f"{row.label}: {x_label} {_figure(row.mean)}{_interval(row.low, row.high)}"
        parts.append(_mark(mark, x(row.mean), middle, colour, f"{tip}, {verdict}" if verdict else tip, size=4.5))
    height = bottom + 42.0
    if baseline is not None:
        place = 0.0
        for verdict_of in (None, True, False):
            if any(row.significant is verdict_of for row in rows):
                mark, colour, words = looks[verdict_of]
                parts.append(_mark(mark, place + 5.0, height + 6.0, colour, "", size=4.5))
                parts.append(_text(place + 14.0, height + 10.0, words, size=_SMALL, faint=True))
                place += 14.0 + _text_width(words, _SMALL) + 12.0
        height += 18.0
    return _svg("forest", height, summary, parts)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where values between `low` and `high` lie between the coordinates `start` and `stop`."""

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    @classmethod
    def over(
        cls, values: Iterable[float], start: float, stop: float, *, margin: float = 0.06, is_log: bool = False
    ) -> _Scale:
        """A scale that shows all values, with a margin (a share of their range) at both ends."""
        known = [math.log10(value) for value in values] if is_log else list(values)
        low, high = min(known), max(known)
        if high - low <= 1e-9 * max(abs(low), abs(high)) + _TINY:
            # One value: a window around it, half as wide as the value is large (a factor of 3 where logarithmic).
            half = abs(low) / 4.0 if abs(low) > _TINY and not is_log else 0.5
            return cls(low - half, high + half, start, stop, is_log)
        extra = margin * (high - low)
        return cls(low - extra, high + extra, start, stop, is_log)

    def __call__(self, value: float) -> float:
        inner = math.log10(value) if self.is_log else value
        return self.start + (inner - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, n_most: int) -> list[tuple[float, str]]:
        """At most `n_most` round values on the scale and how to write them, in steps of 1, 2 or 5 times ten."""
        if self.is_log:
            return self._log_ticks(n_most)
        return _even_ticks(self.low, self.high, n_most)

    def _log_ticks(self, n_most: int) -> list[tuple[float, str]]:
        for digits in ((1, 2, 5), (1, 3), (1,)):
            values = [
                digit * 10.0**power
                for power in range(math.floor(self.low) - 1, math.ceil(self.high) + 1)
                for digit in digits
                if self.low <= power + math.log10(digit) <= self.high
            ]
            if 2 <= len(values) <= n_most:
                return [(value, _short(value)) for value in values]
        if len(values) > n_most:
            # Many decades: every second, third, ... of them.
            stride = -(-len(values) // n_most)
            return [(value, _short(value)) for value in values[::stride]]
        return _even_ticks(10.0**self.low, 10.0**self.high, n_most)

    def rounded_out(self, n_most: int) -> _Scale:
        """The scale, prolonged at its upper end to the next tick."""
        step = _step(self.low, self.high, n_most)
        return _Scale(self.low, math.ceil(self.high / step - 1e-9) * step, self.start, self.stop)


def _step(low: float, high: float, n_most: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that divides the range into fewer than `n_most` steps."""
    rough = (high - low) / max(n_most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1.0, 2.0, 5.0, 10.0) if digit * power >= rough * (1.0 - 1e-9))


def _even_ticks(low: float, high: float, n_most: int) -> list[tuple[float, str]]:
    step = _step(low, high, n_most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    n_decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if n_decimals > 6 or abs(high) >= 1e6 or abs(low) >= 1e6:
        return [(number * step, _short(number * step)) for number in range(first, last + 1)]
    return [(number * step, _minus(f"{number * step:,.{n_decimals}f}")) for number in range(first, last + 1)]


def _y_axis(ticks: list[tuple[float, str]], y: _Scale, left: float, label: str) -> list[str]:
    """Hairlines with their values, and the name of the axis lying flat above it, where it is read first."""
    parts = [_text(0.0, 12.0, _shorten(label, _WIDTH), weight=600)]
    for value, text in ticks:
        parts.append(_path(f"M{_n(left)} {_n(y(value))}H{_n(_WIDTH)}", "var(--grid)", 1.0))
        parts.append(_text(left - 6.0, y(value) + 4.0, text, anchor="end", size=_SMALL, faint=True))
    return parts


def _x_axis(
    x: _Scale, bottom: float, left: float, label: str, *, grid_top: float | None = None, right: float = _WIDTH
) -> list[str]:
    """A line with as many round values below it as have room, and the name of the axis."""
    parts = [_path(f"M{_n(left)} {_n(bottom)}H{_n(right)}", "var(--ink)", 1.0)]
    for value, text in _roomy_ticks(x):
        if grid_top is not None:
            parts.append(_path(f"M{_n(x(value))} {_n(grid_top)}V{_n(bottom)}", "var(--grid)", 1.0))
        parts.append(_path(f"M{_n(x(value))} {_n(bottom)}v4", "var(--ink)", 1.0))
        parts.append(_text(x(value), bottom + 16.0, text, anchor="middle", size=_SMALL, faint=True))
    name = _shorten(label, _WIDTH)
    half = _text_width(name) / 2.0
    centre = max(min((left + right) / 2.0, _WIDTH - half), half)
    parts.append(_text(centre, bottom + 34.0, name, anchor="middle"))
    return parts


def _roomy_ticks(x: _Scale) -> list[tuple[float, str]]:
    for n_most in range(7, 2, -1):
        ticks = x.ticks(n_most)
        ends = [(x(v) - _text_width(t, _SMALL) / 2.0, x(v) + _text_width(t, _SMALL) / 2.0) for v, t in ticks]
        if all(right + 8.0 <= left for (_, right), (left, _) in pairwise(ends)):
            break
    return ticks


def _tick_column(ticks: list[tuple[float, str]]) -> float:
    return max((_text_width(text, _SMALL) for _, text in ticks), default=0.0) + 8.0


def _frontier(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other beats at the same or a lower cost, the cheapest first."""
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i].x, -points[i].y)):
        if not found or points[index].y > points[found[-1]].y:
            found.append(index)
    return found


def _place_labels(
    labels: Sequence[str],
    places: Sequence[tuple[float, float]],
    marks: npt.NDArray[np.float64],
    lines: Sequence[Box],
    area: Box,
) -> list[tuple[Box, Leader] | None]:
    """A box for each label near its place, with the hairline that leads to it; None where there is no room.

    Boxes lie inside the area, clear of each other and of all marks [n, 4]. `lines` (thin boxes) are better not crossed,
    nor are hairlines. Labels are placed in turn, over and over, each where it disturbs the others least; a box that
    still overlaps at the end is given up.
    """
    drawn = np.array(lines).reshape(-1, 4)
    options = [
        _options(_text_width(text), *place, marks, drawn, area) for text, place in zip(labels, places, strict=True)
    ]
    chosen: list[int | None] = [None] * len(labels)

    def placed(but: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        others = [(options[i], c) for i, c in enumerate(chosen) if c is not None and i != but]
        boxes = np.array([option.boxes[c] for option, c in others]).reshape(-1, 4)
        return boxes, np.array([option.leaders[c] for option, c in others]).reshape(-1, 2)

    for _ in range(10):
        before = list(chosen)
        for index, option in enumerate(options):
            if len(option.costs):
                boxes, leaders = placed(index)
                n_overlaps = _overlap(option.boxes, boxes).sum(axis=1)
                n_crossed = _inside(leaders[None, :], option.boxes[:, None]).sum(axis=1)
                n_crossing = _inside(option.leaders[:, :, None], boxes[None, None]).sum(axis=(1, 2))
                chosen[index] = int(np.argmin(option.costs + 5000.0 * n_overlaps + 30.0 * (n_crossed + n_crossing)))
        if chosen == before:
            break
    found: list[tuple[Box, Leader] | None] = []
    for index, (option, choice) in enumerate(zip(options, chosen, strict=True)):
        if choice is None or _overlap(option.boxes[choice : choice + 1], placed(index)[0]).any():
            chosen[index] = None
            found.append(None)
        else:
            x0, y0, x1, y1 = option.boxes[choice].tolist()
            leader = option.leaders[choice]
            found.append(((x0, y0, x1, y1), None if np.isnan(leader).any() else (*leader[0], *leader[-1])))
    return found


class _Options(NamedTuple):
    boxes: npt.NDArray[np.float64]  # [options, 4]
    costs: npt.NDArray[np.float64]  # [options], about the distance in units
    leaders: npt.NDArray[np.float64]  # [options, 8, 2], points from the mark to the box, NaN where they are adjacent


def _options(
    width: float, px: float, py: float, marks: npt.NDArray[np.float64], lines: npt.NDArray[np.float64], area: Box
) -> _Options:
    """Boxes in rings around a place that lie in the area and on no mark."""
    rings = np.array([8.0, 14.0, 24.0, 36.0, 52.0, 72.0, 96.0])
    ring, turn = (part.ravel() for part in np.meshgrid(rings, np.radians(np.arange(-165, 181, 15))))
    x, y = px + np.cos(turn) * (ring + width / 2.0), py - np.sin(turn) * (ring + 7.0)
    boxes = np.column_stack([x - width / 2.0, y - 7.0, x + width / 2.0, y + 7.0])
    fits = ((boxes[:, :2] >= area[:2]) & (boxes[:, 2:] <= area[2:])).all(axis=1) & ~_overlap(boxes, marks).any(axis=1)
    boxes, ring, turn = boxes[fits], ring[fits], turn[fits]
    # Straight to the right is best, to the left next, above and below last; crossing a line is worth a detour.
    costs = ring + 3.0 * np.abs(np.sin(turn)) + 2.0 * (1.0 - np.cos(turn)) + 18.0 * _overlap(boxes, lines).sum(axis=1)
    start = np.array([px, py])
    reach = np.clip(start, boxes[:, :2] + (0.0, 2.0), boxes[:, 2:] - (0.0, 2.0)) - start
    length = np.maximum(np.hypot(*reach.T), 1e-9)
    shares = np.linspace(6.0 / length, 1.0, 8, axis=1)
    leaders = start + shares[:, :, None] * reach[:, None]
    leaders[length < 12.0] = math.nan
    return _Options(boxes, costs, leaders)


def _overlap(some: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which boxes [n, 4] overlap which others [m, 4], or come within a unit at the side: bool [n, m]."""
    a, b = some[:, None], others[None, :]
    beside = (a[..., 0] < b[..., 2] + 1.0) & (b[..., 0] < a[..., 2] + 1.0)
    return beside & (a[..., 1] < b[..., 3]) & (b[..., 1] < a[..., 3])


def _inside(points: npt.NDArray[np.float64], boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    x, y = points[..., 0], points[..., 1]
    return (x > boxes[..., 0]) & (x < boxes[..., 2]) & (y > boxes[..., 1]) & (y < boxes[..., 3])


def _label(px: float, box: Box, words: str) -> str:
    """A name in its box, on the side towards its mark, with a halo in the page's colour where there is one."""
    if box[0] >= px:
        x, anchor = box[0], "start"
    elif box[2] <= px:
        x, anchor = box[2], "end"
    else:
        x, anchor = (box[0] + box[2]) / 2.0, "middle"
    halo = 'stroke="var(--paper, transparent)" stroke-width="3" stroke-linejoin="round" paint-order="stroke"'
    return f"<g {halo}>{_text(x, box[3] - 4.0, words, anchor=anchor)}</g>"


def _bar_path(heights: Sequence[float], left: float, slot: float, zero: float) -> str:
    """Outline of bars from `zero` to the heights: apart where there is room, else joined, equal ones as one."""
    if slot >= 3.0:
        width = min(0.8 * slot, 28.0)
        starts = [left + (index + 0.5) * slot - width / 2.0 for index in range(len(heights))]
        return "".join(
            f"M{_n(start)} {_n(zero)}V{_n(height)}h{_n(width)}V{_n(zero)}Z"
            for start, height in zip(starts, heights, strict=True)
            if height != zero
        )
    outline = ""
    for index, height in enumerate(heights):
        if index == 0 or height != heights[index - 1]:
            outline += f"H{_n(left + index * slot)}V{_n(height)}"
    return f"M{_n(left)} {_n(zero)}{outline}H{_n(left + len(heights) * slot)}V{_n(zero)}Z" if outline else ""


def _legend(names: Sequence[str], top: float) -> tuple[list[str], float]:
    """Line samples with names, flowing in as many rows as they need, and where the chart below them begins."""
    parts, place, middle = [], 0.0, top - 4.0
    for index, name in enumerate(names):
        text = _shorten(name, 160.0)
        width = 34.0 + _text_width(text)
        if place and place + width > _WIDTH:
            place, middle = 0.0, middle + 18.0
        colour = _colour(index)
        line = f"M{_n(place + 1.0)} {_n(middle)}h27"
        parts.append(_path(line, colour, 1.8, dash=_DASHES[index % len(_DASHES)]))
        parts.append(_mark(_MARKS[index % len(_MARKS)], place + 14.5, middle, colour, "", size=3.2))
        parts.append(_text(place + 34.0, middle + 4.0, text))
        place += width + 14.0
    return parts, middle + 18.0


def _mark(kind: str, x: float, y: float, colour: str, tip: str, *, size: float) -> str:
    title = _title(tip) if tip else ""
    if kind == "ring":
        return (
            f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(size - 0.6)}" fill="{colour}" fill-opacity="0" '
            f'stroke="{colour}" stroke-width="1.8">{title}</circle>'
        )
    if kind == "circle":
        return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(size)}" fill="{colour}">{title}</circle>'
    # Sizes are of equal weight to the eye, not of equal extent.
    wide = {"square": 0.9, "diamond": 1.3, "up": 1.25, "down": 1.25, "cross": 1.1}[kind] * size
    w, both = _n(wide), _n(2.0 * wide)
    outline = {
        "square": f"m-{w} -{w}h{both}v{both}h-{both}z",
        "diamond": f"m0 -{w}l{w} {w}l-{w} {w}l-{w} -{w}z",
        "up": f"m0 -{w}l{w} {both}h-{both}z",
        "down": f"m0 {w}l{w} -{both}h-{both}z",
        "cross": f"m-{w} -{w}l{both} {both}m-{both} 0l{both} -{both}",
    }[kind]
    stroke = f' stroke="{colour}" stroke-width="2"' if kind == "cross" else ""
    return f'<path d="M{_n(x)} {_n(y)}{outline}" fill="{colour}"{stroke}>{title}</path>'


def _path(drawing: str, colour: str, width: float, *, dash: str = "", opacity: float = 1.0) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    faint = f' stroke-opacity="{_n(opacity)}"' if opacity < 1.0 else ""
    return (
        f'<path d="{drawing}" fill="none" stroke="{colour}" stroke-width="{_n(width)}"'
        f'{dashes}{faint} stroke-linejoin="round"/>'
    )


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: float = _TEXT,
    weight: int = 400,
    faint: bool = False,
) -> str:
    bold = f' font-weight="{weight}"' if weight != 400 else ""
    opacity = ' fill-opacity="0.75"' if faint else ""
    side = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}"{side}{bold}{opacity}>{_escape(words)}</text>'


def _title(words: str) -> str:
    return f"<title>{_escape(words)}</title>"


def _svg(kind: str, height: float, summary: str, parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot plot-{kind}" viewBox="0 0 {_n(_WIDTH)} {_n(height)}" '
        f'width="100%" role="img" aria-label="{_escape(summary)}" fill="var(--ink)" '
        f'style="max-width:30rem;font-variant-numeric:tabular-nums">{"".join(parts)}</svg>'
    )


def _nothing(kind: str, summary: str, label: str) -> str:
    words = _text(_WIDTH / 2.0, 44.0, "nothing to show", anchor="middle", faint=True)
    return _svg(kind, 72.0, f"{summary.rstrip(': ')}: nothing to show", [_text(0.0, 12.0, label, weight=600), words])


def _escape(words: str) -> str:
    return html.escape(_NOT_XML.sub("\ufffd", words))


def _colour(index: int) -> str:
    return f"var(--c{index % _N_COLOURS})"


def _text_width(words: str, size: float = _TEXT) -> float:
    """Width of the words in a wide sans-serif font (DejaVu Sans); in most others they are narrower."""
    width = 0.0
    for character in words:
        if unicodedata.combining(character):
            continue
        if unicodedata.east_asian_width(character) in "WF":
            width += 1.0
        elif character in "iljI|!',.:; ":
            width += 0.33
        elif character in "ftr()[]/-":
            width += 0.41
        elif character in "mwMW@%…":
            width += 0.97
        else:
            width += 0.74 if character.isupper() else 0.64
    return width * size


def _shorten(words: str, width: float) -> str:
    """The words on one line; where they are too wide, without their middle: names differ at both ends."""
    line = " ".join(words.split())
    if _text_width(line) <= width:
        return line
    n_kept = len(line) - 1
    while n_kept > 1 and _text_width(line[: n_kept - n_kept // 2] + "…" + line[len(line) - n_kept // 2 :]) > width:
        n_kept -= 1
    return line[: n_kept - n_kept // 2] + "…" + line[len(line) - n_kept // 2 :]


def _cut(words: str) -> str:
    """The beginning of a text that may be a whole page, for a tooltip."""
    return words if len(words) <= 120 else words[:119] + "…"


def _n(value: float) -> str:
    """A coordinate, to a hundredth of a unit."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _figure(value: float) -> str:
    """A value of a measure as tables give it."""
    if not math.isfinite(value):
        return "no value"
    return _minus(f"{value:.4f}") if abs(value) < 10.0 else _short(value)


def _signed(value: float) -> str:
    return _minus(f"{value:+.4f}")


def _short(value: float) -> str:
    """A number to three digits, in powers of ten only where it would be long otherwise."""
    if value == 0.0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        rounded = float(f"{value:.3g}")
        n_decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
        text = f"{rounded:,.{n_decimals}f}"
        return _minus(text.rstrip("0").rstrip(".") if "." in text else text)
    digits, power = f"{value:.2e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    digits = digits.rstrip("0").rstrip(".")
    return _minus(f"10{raised}" if digits == "1" else f"{digits}×10{raised}")


def _minus(number: str) -> str:
    return number.replace("-", "\u2212")


def _interval(low: float, high: float) -> str:
    return f" [{_figure(low)}, {_figure(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
