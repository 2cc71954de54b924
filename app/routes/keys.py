"""API keys: who a key belongs to, how long it holds, and the session cookie that it is traded for.

A key is looked up by its HMAC under a secret of this process, so what a lookup takes tells nothing of the keys, and the
digests are then compared in constant time. A session is a signed token: the key's own digest, under the key itself. So
sessions need no store, are known to every worker, outlive a restart, and end with their key.

No message and no ``repr`` shows a key, nor any part of an entry that might be one.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

from itsdangerous import BadSignature, TimestampSigner
from typing_extensions import override

from app.errors import Unauthorized

SESSION_S = 30 * 24 * 3600
"""How long a session lasts without its key being shown again."""

WEAK_CHARS = 16
"""A shorter key may be guessed."""

MAX_USER_CHARS = 128

SEND_A_KEY = "send Authorization: Bearer <key>, or x-api-key: <key>"

Clock = Callable[[], float]
"""Seconds since the epoch."""

_COMMENT = re.compile(r"(^|\s)#.*")
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class BadKeys(ValueError):
    """The keys cannot be used; the message says which, by its place, and never shows it."""


class Key(NamedTuple):
    """A key. ``until``: the first day on which it is no longer taken (UTC)."""

    secret: str
    user: str
    until: date | None = None

    @override
    def __repr__(self) -> str:
        return f"Key(user={self.user!r}, until={self.until})"


def parse_keys(text: str) -> list[Key]:
    """``key:user,key:user:2027-01-31``, or the file of that name with one a line. Raises ``BadKeys``.

    In the file ``#`` begins a comment, at a line's start or after a space.
    """
    if ":" not in text and "\n" not in text and text.strip():
        path = Path(text.strip())
        lines = _read(path).splitlines()
        return _keys({f"line {number} of {path}": _COMMENT.sub("", line) for number, line in enumerate(lines, 1)})
    parts = text.replace("\n", ",").split(",")
    return _keys({f"entry {number}": part for number, part in enumerate(parts, 1)})


def _read(path: Path) -> str:
    # Not named where it cannot be read: it may be a key whose user was forgotten.
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadKeys(f"line {line} of {path}: is not UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file's name"
        raise BadKeys(f"neither key:user pairs nor a file that can be read ({reason})") from None


def _keys(entries: Mapping[str, str]) -> list[Key]:
    found: dict[str, Key] = {}
    for place, entry in entries.items():
        if not entry.strip():
            continue
        key = _key(place, entry.strip())
        if key.secret in found:
            raise BadKeys(f"{place}: this key was given before")
        found[key.secret] = key
    if not found:
        raise BadKeys("there is no key")
    return list(found.values())


def _key(place: str, entry: str) -> Key:
    secret, user, *rest = entry.split(":", 2) if ":" in entry else (entry, "")
    if not secret or not user:
        raise BadKeys(f"{place}: must be key:user, or key:user:YYYY-MM-DD")
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise BadKeys(f"{place}: a key is printable ASCII without spaces and colons")
    if len(user) > MAX_USER_CHARS or not user.isprintable() or " " in user:
        raise BadKeys(f"{place}: a user's name has at most {MAX_USER_CHARS} characters and no spaces")
    return Key(secret, user, _day(place, rest[0]) if rest else None)


def _day(place: str, text: str) -> date:
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise BadKeys(f"{place}: what follows the second colon is no day; write YYYY-MM-DD")


class Keys:
    """The keys of a server."""

    def __init__(self, keys: Iterable[Key], *, clock: Clock = time.time) -> None:
        self._clock = clock
        self._pepper = secrets.token_bytes(32)
        self._by_digest = {self._digest(key.secret): key for key in keys}
        self._by_id = {_id(key): key for key in self._by_digest.values()}

    @property
    def weak(self) -> list[str]:
        """Users of keys so short that they may be guessed."""
        return sorted({key.user for key in self._by_digest.values() if len(key.secret) < WEAK_CHARS})

    @property
    def expired(self) -> list[str]:
        """Users of keys whose day has come."""
        return sorted({key.user for key in self._by_digest.values() if self._left_s(key) <= 0})

    def user(self, secret: str) -> str:
        """Whose key it is. Raises ``Unauthorized``."""
        return self._valid(secret).user

    def holds(self, secret: str) -> bool:
        """Whether this text is a key, if only an expired one."""
        return self._find(secret) is not None

    def session(self, secret: str) -> tuple[str, int]:
        """A token to be sent back in place of the key, and the seconds it lasts. Raises ``Unauthorized``."""
        key = self._valid(secret)
        return self._signer(key).sign(_id(key)).decode(), int(min(SESSION_S, self._left_s(key)))

    def user_of_session(self, token: str) -> str:
        """Whose session it is. Raises ``Unauthorized``."""
        unknown = Unauthorized("the session is not known; open a new one with POST /session")
        key = self._by_id.get(token.partition(".")[0])
        if key is None:
            raise unknown
        try:
            _, opened = self._signer(key).unsign(token, return_timestamp=True)
        except BadSignature:
            raise unknown from None
        # Either way: another worker's clock may be ahead, but one that is months ahead must not make sessions for ever.
        if abs(self._clock() - opened.timestamp()) > SESSION_S:
            raise Unauthorized("the session has expired; open a new one with POST /session")
        return self._unexpired(key).user

    def _valid(self, secret: str) -> Key:
        key = self._find(secret)
        if key is None:
            raise Unauthorized(f"the key is not known; {SEND_A_KEY}")
        return self._unexpired(key)

    def _find(self, secret: str) -> Key | None:
        digest = self._digest(secret)
        key = self._by_digest.get(digest)
        # The lookup is by a digest that nobody can aim at; this says so in so many words.
        return key if key is not None and hmac.compare_digest(self._digest(key.secret), digest) else None

    def _unexpired(self, key: Key) -> Key:
        if self._left_s(key) <= 0:
            raise Unauthorized("the key has expired; ask for a new one")
        return key

    def _left_s(self, key: Key) -> float:
        if key.until is None:
            return float("inf")
        return datetime.combine(key.until, datetime.min.time(), UTC).timestamp() - self._clock()

    def _digest(self, secret: str) -> bytes:
        return hmac.digest(self._pepper, secret.encode("utf-8", "surrogatepass"), "sha256")

    def _signer(self, key: Key) -> TimestampSigner:
        return _Signer(key.secret, self._clock)


class _Signer(TimestampSigner):
    def __init__(self, secret: str, clock: Clock) -> None:
        super().__init__(secret, salt="millrace.session", digest_method=hashlib.sha256)
        self._clock = clock

    @override
    def get_timestamp(self) -> int:
        return int(self._clock())


def _id(key: Key) -> str:
    return hmac.new(key.secret.encode(), b"millrace session id", hashlib.sha256).hexdigest()[:32]
