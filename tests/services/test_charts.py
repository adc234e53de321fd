"""The geometry of strips and sparklines, whatever stands in the row."""

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from services import charts

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


def test_the_newest_probe_stands_at_the_right_edge_and_the_last_miss_is_found():
    found = charts.strip([[1_000, 1, 5], [2_000, 0, 70], [3_000, 1, 6]])
    assert [(probe.x, probe.ok) for probe in found.probes] == [(57, True), (58, False), (59, True)]
    assert (found.passed, found.slowest_ms) == (2, 70)
    assert found.missed.at == datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)


def test_only_the_last_60_probes_and_120_samples_are_shown():
    assert len(charts.strip([[at, 1, 1] for at in range(200)]).probes) == 60
    assert len(charts.usage([[at, 1.0, 1] for at in range(200)]).rows) == 120


def test_a_line_rises_from_zero_to_its_greatest_value():
    found = charts.spark([0.0, 50.0, 100.0])
    assert found.points == "117,30.00 118,16.00 119,2.00"
    assert (found.least, found.most, found.now) == (0.0, 100.0, 100.0)


def test_one_sample_and_a_flat_zero_are_lines_too():
    assert charts.spark([0.0]).points == "118,30.00 119,30.00"
    assert charts.spark([0.0, 0.0]).points == "118,30.00 119,30.00"


def test_nothing_is_no_chart():
    assert charts.strip([]) is None
    assert charts.usage([["x", None, {}]]) is None


@settings(max_examples=150, deadline=None)
@given(st.lists(JUNK | st.tuples(st.integers(), st.integers(), st.floats()).map(list), max_size=80))
def test_no_row_breaks_a_chart(rows):
    charts.strip(rows)
    found = charts.usage(rows)
    if found is not None:
        places = [point.split(",") for point in found.cpu.points.split()]
        assert all(0 <= float(x) <= 119 and 0 <= float(y) <= 30 for x, y in places)
