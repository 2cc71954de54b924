"""What holds for whom: one set of limits for everybody, and what differs for some, by a small TOML file.

::

    [default]
    requests_per_minute = 20

    [users.alice]
    max_streams = 10
    tokens_per_day = 2_000_000

What a user's table leaves out is as in ``[default]``, and what that leaves out as the settings say. A file that has a
mistake is refused as a whole, with the line of it.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec


class PolicyError(Exception):
    """The file of limits cannot be used; the message names the file and the line."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """One user's limits; 0 is none. Runs at once, requests in any 60 s, tokens and US dollars a UTC day, readers."""

    max_streams: int = 3
    requests_per_minute: int = 0
    tokens_per_day: int = 0
    cost_per_day_usd: float = 0.0
    max_readers: int = 64


class Policy:
    """Limits by user."""

    def __init__(self, default: Limits | None = None, users: Mapping[str, Limits] | None = None) -> None:
        self.default = default or Limits()
        self._users = dict(users or {})

    def of(self, user: str) -> Limits:
        """The user's own, or everybody's."""
        return self._users.get(user, self.default)


MOST: Mapping[str, float] = {
    "max_streams": 10_000,
    "requests_per_minute": 1_000_000,
    "tokens_per_day": 10**12,
    "cost_per_day_usd": 10**7,
    "max_readers": 1_000_000,
}
"""More than any of these is a slip of the hand."""


def load(path: Path, default: Limits) -> Policy:
    """The policy of a file, over what the settings say. Raises ``PolicyError``."""
    try:
        text = path.read_text("utf-8")
        found = tomllib.loads(text)
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PolicyError(f"{path}, line {line}: is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{path}: {error}") from None
    lines = _lines(text)

    def wrong(table: tuple[str, ...], key: str, problem: str) -> PolicyError:
        place = (*table, key)
        known = next((line for end in range(len(place), 0, -1) if (line := lines.get(place[:end]))), None)
        where = f"{path}, line {known}" if known else str(path)
        return PolicyError(f"{where}: {'.'.join(place)} {problem}")

    def limits(table: tuple[str, ...], values: Any, base: Limits) -> Limits:
        if not isinstance(values, dict):
            raise wrong(table[:-1], table[-1], "must be a table")
        for key, value in values.items():
            if key not in MOST:
                near = difflib.get_close_matches(key, MOST, 1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(MOST)}"
                raise wrong(table, key, f"is not known; {hint}")
            numbers = int | float if key == "cost_per_day_usd" else int
            if isinstance(value, bool) or not isinstance(value, numbers):
                raise wrong(table, key, "must be a number" if key == "cost_per_day_usd" else "must be a whole number")
            if not 0 <= value <= MOST[key]:  # false for nan too
                raise wrong(table, key, f"must be from 0 (no limit) to {MOST[key]:g}, and is {value}")
        return msgspec.structs.replace(base, **values)

    for name in found:
        if name not in ("default", "users"):
            raise wrong((), name, "is not known; there are [default] and [users.NAME]")
    base = limits(("default",), found.get("default", {}), default)
    users = found.get("users", {})
    if not isinstance(users, dict):
        raise wrong((), "users", "must be tables: [users.NAME]")
    return Policy(base, {user: limits(("users", user), values, base) for user, values in users.items()})


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Where each table and key is first named. Reads line by line, which is enough for a file of limits."""
    places: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("["):
            path = table = _path(line)
        else:
            path = (*table, *_path(f"{line.partition('=')[0]} = 0"))
        for end in range(len(path), 0, -1):
            places.setdefault(path[:end], number)
    return places


def _path(line: str) -> tuple[str, ...]:
    """What a line of TOML names: ``[users.alice]`` is ``("users", "alice")``."""
    try:
        value: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    path: list[str] = []
    while isinstance(value, dict) and value:
        key, value = next(iter(value.items()))
        path.append(key)
    return tuple(path)
