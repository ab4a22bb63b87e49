"""Plots: the same data gives the same bytes, and shows every value where it belongs."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from infra_bench.load import load
from infra_bench.plot import Plot, Series, digest_of, draw, plan
from infra_bench.record import CaseRecord, Measurement, derive
from infra_bench.selection import Entry, MarkerError, choose

PROGRAM = """
import sys; from pathlib import Path
from infra_bench.load import load; from infra_bench.plot import draw, plan
from infra_bench.selection import choose
sys.stdout.write(draw(plan(choose(load(Path(sys.argv[1])), "8*"), "bars", "metric", "ratio")))
"""


def test_two_processes_draw_the_same_bytes(served: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    one, other = (
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(served)], cwd=root, capture_output=True, check=True
        ).stdout
        for _ in "ab"
    )
    assert one == other
    assert len(one) > 1000


@pytest.mark.parametrize("kind", ["bars", "lines"])
def test_a_plot_is_an_svg_with_white_ground_and_the_digest_of_its_data(kind: str) -> None:
    plot = Plot(kind, "N", "TFLOP/s", ["64", "128"], [series("a"), series("b")], "x")
    svg = draw(plot)
    ElementTree.fromstring(svg)
    assert "fill: #ffffff" in svg
    assert digest_of(svg) == plot.digest
    assert not re.search(r"\d{4}-\d\d-\d\dT", svg)  # no date of drawing


def series(name: str) -> Series:
    return Series(name, name == "a", [1.0, None], [0.9, None], [1.1, None])


def timed(sizes: list[int]) -> list[Entry]:
    """Make cases whose implementation "a" takes N microseconds with 2e6 N operations a call."""
    entries = []
    for size in sizes:
        rows = (
            Measurement("a", "time", "s", "lower", True, "ok", "", 0.0, "t", 1, (size * 1e-6,) * 3),
            Measurement("b", "time", "s", "lower", True, "refused", "wrong", None, "", 0, ()),
        )
        case = derive(CaseRecord(str(size), "a", {"N": size}, rows, flops=2e6 * size))
        entries += [Entry(case, row) for row in case.rows]
    return entries


def test_lines_are_in_the_order_of_their_numbers() -> None:
    plot = plan(timed([1024, 64, 256]), "lines", "N", "median")
    assert plot.x == ["64", "256", "1024"]
    assert plot.y_label == "ms"
    a, b = plot.series
    assert a.values == [0.064, 0.256, 1.024]
    assert b.values == [None, None, None]  # what was refused has no place in a plot
    ElementTree.fromstring(draw(plot))


def test_rates_share_one_unit_and_keep_their_spread() -> None:
    plot = plan(timed([64]), "bars", "case", "rate")
    assert plot.y_label == "TFLOP/s"
    assert plot.series[0].values == [2.0]
    assert (plot.series[0].low, plot.series[0].high) == ([2.0], [2.0])


def test_one_bar_for_each_implementation(served: Path) -> None:
    plot = plan(choose(load(served), "64"), "bars", "implementation", "rate")
    assert plot.x == ["torch.matmul", "ours", "wrong", "absent"]
    assert len(plot.series) == 1
    assert [value is None for value in plot.series[0].values] == [False, False, True, True]


def test_a_changed_value_changes_the_digest() -> None:
    one, other = timed([64]), timed([65])
    assert (
        plan(one, "bars", "implementation", "rate").digest
        == plan(one, "bars", "implementation", "rate").digest
        != plan(other, "bars", "implementation", "median").digest
    )


def below_a_roof(**changes: float) -> list[Entry]:
    """Make two cases of 8 and 2 FLOP a byte on a machine of 4 TFLOP/s and 1 TB/s."""
    entries = []
    for name, moved in (("dense", 1e6), ("thin", 4e6)):
        row = Measurement("a", "time", "s", "lower", True, "ok", "", 0.0, "t", 1, (4e-6,) * 3)
        peaks = {"peak_flops": 4e12, "peak_bytes": 1e12, **changes}
        case = derive(CaseRecord(name, "a", {}, (row,), flops=8e6, bytes=moved, **peaks))
        entries += [Entry(case, row) for row in case.rows]
    return entries


def test_a_roofline_places_rates_under_what_the_machine_can_reach() -> None:
    plot = plan(below_a_roof(), "roofline", "case", "rate")
    assert plot.x == ["2", "8"]
    assert plot.series[0].values == [2.0, 2.0]  # TFLOP/s
    assert plot.roof == (4.0, 1.0)
    svg = draw(plot)
    ElementTree.fromstring(svg)
    assert digest_of(svg) == plot.digest
    assert plot.digest != plan(below_a_roof(peak_bytes=2e12), "roofline", "case", "rate").digest


def test_a_roofline_without_peaks_is_an_error() -> None:
    with pytest.raises(MarkerError, match="needs one peak_flops and one peak_bytes"):
        plan(below_a_roof(peak_bytes=0.0), "roofline", "case", "rate")
    with pytest.raises(MarkerError, match="needs one peak_flops and one peak_bytes"):
        plan(below_a_roof() + below_a_roof(peak_flops=5e12), "roofline", "case", "rate")


def test_shares_of_the_peak_are_percent() -> None:
    plot = plan(below_a_roof(), "bars", "case", "share")
    assert (plot.y_label, plot.series[0].values) == ("% of the peak", [50.0, 50.0])


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(MarkerError, match="no row that was measured has a ratio"):
        plan([each for each in timed([64]) if each.row.status != "ok"], "bars", "case", "ratio")
