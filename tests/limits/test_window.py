"""A sliding window beside the plainest one that can be written: the list of all accepted times."""

import math

from hypothesis import given
from hypothesis import strategies as st

from app.limits.window import Window

STEPS = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 4)), max_size=60)


@given(st.integers(1, 8), STEPS)
def test_it_lets_in_exactly_what_a_list_of_all_requests_would(limit: int, steps: list[tuple[float, int]]) -> None:
    window, accepted, now = Window(), list[float](), 1000.0
    for pause, count in steps:
        now += pause
        within = sum(1 for at in accepted if at + 60 > now)
        wait_s = window.wait_s(limit, now, count)
        assert (wait_s == 0) == (within + count <= limit)
        assert window.used(now) == within
        if wait_s == 0:
            window.take(now, count)
            accepted += [now] * count
    for start in accepted:
        assert sum(1 for at in accepted if start <= at < start + 60) <= limit


@given(st.integers(1, 8), STEPS)
def test_the_wait_it_tells_is_the_shortest_that_is_enough(limit: int, steps: list[tuple[float, int]]) -> None:
    window, now = Window(), 0.0
    for pause, count in steps:
        now += pause
        wait_s = window.wait_s(limit, now, count)
        if wait_s == 0:
            window.take(now, count)
        elif not math.isinf(wait_s):
            again = Window()
            again._times.extend(window._times)
            assert again.wait_s(limit, now + wait_s * (1 - 1e-9) - 1e-6, count) > 0
            assert again.wait_s(limit, now + wait_s + 1e-6, count) == 0


def test_the_request_past_the_limit_is_refused_until_the_first_is_exactly_as_old_as_the_span() -> None:
    window = Window()
    for second in range(20):
        assert window.wait_s(20, float(second)) == 0
        window.take(float(second))
    assert window.wait_s(20, 19.0) == 41
    assert window.wait_s(20, 59.999) > 0
    assert window.wait_s(20, 60.0) == 0


def test_more_at_once_than_the_limit_never_come_in() -> None:
    assert math.isinf(Window().wait_s(20, 0, 21))
    assert Window().wait_s(20, 0, 20) == 0


def test_a_clock_that_goes_back_lets_nobody_in_too_early() -> None:
    window = Window()
    window.take(100)
    assert window.wait_s(1, 40) == 120
    window.take(40)
    assert window.wait_s(2, 159.9) > 0
    assert window.used(160) == 0
