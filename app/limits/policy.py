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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from app.tomlfile import Document, Place


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
    file = Document(path, PolicyError)

    def limits(place: Place, values: Any, base: Limits) -> Limits:
        if not isinstance(values, dict):
            raise file.wrong(place, "must be a table")
        for key, value in values.items():
            at = (*place, key)
            if key not in MOST:
                raise file.unknown(at, MOST)
            numbers = int | float if key == "cost_per_day_usd" else int
            if isinstance(value, bool) or not isinstance(value, numbers):
                raise file.wrong(at, "must be a number" if key == "cost_per_day_usd" else "must be a whole number")
            if not 0 <= value <= MOST[key]:  # false for nan too
                raise file.wrong(at, f"must be from 0 (no limit) to {MOST[key]:,}, and is {value}")
        return msgspec.structs.replace(base, **values)

    for name in file.values:
        if name not in ("default", "users"):
            raise file.wrong((name,), "is not known; there are [default] and [users.NAME]")
    base = limits(("default",), file.values.get("default", {}), default)
    users = file.values.get("users", {})
    if not isinstance(users, dict):
        raise file.wrong(("users",), "must be tables: [users.NAME]")
    return Policy(base, {user: limits(("users", user), values, base) for user, values in users.items()})
