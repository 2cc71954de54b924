"""The time now: a model has no clock, and guesses the date of its training.

Takes any IANA time zone, and a city where the database itself names one ("Tokyo" is Asia/Tokyo). A name that could
be somewhere else as well is refused with near names, never guessed. What the model wrote is looked up in a table
of known zones and never becomes part of a path.
"""

import difflib
import functools
import unicodedata
import zoneinfo
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from langchain_core.tools import BaseTool, ToolException, tool

DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
AREAS: Final = frozenset(
    ("Africa", "America", "Antarctica", "Arctic", "Asia", "Atlantic", "Australia", "Europe", "Indian", "Pacific")
)
# Last parts of zone names that mean another place, or none, to most who write them.
UNCERTAIN: Final = frozenset(("north", "south", "west", "victoria", "cordoba", "merida"))
NOT_A_PLACE: Final = frozenset(("Factory", "localtime"))
MAX_NAME: Final = 64


def utc_now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


def build_clock(now: Callable[[], datetime] = utc_now) -> BaseTool:
    """The clock: ``zone`` in, weekday, ISO 8601 time and UTC offset out; ``now`` returns an aware time."""
    # Once per clock, and not at import: listing the zones reads some 600 files.
    known = functools.cache(zones_by_name)

    @tool(parse_docstring=True)
    def clock(zone: str = "UTC") -> str:
        """Tell the current date, weekday and time, in any time zone.

        Args:
            zone: An IANA time zone such as "Europe/Berlin", or a large city such as "Tokyo" or "New York".
        """
        return describe(now(), find_zone(zone, known()))

    clock.metadata = {"label": "Looking at the clock…"}
    return clock


def zones_by_name() -> Mapping[str, str]:
    """Every zone by its folded full name and, where certain, by its city: ``{"tokyo": "Asia/Tokyo", …}``."""
    zones = sorted(zoneinfo.available_timezones() - NOT_A_PLACE)
    cities = {fold(zone.split("/")[1]): zone for zone in zones if zone.count("/") == 1 and zone.split("/")[0] in AREAS}
    certain = {city: zone for city, zone in cities.items() if city not in UNCERTAIN}
    return certain | {fold(zone): zone for zone in zones}


def find_zone(name: str, known: Mapping[str, str]) -> str:
    """The IANA name that ``name`` stands for; raises ``ToolException`` with near names when there is none."""
    wanted = fold(name[:MAX_NAME]) or "utc"
    if len(name) <= MAX_NAME and wanted in known:
        return known[wanted]
    hint = f"Did you mean {' or '.join(close)}? " if (close := near(wanted, known)) else ""
    raise ToolException(
        f"There is no time zone {name[:MAX_NAME]!r}. {hint}"
        'Give the IANA name of the zone the place lies in, for example "Europe/Berlin".'
    )


def near(wanted: str, known: Mapping[str, str]) -> list[str]:
    """Up to three zones whose name, or whose city, is spelled like ``wanted``."""
    # The signs of Etc/GMT+2 are the reverse of what people expect: right when asked for, wrong as a hint.
    names = [name for name, zone in known.items() if not zone.startswith("Etc/")]
    close = [
        match
        for text in dict.fromkeys((wanted, wanted.partition(",")[0]))
        for match in difflib.get_close_matches(text, names, n=3, cutoff=0.7)
    ]
    return list(dict.fromkeys(known[match] for match in close))[:3]


def fold(name: str) -> str:
    """``name`` without case, accents and underscores, which people leave out or put in."""
    letters = unicodedata.normalize("NFKD", name.replace("_", " ").casefold())
    return " ".join("".join(letter for letter in letters if not unicodedata.combining(letter)).split())


def describe(moment: datetime, zone: str) -> str:
    """``Thursday, 2026-11-19T14:05:09+09:00 in Asia/Tokyo (UTC+09:00)``."""
    local = moment.astimezone(zoneinfo.ZoneInfo(zone))
    iso = local.isoformat(timespec="seconds")
    # Not %A, which speaks the language of the machine.
    return f"{DAYS[local.weekday()]}, {iso} in {zone} (UTC{iso[19:]})"
