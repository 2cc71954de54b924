"""Who is let in, as whom, and what the others are told: over HTTP and over the socket."""

import base64
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving import Served, running, serving
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from app.main import create_app
from app.routes.access import names_loopback
from app.routes.keys import BadKeys
from app.settings import Settings

ADA, ADAS_OTHER = "adas-key-is-long-enough", "adas-other-key-is-too"
BOB, OVER = "bobs-key-is-long-enough", "key-of-last-year"
KEYS = f"{ADA}:ada,{ADAS_OTHER}:ada,{BOB}:bob:2999-01-01,{OVER}:eve:2024-12-31"
PROXY = "127.0.0.2"


@pytest.fixture(scope="module")
def keyed() -> Iterator[Served]:
    with serving(api_keys=KEYS, cors_origins=["https://app.example"]) as one:
        yield one


@pytest.fixture(scope="module")
def keyless() -> Iterator[Served]:
    with serving() as one:
        yield one


@pytest.fixture(scope="module")
def anyones() -> Iterator[Served]:
    with serving(serve_anyone=True, trusted_proxies=[PROXY]) as one:
        yield one


def simulated(**settings: Any) -> FastAPI:
    return create_app(Settings(model="simulated", database_url="sqlite://", **settings))


def ask(
    served: Served, *headers: tuple[str, str | bytes], path: str = "/runs", method: str = "GET", by: str = "127.0.0.1"
) -> httpx.Response:
    encoded = [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in headers]
    with httpx.Client(transport=httpx.HTTPTransport(local_address=by), base_url=served.url) as client:
        return client.request(method, path, headers=encoded)


def user_of(served: Served, *headers: tuple[str, str], by: str = "127.0.0.1") -> str:
    answer = ask(served, *headers, path="/session", method="POST", by=by)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["user"])


