"""The pace of a stream, judged by when its events happened and when they arrived."""

import random
from functools import partial

import pytest
from measured import all_at_the_end, at_once, each_second, events

from app.doctor.measurement import Event, between, bursts, groups, held, instants, is_held, judged


def test_what_comes_within_five_milliseconds_comes_together() -> None:
    assert groups([]) == 0
    assert groups([3.0]) == 1
    assert groups([0.0, 0.004, 0.008, 0.1, 0.0]) == 3


def test_what_was_held_is_known_whatever_the_two_clocks_say() -> None:
    told = [Event(1, 5000.0, 1.0), Event(2, 5001.0, 2.5), Event(3, 5002.0, 3.0)]
    assert held(told) == [0.0, 0.5, 0.0]
    assert held([]) == []


def test_the_times_between_events() -> None:
    told = [Event(at, at, moment) for at, moment in enumerate([0.0, 0.1, 0.3, 1.3])]
    assert between(told, 0.5) == pytest.approx(0.2)
    assert between(told, 0.99) == pytest.approx(1.0)
    assert between(told[:1], 0.5) is None


def test_a_stream_that_flows_is_not_held() -> None:
    told = events(at_once)
    assert (instants(told), bursts(told), is_held(told)) == (40, 40, False)


def test_a_stream_that_comes_in_one_piece_is_held() -> None:
    told = events(all_at_the_end)
    assert (instants(told), bursts(told), is_held(told)) == (40, 1, True)


def test_so_is_one_that_comes_a_buffer_at_a_time() -> None:
    assert is_held(events(each_second))


@pytest.mark.parametrize("every_s", [0.001, 0.01, 0.1, 0.5])
def test_a_buffer_is_found_at_every_pace(every_s: float) -> None:
    piece_s = max(30 * every_s, 0.15)  # as much as fits into a buffer
    told = events(
        lambda ts: float(int(ts / piece_s + 1e-9) + 1) * piece_s, number=max(120, int(0.6 / every_s)), every_s=every_s
    )
    assert is_held(told)


def test_and_one_whose_beginning_is_held_until_a_buffer_is_full() -> None:
    assert is_held(events(lambda ts: max(ts, 1.2)))


def test_a_pause_of_the_machine_holds_nothing() -> None:
    told = events(lambda ts: 1.3 if 1.0 <= ts < 1.3 else ts)
    assert bursts(told) < 40
    assert not is_held(told)


def test_nor_does_a_lost_packet() -> None:
    assert not is_held(events(lambda ts: 1.6 if 1.0 <= ts < 1.6 else ts))


def next_of(moments: list[float], ts: float) -> float:
    return next(one for one in moments if one >= ts)


def test_nor_a_busy_machine_that_wakes_late_and_takes_several_at_once() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        wakes = [*sorted(chance.uniform(0, 2.1) for _ in range(25)), 2.2]
        assert not is_held(events(partial(next_of, wakes)))


def test_a_path_that_is_long_but_steady_holds_nothing() -> None:
    assert not is_held(events(lambda ts: ts + 3.0))


def test_an_answer_in_one_piece_says_nothing_of_the_pace() -> None:
    whole = [Event(at, 1000.0 + (at > 3), 1.0) for at in range(1, 8)]
    assert not judged(whole)
    assert not is_held(whole)


def test_what_happened_together_may_arrive_together() -> None:
    told = [Event(at, float(at // 4), at // 4 + 0.01) for at in range(1, 60)]
    assert judged(told)
    assert not is_held(told)
