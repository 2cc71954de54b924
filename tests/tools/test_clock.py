from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.tools import ToolException

from tools.clock import build_clock, find_zone, utc_now, zones_by_name

KNOWN = zones_by_name()
clock = build_clock(lambda: datetime(2026, 11, 19, 22, 5, 9, 123456, tzinfo=UTC))


@pytest.mark.parametrize(
    ("zone", "said"),
    [
        ("UTC", "Thursday, 2026-11-19T22:05:09+00:00 in UTC (UTC+00:00)"),
        ("Asia/Tokyo", "Friday, 2026-11-20T07:05:09+09:00 in Asia/Tokyo (UTC+09:00)"),
        ("America/New_York", "Thursday, 2026-11-19T17:05:09-05:00 in America/New_York (UTC-05:00)"),
        ("Asia/Kathmandu", "Friday, 2026-11-20T03:50:09+05:45 in Asia/Kathmandu (UTC+05:45)"),
    ],
)
def test_it_tells_weekday_time_and_offset(zone: str, said: str) -> None:
    assert clock.invoke({"zone": zone}) == said


@pytest.mark.parametrize("arguments", [{}, {"zone": ""}, {"zone": "  "}])
def test_without_a_zone_it_tells_utc(arguments: dict[str, str]) -> None:
    assert clock.invoke(arguments).endswith("in UTC (UTC+00:00)")


def test_it_follows_summer_time() -> None:
    summer = build_clock(lambda: datetime(2026, 7, 1, 12, tzinfo=UTC))
    assert "+02:00 in Europe/Berlin" in summer.invoke({"zone": "Europe/Berlin"})
    assert "+01:00 in Europe/Berlin" in clock.invoke({"zone": "Europe/Berlin"})


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("Tokyo", "Asia/Tokyo"),
        ("new york", "America/New_York"),
        ("New_York", "America/New_York"),
        (" europe/berlin ", "Europe/Berlin"),
        ("São Paulo", "America/Sao_Paulo"),
        ("Sa\u0303o Paulo", "America/Sao_Paulo"),
        ("Zürich", "Europe/Zurich"),
        ("Buenos Aires", "America/Buenos_Aires"),
        ("america/argentina/buenos aires", "America/Argentina/Buenos_Aires"),
        ("utc", "UTC"),
        ("Etc/GMT+2", "Etc/GMT+2"),
        ("Australia/West", "Australia/West"),
    ],
)
def test_it_finds_zones_by_name_and_by_city(name: str, zone: str) -> None:
    assert find_zone(name, KNOWN) == zone


@pytest.mark.parametrize(
    "name", ["Eastern", "Central", "West", "Victoria", "Cordoba", "San Juan", "Paris, Texas", "Knox"]
)
def test_a_name_of_several_places_is_refused_rather_than_guessed(name: str) -> None:
    with pytest.raises(ToolException, match="no time zone"):
        find_zone(name, KNOWN)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Tokio", "Asia/Tokyo"),
        ("Europe/Berln", "Europe/Berlin"),
        ("New York City", "America/New_York"),
        ("Tokyo, Japan", "Asia/Tokyo"),
        ("America/San_Fransisco", "IANA name"),
    ],
)
def test_an_unknown_zone_is_answered_with_near_names(name: str, hint: str) -> None:
    with pytest.raises(ToolException, match=hint):
        find_zone(name, KNOWN)


def test_hints_never_turn_the_sign_of_an_offset_round() -> None:
    with pytest.raises(ToolException) as refused:
        find_zone("GMT+2", KNOWN)
    assert "Etc/" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/localtime",
        "localtime",
        "posix/UTC",
        "Europe",
        "Europe/",
        "zone.tab",
        "\x00",
        "Asia/Tokyo\x00",
        "\U0001f600",
        "Europe/Berlin; DROP TABLE",
        "UTC" * 1000,
    ],
)
def test_what_is_no_zone_is_refused_in_a_short_message(name: str) -> None:
    with pytest.raises(ToolException, match="no time zone") as refused:
        clock.invoke({"zone": name})
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


@settings(deadline=None)
@given(st.text())
def test_any_text_gives_a_zone_or_a_reason(name: str) -> None:
    with suppress(ToolException):
        assert find_zone(name, KNOWN) in KNOWN.values()


def test_each_call_asks_for_the_time_anew() -> None:
    moments = iter([datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)])
    ticking = build_clock(lambda: next(moments))
    assert [ticking.invoke({}).partition("T00")[0] for _ in range(2)] == ["Thursday, 2026-01-01", "Friday, 2026-01-02"]


def test_the_clock_goes() -> None:
    before = datetime.now(UTC)
    assert before <= utc_now() <= datetime.now(UTC)