def refusal(answer: httpx.Response, status: int) -> str:
    """The message of a refusal in the contract's form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    assert answer.json()["error"].keys() == {"code", "message"}
    assert answer.json()["error"]["code"] == {401: "unauthorized", 403: "forbidden", 400: "bad_request"}[status]
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    message = str(answer.json()["error"]["message"])
    assert not any(key in answer.text or key in str(answer.headers) for key in (ADA, ADAS_OTHER, BOB, OVER))
    return message


def bearer(key: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {key}"


# Keys


@pytest.mark.parametrize(
    ("headers", "user"),
    [
        ([bearer(ADA)], "ada"),
        ([bearer(ADAS_OTHER)], "ada"),
        ([bearer(BOB)], "bob"),
        ([("authorization", f"bEARER   {ADA}")], "ada"),
        ([("X-API-Key", BOB)], "bob"),
        ([("x-api-key", ADA), bearer(ADA)], "ada"),
        ([bearer(ADA), bearer(ADA)], "ada"),
    ],
)
def test_whoever_has_a_key_is_its_user(keyed: Served, headers: list[tuple[str, str]], user: str) -> None:
    assert user_of(keyed, *headers) == user


def test_two_keys_of_one_user_see_the_same_runs_and_another_user_none_of_them(keyed: Served) -> None:
    started = httpx.post(
        f"{keyed.url}/agents/chat/runs", json={"input": "[[tokens=2]] hi"}, headers=dict([bearer(ADA)])
    ).json()
    assert started["user"] == "ada"
    run = f"/runs/{started['run_id']}"
    assert ask(keyed, bearer(ADAS_OTHER), path=run).status_code == 200
    assert ask(keyed, bearer(BOB), path=run).status_code == 404
    assert ask(keyed, bearer(BOB)).json() == {"runs": []}


LONG = "x" * 10_000
BASIC = base64.b64encode(f"ada:{ADA}".encode()).decode()


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], "this server needs a key"),
        ([bearer("nobodys-key-that-is-long")], "the key is not known"),
        ([bearer(ADA[:-1])], "the key is not known"),
        ([bearer(f"{ADA}x")], "the key is not known"),
        ([bearer(ADA.upper())], "the key is not known"),
        ([bearer(LONG)], "the key is not known"),
        ([("x-api-key", LONG)], "the key is not known"),
        ([("x-api-key", "schlüssel")], "the key is not known"),
        ([("Authorization", b"Bearer \xff\xfe\xed\xa0\x80")], "the key is not known"),
        ([("x-api-key", f"Bearer {ADA}")], "empty or malformed"),
        ([("x-api-key", "")], "empty or malformed"),
        ([("Authorization", "Bearer")], "empty or malformed"),
        ([bearer(f"{ADA} {ADA}")], "empty or malformed"),
        ([bearer(f"{ADA}, Bearer {BOB}")], "empty or malformed"),
        ([("Authorization", "")], "only Bearer is known"),
        ([("Authorization", ADA)], "only Bearer is known"),
        ([("Authorization", f"Basic {BASIC}")], "only Bearer is known"),
        ([("Authorization", f"Bearer\t{ADA}")], "only Bearer is known"),
        ([("Authorization", f"Basic {BASIC}"), ("x-api-key", ADA)], "only Bearer is known"),
        ([bearer(ADA), ("x-api-key", BOB)], "two keys that differ"),
        ([bearer(ADA), bearer(ADAS_OTHER)], "two keys that differ"),
        ([bearer(ADA), ("x-api-key", "")], "two keys that differ"),
        ([bearer("wrong"), ("x-api-key", ADA)], "two keys that differ"),
        ([bearer(OVER)], "the key has expired"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/runs"), ("POST", "/agents/chat/invoke"), ("POST", "/session")])
def test_every_other_key_is_refused(
    keyed: Served, headers: list[tuple[str, str]], said: str, method: str, path: str
) -> None:
    message = refusal(ask(keyed, *headers, path=path, method=method), 401)
    assert said in message
    assert len(message) <= 123  # which is what a close frame holds


def test_a_refusal_is_heard_though_the_body_is_long_and_the_connection_goes_on(keyed: Served) -> None:
    with httpx.Client(base_url=keyed.url) as client:
        for size in (0, 1000, 20_000_000):
            assert "needs a key" in refusal(client.post("/agents/chat/runs", content=b"x" * size), 401)
        assert client.get("/runs", headers=dict([bearer(ADA)])).status_code == 200


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (f"api_key={ADA}", "have it replaced"),
        (f"q={BOB}", "have it replaced"),
        (f"a=1&{ADA}", "have it replaced"),
        (f"x=Bearer%20{ADA}", "have it replaced"),
        (f"x=Bearer+{OVER}", "have it replaced"),
        (f"x={ADA.replace('a', '%61')}", "have it replaced"),
        ("api_key=wrong", "keys are not taken from the URL"),
        ("Access_Token=", "keys are not taken from the URL"),
        ("token", "keys are not taken from the URL"),
    ],
)
@pytest.mark.parametrize("headers", [[], [bearer(ADA)]])
async def test_a_key_in_the_url_is_refused_also_beside_a_right_one(
    keyed: Served, query: str, said: str, headers: list[tuple[str, str]]
) -> None:
    assert said in refusal(ask(keyed, *headers, path=f"/runs?{query}"), 401)
    code, reason = await closed(keyed, query=query, headers=headers)
    assert (code, said in reason) == (4401, True)


def test_a_url_with_a_heap_of_parameters_is_refused_before_they_are_looked_at(keyed: Served) -> None:
    assert "100 parameters" in refusal(ask(keyed, bearer(ADA), path="/runs?" + "a&" * 1000 + "b"), 400)
    assert ask(keyed, bearer(ADA), path="/runs?" + "&".join("a" * 100)).status_code == 200


def test_what_is_nobodys_needs_no_key(keyed: Served) -> None:
    for path in ("/", "/web/main.js", "/docs", "/openapi.json", "/health/live", "/health/ready"):
        assert ask(keyed, path=path).status_code < 400
    for path in ("/agents", "/runs", "/usage", "/ws", "/no-such-page", "/agents/chat/playground/", "/docs/", "/DOCS"):
        refusal(ask(keyed, path=path), 401)
    assert ask(keyed, bearer(ADA), path="/no-such-page").status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 200),
        ([("Host", "localhost:8000")], 200),
        ([("Host", "evil.example")], 401),  # DNS rebinding
        ([("X-Forwarded-For", "203.0.113.7")], 401),  # a proxy on this machine
        ([("Forwarded", "for=203.0.113.7")], 401),
        ([("Host", "evil.example"), bearer(ADA)], 200),
    ],
)
def test_metrics_need_no_key_on_this_machine(keyed: Served, headers: list[tuple[str, str]], status: int) -> None:
    assert ask(keyed, *headers, path="/metrics").status_code == status


def test_every_answer_tells_the_user_what_is_left(keyed: Served) -> None:
    for path in ("/runs", "/runs/none"):
        answer = ask(keyed, bearer(BOB), path=path)
        for name, value in keyed.runner.allowance("bob").items():
            assert answer.headers[name].partition(";t=")[0] == value.partition(";t=")[0]
    assert "ratelimit" in ask(keyed, bearer(BOB)).headers
    assert "ratelimit" not in ask(keyed, path="/health/live").headers
    assert "ratelimit" not in ask(keyed).headers


# Pages


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "https://app.example.evil.example", "http://127.0.0.1:1"]
)
@pytest.mark.parametrize("path", ["/runs", "/health/live", "/session"])
def test_pages_of_other_origins_are_refused_whatever_they_have(keyed: Served, origin: str, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        message = refusal(ask(keyed, bearer(ADA), ("Origin", origin), path=path, method=method), 403)
        assert message == "pages of other origins may not use this server"


def test_a_page_of_an_allowed_origin_may_read_refusals_and_the_allowance(keyed: Served) -> None:
    ours = ("Origin", "https://app.example")
    refused = ask(keyed, ours)
    refusal(refused, 401)
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    answer = ask(keyed, ours, bearer(ADA))
    assert {"RateLimit", "RateLimit-Policy"} <= set(answer.headers["access-control-expose-headers"].split(", "))
    wanted = ("Access-Control-Request-Method", "DELETE"), ("Access-Control-Request-Headers", "authorization,x-api-key")
    assert ask(keyed, ours, *wanted, path="/session", method="OPTIONS").status_code == 200
    assert "access-control-allow-credentials" not in answer.headers  # the cookie is for the own origin's pages


# Sockets


async def closed(
    served: Served,
    *,
    query: str = "",
    headers: list[tuple[str, str]] | None = None,
    protocols: list[str] | None = None,
    origin: str | None = None,
) -> tuple[int, str]:
    """How the server closes a socket; 1000 where it takes it."""
    async with connect(
        f"{served.url.replace('http:', 'ws:')}/ws{query and '?'}{query}",
        additional_headers=headers,
        subprotocols=None if protocols is None else [Subprotocol(one) for one in protocols],
        origin=None if origin is None else Origin(origin),
        proxy=None,
    ) as connection:
        assert connection.subprotocol == ("millrace" if "millrace" in (protocols or ()) else None)
        with suppress(ConnectionClosed):
            await connection.send('{"type": "ping"}')
            assert '"pong"' in str(await connection.recv())
            return 1000, ""
        return connection.close_code or 0, connection.close_reason or ""


@pytest.mark.parametrize(
    ("protocols", "headers"),
    [
        (None, [bearer(ADA)]),
        (None, [("x-api-key", ADA)]),
        (["millrace", f"bearer.{ADA}"], []),
        ([f"bearer.{ADA}", "millrace"], []),
        (["millrace"], [bearer(ADA)]),
        (["millrace", f"bearer.{ADA}"], [bearer(ADA)]),
    ],
)
async def test_a_socket_brings_its_key_in_a_header_or_as_a_subprotocol(
    keyed: Served, protocols: list[str] | None, headers: list[tuple[str, str]]
) -> None:
    assert await closed(keyed, protocols=protocols, headers=headers) == (1000, "")


@pytest.mark.parametrize(
    ("protocols", "headers", "said"),
    [
        (None, [], "this server needs a key"),
        (["millrace"], [], "this server needs a key"),
        (["millrace", ADA], [], "this server needs a key"),
        (["millrace", "bearer.wrong"], [], "the key is not known"),
        (["millrace", "bearer."], [], "empty or malformed"),
        (["millrace", f"bearer.{OVER}"], [], "the key has expired"),
        (["millrace", f"bearer.{ADA}", f"bearer.{BOB}"], [], "two keys that differ"),
        (["millrace", f"bearer.{ADA}"], [bearer(BOB)], "two keys that differ"),
        (["millrace", f"bearer.{ADA}"], [("Authorization", f"Basic {BASIC}")], "only Bearer is known"),
    ],
)
async def test_a_socket_with_a_bad_key_is_closed_with_4401(
    keyed: Served, protocols: list[str] | None, headers: list[tuple[str, str]], said: str
) -> None:
    code, reason = await closed(keyed, protocols=protocols, headers=headers)
    assert (code, said in reason) == (4401, True)
    assert not any(key in reason for key in (ADA, BOB, OVER))


async def test_a_page_of_an_allowed_origin_may_have_a_socket(keyed: Served) -> None:
    ours, key = "https://app.example", f"bearer.{ADA}"
    assert await closed(keyed, protocols=["millrace", key], origin=ours) == (1000, "")
    assert (await closed(keyed, protocols=["millrace"], origin=ours))[0] == 4401


@pytest.mark.parametrize("headers", [[], [bearer(ADA)]])
async def test_a_foreign_pages_socket_is_closed_with_4403_whatever_key_it_has(
    keyed: Served, headers: list[tuple[str, str]]
) -> None:
    assert (await closed(keyed, headers=headers, origin="https://evil.example"))[0] == 4403


async def test_keys_in_bytes_that_are_no_text_are_refused_and_hurt_nobody(keyed: Served) -> None:
    where = urlsplit(keyed.url)
    for line in (
        b"Sec-WebSocket-Protocol: millrace, bearer.\xff\xed\xa0\x80",
        b"x-api-key: \xff\x80",
        b"Cookie: millrace_session=\xff",
    ):
        with socket.create_connection((where.hostname, where.port), timeout=10) as raw:
            raw.sendall(
                b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" + line + b"\r\n\r\n"
            )
            got = b""
            while b"\x11\x31" not in got and (more := raw.recv(4096)):  # 4401, or the handshake's refusal
                got += more
            assert b"\x11\x31" in got or got.startswith(b"HTTP/1.1 400")
    assert ask(keyed, path="/health/live").status_code == 200


# Forwarded headers


FORGED = [
    [("X-Forwarded-For", "203.0.113.7")],
    [("X-Forwarded-For", "203.0.113.7, 10.0.0.1"), ("X-Forwarded-For", "testclient")],
    [("X-Forwarded-For", "garbage;;[")],
    [("Forwarded", "for=203.0.113.7"), ("X-Real-IP", "203.0.113.7")],
]


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_forwarded_header_changes_nobodys_user(
    keyed: Served, keyless: Served, anyones: Served, forged: list[tuple[str, str]]
) -> None:
    assert user_of(keyed, bearer(ADA), *forged) == "ada"
    refusal(ask(keyed, *forged), 401)
    for served in (keyless, anyones):
        assert user_of(served, *forged) == "127.0.0.1"


def test_a_trusted_proxy_tells_who_asks(anyones: Served) -> None:
    def through_proxy(*told: str) -> str:
        return user_of(anyones, *(("X-Forwarded-For", one) for one in told), by=PROXY)

    assert through_proxy("203.0.113.7") == "203.0.113.7"
    assert through_proxy("127.0.0.1, 203.0.113.7") == "203.0.113.7"
    assert through_proxy("198.51.100.1", f"203.0.113.7, {PROXY}") == "203.0.113.7"
    assert through_proxy("testclient") == through_proxy("203.0.113.7, what?") == "unknown"
    assert through_proxy() == PROXY


def test_whom_a_trusted_proxy_names_as_another_machine_is_refused_without_keys() -> None:
    with serving(trusted_proxies=["127.0.0.2/31"]) as served:
        for told in ("203.0.113.7", "127.0.0.1, 203.0.113.7", "testclient", "localhost"):
            message = refusal(ask(served, ("X-Forwarded-For", told), by=PROXY), 403)
            assert message == "this server has no keys set, so it serves its own machine only"
        assert user_of(served, ("X-Forwarded-For", "127.0.0.1"), by=PROXY) == "127.0.0.1"


def test_behind_a_trusted_proxy_with_tls_the_cookie_is_for_tls_alone() -> None:
    with serving(api_keys=KEYS, trusted_proxies=[PROXY]) as served:
        told = ("X-Forwarded-Proto", "https")
        for by, secure in ((PROXY, True), ("127.0.0.3", False)):
            answer = ask(served, bearer(ADA), told, path="/session", method="POST", by=by)
            assert ("; secure" in answer.headers["set-cookie"].lower()) is secure


def test_a_launcher_that_trusts_everybodys_headers_lets_nobody_in() -> None:
    config = uvicorn.Config(simulated(), proxy_headers=True, forwarded_allow_ips="*", log_config=None, access_log=False)
    config.load()
    with running(config.loaded_app) as url, httpx.Client(base_url=url) as client:
        # What the launcher makes of these is set right again: else this would be 403.
        assert client.post("/session", headers={"X-Forwarded-For": "203.0.113.7"}).json()["user"] == "127.0.0.1"


# Without keys


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[::2]:80", ""]
)
def test_without_keys_the_host_must_name_this_machine(keyless: Served, anyones: Served, host: str) -> None:
    refusal(ask(keyless, ("Host", host)), 403)
    assert ask(anyones, ("Host", host)).status_code == 200


def test_without_keys_a_key_that_is_sent_is_not_looked_at(keyless: Served) -> None:
    assert user_of(keyless, bearer("whatever")) == "127.0.0.1"
    assert ask(keyless, path="/runs?api_key=x").status_code == 200


async def test_where_anyone_is_served_pages_of_other_origins_are_still_refused(anyones: Served) -> None:
    refusal(ask(anyones, ("Origin", "https://evil.example"), path="/session", method="POST"), 403)
    assert (await closed(anyones, origin="https://evil.example"))[0] == 4403
    assert await closed(anyones) == (1000, "")


def test_every_peer_is_a_user_of_its_own_where_anyone_is_served(anyones: Served) -> None:
    assert user_of(anyones, by="127.0.0.3") == "127.0.0.3"
    assert user_of(anyones, ("Host", "evil.example"), by="127.0.0.4") == "127.0.0.4"


def test_another_machine_is_served_only_with_a_key_or_where_anyone_is() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; the system chooses the address
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own = probe.getsockname()[0]
    cases: list[tuple[dict[str, Any], int, dict[str, str]]] = [
        ({}, 403, {}),
        ({}, 403, {"Host": "localhost", "X-Forwarded-For": "127.0.0.1"}),
        ({"api_keys": KEYS}, 401, {"X-Forwarded-For": "127.0.0.1"}),
        ({"api_keys": KEYS}, 200, dict([bearer(ADA)])),
        ({"serve_anyone": True}, 200, {}),
    ]
    for settings, status, headers in cases:
        with running(simulated(**settings), host=own) as url:
            assert httpx.get(f"{url}/runs", headers=headers).status_code == status
            if "api_keys" in settings:
                assert httpx.get(f"{url}/metrics", headers={"Host": "localhost"}).status_code == 401


def test_in_process_the_same_holds() -> None:
    with TestClient(simulated(trusted_proxies=["127.0.0.1"])) as client:
        assert client.get("/runs", headers={"X-Forwarded-For": "203.0.113.7"}).status_code == 200
    with TestClient(simulated(trusted_proxies=["127.0.0.1"], api_keys=KEYS)) as client:
        assert client.get("/runs").status_code == 401
        assert client.get("/runs", headers=dict([bearer(ADA)])).status_code == 200
        assert client.get("/metrics").status_code == 200


def test_mounted_in_another_app_the_open_paths_are_still_open() -> None:
    client = TestClient(Starlette(routes=[Mount("/millrace", simulated(api_keys=KEYS))]))
    assert client.get("/millrace/health/live").status_code == 200
    assert client.get("/millrace/runs").status_code == 401


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True), ("LOCALHOST:80", True), ("a.localhost", True), ("127.0.0.1:8000", True),
        ("[::1]:80", True),
        ("[::1]", True), ("127.9.9.9", True), ("", False), ("localhost.", False), ("localhost.evil.example", False),
        ("evil.example", False), ("[::2]", False), ("127.0.0.1.evil.example", False), ("0.0.0.0", False), ("[", False),
    ],
)  # fmt: skip
def test_names_of_this_machine(host: str, here: bool) -> None:
    assert names_loopback(host) is here


# What is said in the log at the start


def test_keys_that_are_weak_or_over_are_warned_of_by_their_users_name(caplog: pytest.LogCaptureFixture) -> None:
    simulated(api_keys="short-key:bob,key-of-last-year:eve:2024-12-31")
    weak, over = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert "user bob" in weak
    assert "user eve has expired" in over
    assert "short-key" not in caplog.text
    assert "key-of-last-year" not in caplog.text


def test_serving_anyone_is_warned_of_unless_there_are_keys(caplog: pytest.LogCaptureFixture) -> None:
    simulated(serve_anyone=True)
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert "ANYBODY who reaches this port" in warning
    caplog.clear()
    simulated(serve_anyone=True, api_keys=KEYS)
    assert "ANYBODY" not in caplog.text


def test_keys_that_cannot_be_used_start_nothing() -> None:
    for text in ("", "only-a-key", "a:b:c"):
        with pytest.raises(BadKeys):
            simulated(api_keys=text)
