"""Keys: how they are written down, whose they are, and the sessions they are traded for."""

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from app.errors import Unauthorized
from app.routes.keys import SESSION_S, BadKeys, Key, Keys, parse_keys

ADA, BOB = "a-key-of-ada-that-is-long", "a-key-of-bob-that-is-long"
LONG = "x" * 10_000
NOON = datetime(2027, 1, 30, 12, tzinfo=UTC).timestamp()
HALF_A_DAY = 12 * 3600


class Clock:
    """A clock that the test sets."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def keys(*some: Key, clock: Clock | None = None) -> Keys:
    return Keys(some or [Key(ADA, "ada")], clock=clock or Clock())


# How they are written


@pytest.mark.parametrize(
    "text", ["k1:ada,k2:bob:2027-01-31", " k1:ada ,\n, k2:bob:2027-01-31,", "k1:ada\nk2:bob:2027-01-31"]
)
def test_pairs_are_separated_by_commas_or_lines(text: str) -> None:
    assert parse_keys(text) == [Key("k1", "ada"), Key("k2", "bob", date(2027, 1, 31))]


def test_a_file_has_one_a_line_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes("\ufeff# who\r\nk1#1:ada\r\n\r\n  k2:bob:2027-01-31  # until then\r\nk,3:ada".encode())
    assert parse_keys(f" {path}\n".strip()) == [
        Key("k1#1", "ada"),
        Key("k2", "bob", date(2027, 1, 31)),
        Key("k,3", "ada"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no key"),
        (" ,\n, ", "there is no key"),
        ("k1:ada,hidden-secret", "entry 2: must be key:user"),
        ("hidden-secret:", "entry 1: must be key:user"),
        (":hidden-secret", "entry 1: must be key:user"),
        (":", "entry 1: must be key:user"),
        ("k1:ada,hidden-secret:bob:", "entry 2: what follows the second colon is no day"),
        ("ada:hidden:secret", "entry 1: what follows the second colon is no day"),
        ("hidden-secret:ada:2027-02-30", "no day"),
        ("hidden-secret:ada:20270131", "no day"),
        ("hidden-secret:ada:٢٠٢٧-٠١-٣١", "no day"),
        ("hidden-secret:ada:2027-01-31:x", "no day"),
        ("hidden-secret:ada,hidden-secret:ada", "entry 2: this key was given before"),
        ("hidden-secret:ada,k:bob,hidden-secret:bob", "entry 3: this key was given before"),
        ("hidden secret:ada", "entry 1: a key is printable ASCII"),
        ("hidden-secrét:ada", "printable ASCII"),
        ("hidden-secr\x00t:ada", "printable ASCII"),
        ("hidden-secr\udc80t:ada", "printable ASCII"),
        ("k:hidden secret", "a user's name"),
        ("k:hidden-secr\x1bt", "a user's name"),
        ("k:" + "hidden-secret" * 10, "a user's name"),
        ("hidden-secret", "neither key:user pairs nor a file that can be read (No such file"),
        ("hidden-secret\x00", "neither key:user pairs nor a file"),
        ("hidden-secret" * 1000, "neither key:user pairs nor a file"),
        (".", "neither key:user pairs nor a file that can be read (Is a directory)"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_place_and_never_shown(text: str, said: str) -> None:
    with pytest.raises(BadKeys) as refused:
        parse_keys(text)
    assert said in str(refused.value)
    assert "secr" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# nobody\n\n", "there is no key"),
        (b"k1:ada\n\nhidden-secret\n", "line 3 of FILE: must be key:user"),
        (b"k1:ada\nk2:bob\xff\n", "line 2 of FILE: is not UTF-8"),
        (b"k1:ada\nk1:bob\n", "line 2 of FILE: this key was given before"),
    ],
)
def test_in_a_file_the_line_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(BadKeys) as refused:
        parse_keys(str(path))
    assert str(refused.value).startswith(said.replace("FILE", str(path)))
    assert "secret" not in str(refused.value)


def test_a_key_is_not_shown_where_it_is_printed() -> None:
    assert ADA not in f"{Key(ADA, 'ada')!r} {Key(ADA, 'ada')} {[Key(ADA, 'ada')]} {keys()!r}"


# Whose they are


def test_a_user_may_have_several_keys() -> None:
    some = keys(Key(ADA, "ada"), Key("another", "ada"), Key(BOB, "bob"))
    assert [some.user(one) for one in (ADA, "another", BOB)] == ["ada", "ada", "bob"]


@pytest.mark.parametrize(
    "secret",
    ["", "x", ADA[:-1], ADA + "x", ADA.upper(), f" {ADA}", "schlüssel", "\x00", chr(0xD800), chr(0xDCFF), LONG],
)
def test_what_is_no_key_is_nobodys(secret: str) -> None:
    assert not keys().holds(secret)
    with pytest.raises(Unauthorized, match="the key is not known") as refused:
        keys().user(secret)
    assert len(secret) < 2 or secret not in str(refused.value)


def test_a_key_ends_with_the_day_before_and_its_sessions_with_it() -> None:
    clock = Clock()
    some = keys(Key(ADA, "ada", date(2027, 1, 31)), clock=clock)
    token, lasts_s = some.session(ADA)
    assert lasts_s == HALF_A_DAY
    clock.now += HALF_A_DAY - 1
    assert (some.user(ADA), some.user_of_session(token), some.expired) == ("ada", "ada", [])
    clock.now += 1
    for ask in (lambda: some.user(ADA), lambda: some.session(ADA), lambda: some.user_of_session(token)):
        with pytest.raises(Unauthorized, match="the key has expired"):
            ask()
    assert some.holds(ADA)  # so that it is known for a key in a URL
    assert some.expired == ["ada"]


def test_users_of_weak_keys_are_named() -> None:
    some = keys(Key("x" * 15, "bob"), Key("x" * 16, "eve"), Key("short", "ada"), Key("tiny", "ada"))
    assert some.weak == ["ada", "bob"]


# Sessions


def test_a_session_stands_for_its_key_for_thirty_days_on_every_worker() -> None:
    clock = Clock()
    token, lasts_s = keys(Key(ADA, "ada"), Key(BOB, "bob"), clock=clock).session(ADA)
    other = keys(Key(BOB, "bob"), Key(ADA, "ada"), clock=clock)
    assert lasts_s == SESSION_S == 30 * 24 * 3600
    clock.now += SESSION_S
    assert other.user_of_session(token) == "ada"
    clock.now += 2
    with pytest.raises(Unauthorized, match="the session has expired"):
        other.user_of_session(token)


def test_a_session_says_nothing_of_its_key() -> None:
    token, _ = keys().session(ADA)
    assert ADA not in token
    assert token.isascii()
    assert not set(token) & set(' ,;"\\=')  # it needs no quoting in a cookie


def test_a_session_ends_with_its_key_though_the_user_has_another() -> None:
    token, _ = keys().session(ADA)
    with pytest.raises(Unauthorized, match="the session is not known"):
        keys(Key(BOB, "ada")).user_of_session(token)


def test_a_clock_that_is_behind_by_a_little_ends_no_session_and_one_far_ahead_makes_none_for_ever() -> None:
    clock = Clock()
    some = keys(clock=clock)
    token, _ = some.session(ADA)
    clock.now -= 3600
    assert some.user_of_session(token) == "ada"
    clock.now -= SESSION_S
    with pytest.raises(Unauthorized, match="expired"):
        some.user_of_session(token)


def test_a_session_that_was_touched_is_none() -> None:
    some = keys(Key(ADA, "ada"), Key(BOB, "bob"))
    token, bobs = some.session(ADA)[0], some.session(BOB)[0]
    name, when, signature = token.split(".")
    forged = [
        "", ".", "..", "...", "x", "ü.ü.ü", name, f"{name}.{when}", f"{name}.{when}.", f"{name}..{signature}",
        f"{bobs.split('.')[0]}.{when}.{signature}", f"{name}.{when[:-1]}B.{signature}", f"{token}.x", f"{token[:-2]}AA",
        f"{name}.{when}.{bobs.split('.')[2]}", f"{name}.{'A' * 5000}.{signature}", f"{name}.{'z' * 18}.{signature}",
        token.upper(), f" {token}", f"{name}.x.{when}.{signature}", ADA,
    ]  # fmt: skip
    for one in forged:
        with pytest.raises(Unauthorized, match="the session is not known"):
            some.user_of_session(one)
    for at in range(len(token) - 1):  # the last letter has bits that mean nothing
        with pytest.raises(Unauthorized):
            some.user_of_session(token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :])
