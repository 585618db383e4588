from __future__ import annotations

import math
import random
import re
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.errors import DataError
from rerank.evaluation.plots import STYLE, Point, Row, curves, difference_bars, forest, scatter
from rerank.evaluation.plots import _Scale as Scale

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert('x')</script> & \"quotes\" \x00\x1b\ud800 ]]> <!--"

numbers = st.floats(-1e9, 1e9) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e-300, 5e-324])
labels = st.text(max_size=40)
charts = {
    "scatter": lambda text: scatter([Point(text, 1.0, 0.5, 0.4, 0.6), Point("nan", math.nan, 1.0)], text, text),
    "difference_bars": lambda text: difference_bars([0.1, -0.1], [text, text], text),
    "curves": lambda text: curves({text: [0.5, 0.4]}, [0.0, 1.0], text, text),
    "forest": lambda text: forest([Row(text, 0.5, 0.4, 0.6), Row("other", 0.5, 0.4, 0.6, True)], text),
}


def parse(svg: str) -> ET.Element:
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root.get("width") == "100%"
    assert "nan" not in re.sub(r">[^<]*<|aria-label=\"[^\"]*\"", "><", svg)
    return root


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def titles(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}title")]


# --- for all charts


@pytest.mark.parametrize("chart", charts)
def test_hostile_text_is_escaped_and_stays_readable(chart):
    root = parse(charts[chart](HOSTILE))
    assert not list(root.iter(f"{SVG}script"))
    assert any("<script>alert('x')</script>" in title for title in titles(root))


@pytest.mark.parametrize("chart", charts)
def test_colours_come_from_custom_properties_only_and_nothing_is_loaded_or_run(chart):
    svg = charts[chart]("name")
    assert set(re.findall(r'(?:fill|stroke)="([^"]*)"', svg)) <= {
        "none",
        "var(--ink)",
        "var(--grid)",
        "var(--paper, transparent)",
        *(f"var(--c{i})" for i in range(8)),
    }
    assert not re.search(r"#[0-9a-f]{3}|rgb|<script|<style|href|url\(| on\w+=", svg)


@pytest.mark.parametrize("chart", charts)
def test_charts_are_the_same_every_time(chart):
    assert charts[chart]("name") == charts[chart]("name")


@pytest.mark.parametrize("chart", charts)
def test_text_stays_readable_on_a_phone(chart):
    svg = charts[chart]("name")
    width = float(re.search(r'viewBox="0 0 (\S+) ', svg)[1])
    sizes = [float(size) for size in re.findall(r'font-size="([^"]+)"', svg)]
    assert min(sizes) * 328 / width >= 10.0


def test_nothing_to_show_is_said():
    empty = [
        scatter([], "x", "y"),
        scatter([Point("a", 0.0, 1.0)], "x", "y", log_x=True),
        difference_bars([], [], "y"),
        difference_bars([math.nan], ["q"], "y"),
        curves({}, [], "x", "y"),
        curves({"a": [math.nan]}, [0.0], "x", "y"),
        forest([], "x"),
        forest([Row("a", math.nan, math.nan, math.nan)], "x"),
    ]
    for svg in empty:
        assert "nothing to show" in texts(parse(svg))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(Point, labels, numbers, numbers, numbers, numbers), max_size=6), labels, st.booleans())
def test_any_scatter_is_valid(points, label, log_x):
    parse(scatter(points, label, label, log_x=log_x))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(numbers, labels), max_size=12), labels)
def test_any_difference_chart_is_valid(rows, label):
    parse(difference_bars([d for d, _ in rows], [text for _, text in rows], label))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(labels, st.lists(numbers, min_size=3, max_size=3), max_size=4), st.tuples(*[numbers] * 3), labels
)
def test_any_line_chart_is_valid(series, x_values, label):
    parse(curves(series, x_values, label, label))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.builds(Row, labels, numbers, numbers, numbers, st.sampled_from([True, False, None])), max_size=6),
    labels,
)
def test_any_forest_is_valid(rows, label):
    parse(forest(rows, label))


# --- scales


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 8))
def test_ticks_are_round_few_inside_and_evenly_spaced(low, extent, n_most):
    scale = Scale.over([low, low + extent], 0.0, 100.0)
    ticks = scale.ticks(n_most)
    values = [value for value, _ in ticks]
    assert 1 <= len(ticks) <= n_most
    slack = 1e-6 * (scale.high - scale.low)
    assert all(scale.low - slack <= value <= scale.high + slack for value in values)
    if len(values) > 1:
        step = values[1] - values[0]
        mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(mantissa - digit) for digit in (1, 2, 5)) < 1e-3
        assert np.allclose(np.diff(values), step, rtol=1e-3)


