"""The arithmetic of the page's pictures, in Node: axes, days, bins and ranks."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from node import javascript

WEB = Path(__file__).parents[2] / "app" / "web"

NAMES = "ticks, counts, dollars, daysFrom, namedDays, stacked, shares, quantile, edge, bins, place, namedEdge"

Asked = Callable[[str], Any]


@pytest.fixture
def charts() -> Asked:
    """What an expression of JavaScript comes to, with the functions of ``charts.js`` at hand."""
    return lambda expression: javascript(f'import {{ {NAMES} }} from "./charts.js";\ntold(({expression}) ?? null);')


def test_an_axis_begins_at_nothing_ends_above_the_most_and_goes_in_even_round_steps(charts: Asked) -> None:
    most = [0.00003, 0.0007, 0.3, 1, 4, 7, 10, 99, 344, 12_345, 9_999_999]
    for top, marks in zip(most, charts(f"{json.dumps(most)}.map((one) => ticks(one))"), strict=True):
        steps = {round((after - before) / marks[1], 6) for before, after in pairwise(marks)}
        assert marks[0] == 0
        assert marks[-2] < top <= marks[-1]
        assert steps == {1}
        assert f"{marks[1]:e}"[0] in "125"
        assert len(marks) <= 5


def test_an_axis_of_nothing_has_a_mark_above_it_all_the_same(charts: Asked) -> None:
    assert charts("[0, NaN, -1].map((one) => ticks(one))") == [[0, 1]] * 3


def test_an_axis_of_things_has_no_halves(charts: Asked) -> None:
    assert charts("ticks(1, { least: 1 })") == [0, 1]
    assert charts("ticks(2, { least: 1 })") == [0, 1, 2]


def test_marks_have_as_many_digits_as_tell_them_apart(charts: Asked) -> None:
    assert charts("counts(ticks(1800))") == ["0", "500", "1k", "1.5k", "2k"]
    assert charts("dollars(ticks(0.00047))") == ["$0", "$0.0002", "$0.0004", "$0.0006"]
    assert charts("dollars(ticks(37))") == ["$0", "$10", "$20", "$30", "$40"]
    assert charts("dollars(ticks(1.5))") == ["$0", "$0.5", "$1.0", "$1.5"]


def test_days_follow_each_other_over_the_ends_of_months_and_of_summer(charts: Asked) -> None:
    assert charts('daysFrom("2028-02-28", 3)') == ["2028-02-28", "2028-02-29", "2028-03-01"]
    assert charts('daysFrom("2026-10-24", 4)') == ["2026-10-24", "2026-10-25", "2026-10-26", "2026-10-27"]


def test_as_many_days_are_named_as_have_room_and_today_always_is(charts: Asked) -> None:
    assert charts("namedDays(7, 60, 54)") == [0, 1, 2, 3, 4, 5, 6]
    assert charts("namedDays(30, 10, 54)") == [1, 8, 15, 22, 29]
    assert charts("namedDays(90, 3, 54)") == [5, 33, 61, 89]
    assert charts("namedDays(1, 0.1, 54)") == [0]


def test_parts_lie_upon_each_other_and_an_unknown_one_takes_no_room(charts: Asked) -> None:
    assert charts("stacked([2, null, 0, 3])") == [
        {"from": 0, "to": 2},
        {"from": 2, "to": 2},
        {"from": 2, "to": 2},
        {"from": 2, "to": 5},
    ]


def test_shares_make_one_and_those_of_nothing_are_nothing(charts: Asked) -> None:
    assert charts("shares([1, 3])") == [0.25, 0.75]
    assert charts("shares([0, 0])") == [0, 0]


def test_a_quantile_is_a_value_that_was_measured(charts: Asked) -> None:
    assert charts("quantile([30, 10, 20], 0.5)") == 20
    assert charts("quantile([10, 20], 0.5)") == 10
    assert charts("quantile(Array.from({ length: 100 }, (_, i) => 100 - i), 0.99)") == 99
    assert charts("quantile([5], 0.99)") == 5
    assert charts("quantile([], 0.5)") is None


def test_values_are_not_put_out_of_order_by_asking_for_their_quantile(charts: Asked) -> None:
    assert charts("((values) => [quantile(values, 0.5), values])([3, 1, 2])") == [2, [3, 1, 2]]


def test_bins_are_as_wide_as_each_other_on_a_logarithmic_axis(charts: Asked) -> None:
    edges = charts("Array.from({ length: 17 }, (_, i) => edge(i))")
    assert edges[:12] == [0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100]
    assert [after / before for before, after in pairwise(edges[6:])] == pytest.approx([10**0.2] * 10, rel=0.015)


def test_every_value_is_in_the_bin_whose_edges_are_around_it(charts: Asked) -> None:
    values = [0, 1, 9, 10, 10, 99, 100, 12_345, 300_000]
    found = charts(f"bins({json.dumps(values)})")
    assert found["counts"] == [sum(low <= one < high for one in values) for low, high in pairwise(found["edges"])]
    assert sum(found["counts"]) == len(values)
    assert found["counts"][0] > 0
    assert found["counts"][-1] > 0


def test_values_that_are_all_alike_have_empty_bins_on_both_sides(charts: Asked) -> None:
    found = charts("bins([240, 241])")
    assert found["edges"] == [63, 100, 160, 250, 400, 630, 1000]
    assert found["counts"] == [0, 0, 2, 0, 0, 0]
    assert charts("bins([]).counts") == [0] * 6


def test_a_mark_stands_within_the_bin_of_its_value(charts: Asked) -> None:
    edges = "[100, 200, 300, 500]"
    assert charts(f"[100, 150, 300, 400, 499].map((one) => place({edges}, one))") == [0, 0.5, 2, 2.5, 2.995]
    assert charts(f"[1, 500, 9000].map((one) => place({edges}, one))") == [0, 3, 3]


@pytest.mark.parametrize(("pitch", "named"), [(60, list(range(12))), (30, [1, 3, 6, 8, 11]), (12, [1, 6, 11])])
def test_edges_are_named_where_there_is_room_and_powers_of_ten_always_are(
    charts: Asked, pitch: int, named: list[int]
) -> None:
    assert charts(f"Array.from({{ length: 12 }}, (_, i) => i).filter((i) => namedEdge(i, {pitch}, 54))") == named
