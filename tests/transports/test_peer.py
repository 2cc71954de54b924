"""Where a request comes from, whatever its headers and its launcher say."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import pytest
from serving import running
from starlette.types import ASGIApp, Receive, Scope, Send

from app.transports.peer import Peer, is_loopback, plain_address
from app.transports.wire import Wire

PROXY, DIRECT = "127.0.0.2", "127.0.0.1"


async def tell(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer who asks."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = json.dumps([(scope["client"] or [None])[0], scope["scheme"]]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def behind(trusted: Sequence[str]) -> Iterator[str]:
    app: ASGIApp = Wire(Peer(tell, trusted_proxies=trusted))
    with running(app) as url:  # it serves any ASGI app, by uvicorn, which trusts loopback itself
        yield url


@pytest.fixture(scope="module")
def trusting() -> Iterator[str]:
    with behind([PROXY, "10.0.0.0/8", "2001:db8:1::/48"]) as url:
        yield url


@pytest.fixture(scope="module")
def alone() -> Iterator[str]:
    with behind([]) as url:
        yield url


def asked(url: str, *headers: tuple[str, str], by: str = PROXY) -> list[str | None]:
    with httpx.Client(transport=httpx.HTTPTransport(local_address=by)) as client:
        answer: list[str | None] = client.get(url, headers=headers).json()
    return answer


FORGED = [
    [("X-Forwarded-For", "203.0.113.7")],
    [("X-Forwarded-For", "127.0.0.9, 203.0.113.7"), ("X-Forwarded-Proto", "https")],
    [("X-Forwarded-For", "testclient")],
    [("Forwarded", "for=203.0.113.7"), ("X-Real-IP", "203.0.113.7"), ("X-Forwarded-Host", "evil.example")],
]


@pytest.mark.parametrize("headers", FORGED)
def test_what_an_untrusted_peer_says_of_itself_counts_for_nothing(
    trusting: str, alone: str, headers: list[tuple[str, str]]
) -> None:
    assert asked(trusting, *headers, by=DIRECT)[0] == DIRECT
    assert asked(alone, *headers, by=DIRECT)[0] == DIRECT
    assert asked(alone, *headers, by=PROXY)[0] == PROXY


@pytest.mark.parametrize(
    ("told", "peer"),
    [
        (["203.0.113.7"], "203.0.113.7"),
        (["127.0.0.1, 203.0.113.7"], "203.0.113.7"),
        (["1.2.3.4, 127.0.0.1, testclient, 203.0.113.7"], "203.0.113.7"),
        (["1.2.3.4,203.0.113.7,10.1.2.3, 10.0.0.1"], "203.0.113.7"),
        (["127.0.0.1", "203.0.113.7"], "203.0.113.7"),
        (["203.0.113.7", "10.9.9.9"], "203.0.113.7"),
        (["203.0.113.7:51234"], "203.0.113.7"),
        (["[2001:DB8::7]:51234"], "2001:db8::7"),
        (["2001:0db8:0:0::7"], "2001:db8::7"),
        (["127.0.0.1, 2001:db8::7, 2001:db8:1::5"], "2001:db8::7"),
        (["::ffff:203.0.113.7"], "203.0.113.7"),
        (["10.0.0.1"], "10.0.0.1"),
        ([""], PROXY),
        (["1.2.3.4,"], PROXY),
    ],
)
def test_of_a_trusted_proxys_the_rightmost_address_counts_that_is_not_trusted(
    trusting: str, told: list[str], peer: str
) -> None:
    assert asked(trusting, *(("X-Forwarded-For", one) for one in told))[0] == peer


@pytest.mark.parametrize(
    "told", ["testclient", "127.0.0.1, unknown", "localhost", "127.0.0.1.", "x" * 5000, "203.0.113.7;", "_h"]
)
def test_of_what_is_no_address_nobody_knows_the_peer(trusting: str, told: str) -> None:
    assert asked(trusting, ("X-Forwarded-For", told))[0] == "unknown"


@pytest.mark.parametrize(
    ("told", "scheme"),
    [("https", "https"), ("http", "http"), ("https, http", "http"), ("javascript", "http"), ("", "http")],
)
def test_the_scheme_is_a_trusted_proxys_to_tell(trusting: str, told: str, scheme: str) -> None:
    assert asked(trusting, ("X-Forwarded-Proto", told)) == [PROXY, scheme]


async def test_without_a_network_the_peer_is_left_as_it_is() -> None:
    for client in (["testclient", 50000], None):
        seen: list[object] = []

        async def look(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["client"])  # noqa: B023 - awaited in this round

        async def nothing(*_: object) -> None: ...

        headers = [(b"x-forwarded-for", b"1.2.3.4")]
        scope = {"type": "http", "client": client, "headers": headers, "scheme": "http"}
        await Peer(look, trusted_proxies=["127.0.0.1"])(scope, nothing, nothing)  # type: ignore[arg-type]
        assert seen == [client]


def test_addresses_have_one_spelling() -> None:
    assert plain_address("::FFFF:127.0.0.1") == "127.0.0.1"
    assert plain_address("0:0::1") == "::1"
    assert plain_address("127.1") is None
    assert plain_address("") is None
    here = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]
    elsewhere = ["", "0.0.0.0", "::", "10.0.0.1", "localhost", "127.0.0.1.", "unknown", "::ffff:10.0.0.1"]
    assert [one for one in here + elsewhere if is_loopback(one)] == here