def test_tick_labels_have_as_many_decimals_as_the_step_needs():
    assert [text for _, text in Scale(0.29, 0.41, 0.0, 1.0).ticks(7)] == [
        "0.30",
        "0.32",
        "0.34",
        "0.36",
        "0.38",
        "0.40",
    ]
    assert [text for _, text in Scale(-1.0, 1.0, 0.0, 1.0).ticks(5)] == ["−1.0", "−0.5", "0.0", "0.5", "1.0"]
    assert [text for _, text in Scale(0.0, 20_000.0, 0.0, 1.0).ticks(3)] == ["0", "10,000", "20,000"]


def test_logarithmic_ticks_follow_the_range():
    def shown(low, high, n_most=6):
        return [text for _, text in Scale.over([low, high], 0.0, 1.0, is_log=True, margin=0.0).ticks(n_most)]

    assert shown(0.01, 0.1) == ["0.01", "0.02", "0.05", "0.1"]
    assert shown(0.001, 0.1) == ["0.001", "0.003", "0.01", "0.03", "0.1"]
    assert shown(0.001, 10) == ["0.001", "0.01", "0.1", "1", "10"]
    assert shown(1e-6, 1e6, 4) == ["10⁻⁶", "0.01", "100", "10⁶"]
    assert shown(3.2, 3.9, 5) == ["3.2", "3.4", "3.6", "3.8"]


# --- scatter


def label_boxes(root: ET.Element) -> list[tuple[float, float, float, float]]:
    boxes = []
    for group in root.iter(f"{SVG}g"):
        for text in group.iter(f"{SVG}text"):
            # Narrower than the widest font the layout allows for.
            width = 6.0 * len(text.text)
            anchor = text.get("text-anchor", "start")
            x = float(text.get("x")) - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            y = float(text.get("y"))
            boxes.append((x, y - 9.0, x + width, y + 3.0))
    return boxes


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [1.0, 0.05])
def test_names_of_points_never_overlap_and_stay_inside(seed, spread):
    rng = random.Random(seed)
    points = [Point(f"system-{i:02d}", 1 + spread * rng.random(), spread * rng.random()) for i in range(12)]
    points.append(Point("far-away-one", 5.0, 2.0))
    boxes = label_boxes(parse(scatter(points, "seconds", "nDCG@10")))
    assert len(boxes) >= 8
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert all(box[0] >= 0.0 and box[2] <= 360.0 for box in boxes)


def test_six_systems_are_all_named():
    costs, values = [0.0012, 0.011, 0.006, 0.013, 0.21, 0.004], [0.325, 0.318, 0.331, 0.352, 0.361, 0.334]
    names = ["bm25", "dense", "splade", "hybrid", "hybrid-rescored", "rm3"]
    points = [Point(n, x, y, y - 0.02, y + 0.02) for n, x, y in zip(names, costs, values, strict=True)]
    root = parse(scatter(points, "seconds per query", "nDCG@10", log_x=True))
    assert set(names) <= set(texts(root))
    assert "bm25: nDCG@10 0.3250 [0.3050, 0.3450], seconds per query 0.0012" in titles(root)


def test_points_without_a_place_are_named_below():
    points = [Point("free", 0.0, 0.5), Point("bm25", 1.0, 0.5), Point("broken", 2.0, math.nan)]
    assert "not shown: free, broken" in texts(parse(scatter(points, "x", "y", log_x=True)))
    assert "not shown: broken" in texts(parse(scatter(points, "x", "y")))


def test_coinciding_points_are_all_drawn():
    root = parse(scatter([Point(f"same-{i}", 1.0, 1.0) for i in range(5)], "x", "y"))
    assert len(list(root.iter(f"{SVG}circle"))) == 5


def test_many_points_are_drawn_and_only_the_best_named():
    rng = random.Random(0)
    points = [Point(f"system-{i}", rng.random(), rng.random()) for i in range(300)]
    root = parse(scatter(points, "x", "y"))
    assert len(titles(root)) == 300
    assert max(points, key=lambda p: p.y).label in texts(root)
    assert len(label_boxes(root)) < 40


def test_quality_rises_upwards_and_cost_to_the_right():
    root = parse(scatter([Point("cheap", 1.0, 0.1), Point("dear", 2.0, 0.9)], "x", "y"))
    cheap, dear = root.iter(f"{SVG}circle")
    assert float(cheap.get("cx")) < float(dear.get("cx"))
    assert float(cheap.get("cy")) > float(dear.get("cy"))


# --- differences


def test_differences_are_sorted_and_counted_with_rounding_as_equal():
    root = parse(difference_bars([-0.2, 0.5, 0.0, 0.1, 1e-17], list("abcde"), "difference"))
    assert [title.split(":")[0] for title in titles(root)] == ["b", "d", "e", "c", "a"]
    assert titles(root)[0] == "b: +0.5000"
    assert titles(root)[-1] == "a: −0.2000"
    assert {"2 better", "2 equal", "1 worse"} <= set(texts(root))


