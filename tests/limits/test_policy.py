"""Limits by user from a TOML file; a mistake is refused with its line."""

from pathlib import Path

import pytest

from app.limits.policy import Limits, PolicyError, load


def test_a_user_differs_by_what_the_own_table_says_and_is_else_as_everybody(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text("""
        # who pays more
        [default]
        requests_per_minute = 30
        [users.alice]
        max_streams = 10
        tokens_per_day = 2_000_000
        [users."bob@example.org"]
        cost_per_day_usd = 1.5
        max_streams = 0
    """)
    policy = load(path, Limits(max_streams=3, requests_per_minute=20))
    assert policy.of("somebody") == Limits(max_streams=3, requests_per_minute=30)
    assert policy.of("alice") == Limits(max_streams=10, requests_per_minute=30, tokens_per_day=2_000_000)
    assert policy.of("bob@example.org") == Limits(max_streams=0, requests_per_minute=30, cost_per_day_usd=1.5)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("[default]\n\nmax_streams = -1\n", 3, "default.max_streams must be from 0 (no limit) to 10,000, and is -1"),
        ("[users.alice]\nmax_streams = 10000000000\n", 2, "users.alice.max_streams must be from 0"),
        ("[users.a]\n\n[users.b]\nmax_stream = 1\n", 4, "users.b.max_stream is not known; did you mean max_streams?"),
        ("[default]\nspeed = 1\n", 2, "default.speed is not known; known are max_streams"),
        ("[default]\nmax_streams = '3'\n", 2, "default.max_streams must be a whole number"),
        ("[default]\nmax_streams = true\n", 2, "must be a whole number"),
        ("[default]\nmax_streams = 1.5\n", 2, "must be a whole number"),
        ("[default]\ncost_per_day_usd = nan\n", 2, "must be from 0"),
        ("[default]\ncost_per_day_usd = inf\n", 2, "must be from 0"),
        ("[default]\ncost_per_day_usd = 'much'\n", 2, "must be a number"),
        ("\n[users]\nalice = 3\n", 3, "users.alice must be a table"),
        ("users = 3\n", 1, "users must be tables"),
        ("\n[usrs.alice]\nmax_streams = 3\n", 2, "usrs is not known; there are [default] and [users.NAME]"),
        ("max_streams = 3\n", 1, "max_streams is not known; there are [default] and [users.NAME]"),
        ("users.alice.max_streams = -3\n", 1, "users.alice.max_streams must be from 0"),
        ("[default]\nmax_streams = \n", 2, ""),
        ("[default]\n[default]\n", 2, ""),
    ],
)
def test_a_mistake_is_refused_with_its_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(PolicyError) as refused:
        load(path, Limits())
    assert f"line {line}" in str(refused.value)
    assert problem in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"limits\.toml: cannot be read"):
        load(tmp_path / "limits.toml", Limits())
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"[default]\nmax_streams = 3 # \xff\n")
    with pytest.raises(PolicyError, match=r"bytes\.toml, line 2: is not UTF-8"):
        load(path, Limits())
