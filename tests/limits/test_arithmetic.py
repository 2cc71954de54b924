"""Bucket, throttle, budget and habits: each beside what it must never do."""

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.limits.bucket import Bucket
from app.limits.budget import Budget, Spent, until_midnight_s
from app.limits.habits import Habits
from app.limits.throttle import MAX_HOLD_S, Throttle

DAY = date(2026, 3, 1)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-50, 200)), max_size=40))
def test_a_bucket_is_what_has_flowed_in_less_what_was_taken_never_over_its_size(steps: list[tuple[int, int]]) -> None:
    bucket, level, now = Bucket(rate=2.0, size=100.0, now=0.0), Fraction(100), 0
    for pause, amount in steps:
        now += pause
        level = min(Fraction(100), level + 2 * pause)
        assert bucket.level(now) == pytest.approx(float(level))
        level = min(Fraction(100), level - amount)
        bucket.take(amount, now)
        wait_s = bucket.wait_s(now)
        assert (wait_s == 0) == (level > 0)
        assert bucket._level + 2.0 * (wait_s + 1e-3) > 0


def test_a_clock_that_goes_back_fills_no_bucket() -> None:
    bucket = Bucket(rate=10, size=100, now=1000)
    bucket.take(100, 1000)
    assert bucket.level(0) == 0
    assert bucket.level(5) == 50


@given(st.integers(1, 64), st.lists(st.one_of(st.none(), st.floats(0, 200)), max_size=60))
def test_a_throttle_stays_between_one_and_its_most(most: int, steps: list[float | None]) -> None:
    """A number is a refusal with that pause, none is an answer."""
    throttle, now = Throttle(most), 0.0
    for step in steps:
        now += 1
        if step is None:
            throttle.answered()
        else:
            throttle.refused(now, now, step)
            assert throttle.allowed(now) == 0 or step < 1e-9
            assert throttle.held_until <= now + MAX_HOLD_S
        assert 1 <= throttle.limit <= most


def test_a_round_of_calls_that_is_refused_as_one_halves_once_and_opens_by_one_a_round() -> None:
    throttle = Throttle(64)
    for call in range(64):
        throttle.refused(begun=1.0, now=2.0 + call / 100, retry_after_s=5)
    assert throttle.limit == 32
    assert throttle.allowed(7.6) == 0
    assert throttle.allowed(7.7) == 32
    for _ in range(33):
        throttle.answered()
    assert throttle.limit == 33
    throttle.refused(begun=9.0, now=9.5, retry_after_s=None)
    assert (throttle.limit, throttle.allowed(10.4), throttle.allowed(10.6)) == (16, 0, 16)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1), st.integers(0, 9), st.integers(0, 9))))
def test_a_budget_is_the_sum_of_what_was_spent_that_day(spendings: list[tuple[str, int, int, int]]) -> None:
    budget = Budget()
    for user, later, tokens, cost in spendings:
        budget.spend(user, tokens, float(cost), DAY + timedelta(days=later))
    for user in "ab":
        for later in (0, 1):
            mine = [(tokens, cost) for who, when, tokens, cost in spendings if (who, when) == (user, later)]
            expected = Spent(sum(tokens for tokens, _ in mine), float(sum(cost for _, cost in mine)))
            assert budget.spent(user, DAY + timedelta(days=later)) == expected


def test_days_long_past_are_let_go_of_and_a_clock_put_back_finds_its_day_as_it_was() -> None:
    budget = Budget()
    budget.spend("a", 5, 0.5, DAY)
    budget.spend("a", 7, 0.5, DAY + timedelta(days=1))
    assert budget.spent("a", DAY) == Spent(5, 0.5)
    budget.spend("a", 9, 0.5, DAY + timedelta(days=2))
    assert budget.spent("a", DAY) == Spent()
    assert budget.spent("a", DAY + timedelta(days=1)) == Spent(7, 0.5)
    budget.spend("a", 1, 0.5, DAY - timedelta(days=300))
    assert len(budget._spent) == 2


def test_a_day_ends_at_midnight_utc() -> None:
    assert until_midnight_s(datetime(2026, 3, 1, 23, 59, 30, tzinfo=UTC)) == 30
    assert until_midnight_s(datetime(2026, 3, 1, tzinfo=UTC)) == 86_400


@given(st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=12))
def test_the_ceiling_follows_from_the_last_five_answers_alone(answers: list[tuple[int, bool]]) -> None:
    habits = Habits()
    for tokens, stopped in answers:
        habits.note("u", "chat", tokens, stopped=stopped)
        habits.note("u", "other", 1, stopped=False)
    last = answers[-5:]
    if sum(stopped for _, stopped in last) < 3:
        assert habits.ceiling("u", "chat") is None
    else:
        assert habits.ceiling("u", "chat") == max(128, round(1.5 * median(tokens for tokens, _ in last)))
    assert habits.ceiling("u", "other") is None


def test_users_not_heard_of_for_longest_are_forgotten_first() -> None:
    habits = Habits(max_known=2)
    for user in ("a", "b", "a", "c"):
        for _ in range(3):
            habits.note(user, "chat", 10, stopped=True)
    assert [habits.ceiling(user, "chat") for user in "abc"] == [128, None, 128]