def test_many_queries_share_tooltips_and_the_drawing_stays_small():
    rng = np.random.default_rng(0)
    svg = difference_bars(rng.normal(size=20_000).tolist(), [f"q{i}" for i in range(20_000)], "difference")
    root = parse(svg)
    assert len(titles(root)) == 240
    assert "… 80 more" in titles(root)[0]
    assert len(svg) < 100_000


def test_long_query_texts_are_cut_in_tooltips():
    title = titles(parse(difference_bars([0.1], ["word " * 1000], "difference")))[0]
    assert len(title) < 140
    assert title.endswith("…: +0.1000")


def test_queries_without_a_value_are_counted():
    root = parse(difference_bars([0.1, math.nan], ["a", "b"], "difference"))
    assert "1 query, largest gain first (1 without a value)" in texts(root)


def test_differences_need_a_label_each():
    with pytest.raises(DataError, match="2 differences and 1 labels"):
        difference_bars([0.1, 0.2], ["a"], "difference")


# --- curves


def test_series_differ_without_colour():
    root = parse(curves({f"run-{i}": [0.9 - i / 20, 0.1] for i in range(12)}, [0.0, 1.0], "recall", "precision"))
    lines = [path for path in root.iter(f"{SVG}path") if path.get("stroke-width") == "1.8"]
    legend = [path for path in lines if "h27" in path.get("d")]
    assert len(legend) == 12
    looks = {(path.get("stroke"), path.get("stroke-dasharray")) for path in legend}
    assert len(looks) == 12
    assert {f"run-{i}" for i in range(12)} <= set(texts(root))


def test_a_gap_interrupts_the_line():
    root = parse(curves({"a": [0.9, 0.8, math.nan, 0.3, 0.2]}, [0.0, 0.25, 0.5, 0.75, 1.0], "x", "y"))
    drawings = [path.get("d") for path in root.iter(f"{SVG}path") if path.get("stroke-width") == "1.8"]
    assert sorted(drawing.count("M") for drawing in drawings) == [1, 2]
    assert len(titles(root)) == 4


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.2, 0.31], [1.0, 0.4]])
def test_the_vertical_axis_begins_at_zero_and_ends_on_a_tick(values):
    root = parse(curves({"a": values}, [0.0, 1.0], "recall", "precision"))
    bottom, *_, top = [t for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "end"]
    assert float(bottom.text) == 0.0
    assert float(top.text) >= max(values)


def test_a_series_of_another_length_is_refused_by_name():
    with pytest.raises(DataError, match="curve 'dense' has 1 values for 2 places"):
        curves({"dense": [0.1]}, [0.0, 1.0], "x", "y")


# --- forest


def test_rows_show_verdict_mean_and_baseline():
    rows = [Row("bm25", 0.3, 0.28, 0.32), Row("dense", 0.31, 0.29, 0.33, False), Row("hybrid", 0.4, 0.38, 0.42, True)]
    root = parse(forest(rows, "nDCG@10"))
    assert titles(root) == [
        "bm25: nDCG@10 0.3000 [0.2800, 0.3200], baseline",
        "dense: nDCG@10 0.3100 [0.2900, 0.3300], not significant",
        "hybrid: nDCG@10 0.4000 [0.3800, 0.4200], significant",
    ]
    assert {"baseline", "significant", "not significant", "0.3000", "0.3100", "0.4000"} <= set(texts(root))
    assert [text.text for text in root.iter(f"{SVG}text") if text.get("font-weight") == "600"] == ["0.4000"]


def test_without_a_baseline_there_is_no_key():
    root = parse(forest([Row("a", 1.0, 0.5, 1.5), Row("b", 2.0, 1.5, 2.5)], "x"))
    assert "baseline" not in texts(root)
    assert titles(root)[0] == "a: x 1.0000 [0.5000, 1.5000]"


def test_long_names_keep_both_ends_and_leave_room_for_the_plot():
    name = "qwen2.5-7b-instruct-listwise-window-20-stride-10-hybrid"
    root = parse(forest([Row(name, 0.4, 0.3, 0.5)], "x"))
    short = next(text for text in texts(root) if "…" in text)
    assert name.startswith(short.split("…")[0])
    assert name.endswith(short.split("…")[1])
    assert titles(root)[0].startswith(name)


# --- the style


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_the_style_has_readable_contrast_in_both_modes(mode):
    colours = dict(re.findall(r"--(\w+): (#\w{6})", STYLE.split("@media")[mode]))
    paper, ink = colours["paper"], colours["ink"]
    faint = "#" + "".join(
        f"{round(0.75 * int(ink[i : i + 2], 16) + 0.25 * int(paper[i : i + 2], 16)):02x}" for i in (1, 3, 5)
    )
    assert contrast(ink, paper) > 7.0
    assert contrast(faint, paper) > 7.0
    assert all(contrast(colours[f"c{i}"], paper) > 3.0 for i in range(8))
