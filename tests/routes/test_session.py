"""A key traded for a cookie: over the wire, and in a real browser with an EventSource, a socket and the playground."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.cookies import SimpleCookie

import httpx
import pytest
from machine import chromium
from playwright.sync_api import Browser, BrowserContext, Page, expect
from serving import Served, serving
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Origin

ADA, BOB = "adas-key-is-long-enough", "bobs-key-is-long-enough"
COOKIE = "millrace_session"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(api_keys=f"{ADA}:ada,{BOB}:bob") as one:
        yield one


@contextmanager
def opened(served: Served, key: str = ADA) -> Iterator[httpx.Client]:
    """A client that has a session and no key any more."""
    with httpx.Client(base_url=served.url) as client:
        assert client.post("/session", headers={"x-api-key": key}).status_code == 200
        yield client


def with_cookie(served: Served, value: str, *, method: str = "GET", path: str = "/runs") -> httpx.Response:
    return httpx.request(method, f"{served.url}{path}", headers={"Cookie": f"{COOKIE}={value}"})


def told(answer: httpx.Response) -> str:
    assert answer.status_code == 401
    return str(answer.json()["error"]["message"])


def test_a_key_is_traded_for_a_cookie_that_scripts_cannot_read_and_other_sites_cannot_send(server: Served) -> None:
    answer = httpx.post(f"{server.url}/session", headers={"Authorization": f"Bearer {ADA}"})
    assert answer.json() == {"user": "ada", "expires_in_s": 30 * 24 * 3600}
    cookie = SimpleCookie(answer.headers["set-cookie"])[COOKIE]
    assert cookie["httponly"] is True
    assert (cookie["samesite"].lower(), cookie["path"], cookie["max-age"]) == ("strict", "/", str(30 * 24 * 3600))
    assert not cookie["domain"]
    assert not cookie["secure"]  # this is plain HTTP
    assert ADA not in answer.text + answer.headers["set-cookie"]


def test_the_cookie_stands_for_the_key(server: Served) -> None:
    with opened(server) as client:
        row = client.post("/agents/chat/runs", json={"input": "[[tokens=2]] hi"}).json()
        assert row["user"] == "ada"
        assert "event: run.finished" in client.get(f"/runs/{row['run_id']}/events").text
        assert client.get("/agents/chat/playground/").status_code == 200
    with opened(server, BOB) as client:
        assert client.get(f"/runs/{row['run_id']}").status_code == 404


def test_a_key_in_a_header_wins_over_the_cookie_also_where_it_is_wrong(server: Served) -> None:
    with opened(server) as client:
        assert client.post("/session", headers={"x-api-key": BOB}).json()["user"] == "bob"
        assert "not known" in told(client.get("/runs", headers={"x-api-key": "wrong"}))


def test_a_session_opens_no_other_session(server: Served) -> None:
    with opened(server) as client:
        assert "opened with a key" in told(client.post("/session"))


def test_a_foreign_page_cannot_use_the_cookie(server: Served) -> None:
    with opened(server) as client:
        for call in ("POST /agents/chat/runs", "DELETE /session", "GET /runs", "POST /session"):
            answer = client.request(*call.split(), headers={"Origin": "https://evil.example"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
            assert "set-cookie" not in answer.headers
        assert client.get("/runs", headers={"Origin": server.url}).status_code == 200
        headers = {"Cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
        url, evil = f"{server.url.replace('http', 'ws')}/ws", Origin("https://evil.example")
        with (
            connect(url, additional_headers=headers, origin=evil, proxy=None) as socket,
            pytest.raises(ConnectionClosed) as closed,
        ):
            socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4403


def test_leaving_has_the_browser_forget_it_and_needs_no_session_that_is_good(server: Served) -> None:
    with opened(server) as client:
        assert client.delete("/session").status_code == 204
        assert COOKIE not in client.cookies
        assert "needs a key" in told(client.get("/runs"))
    for value in ("", "garbage", "a.b.c"):
        answer = with_cookie(server, value, method="DELETE", path="/session")
        assert answer.status_code == 204
        assert "max-age=0" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize("value", ["", "garbage", "a.b.c", "x" * 5000, ADA, '"', "%00", f"a.b.c; {COOKIE}=d.e.f"])
def test_what_is_no_session_is_refused(server: Served, value: str) -> None:
    message = told(with_cookie(server, value))
    assert message.startswith(("the session is not known", "this server needs a key"))


def test_a_session_that_was_touched_or_is_another_servers_is_refused(server: Served) -> None:
    with opened(server) as client:
        token = client.cookies[COOKIE]
    name, when, signature = token.split(".")
    for one in (f"{name}.{when}", f"{name}.{when}x.{signature}", token.swapcase(), f"{name}.{when}.{signature[::-1]}"):
        assert "the session is not known" in told(with_cookie(server, one))
    assert with_cookie(server, token).status_code == 200
    with (
        serving(api_keys="a-key-of-another-server:ada") as other,
        opened(other, "a-key-of-another-server") as client,
    ):
        foreign = client.cookies[COOKIE]
    assert "the session is not known" in told(with_cookie(server, foreign))


def test_a_session_outlives_a_restart_and_ends_with_its_key() -> None:
    with serving(api_keys=f"{ADA}:ada,{BOB}:bob") as before, opened(before) as client:
        token = client.cookies[COOKIE]
    with serving(api_keys=f"{BOB}:bob,{ADA}:ada") as after:
        assert with_cookie(after, token).status_code == 200
    with serving(api_keys=f"another-key-for-the-same:ada,{BOB}:bob") as after:
        assert "the session is not known" in told(with_cookie(after, token))
    with serving(api_keys=f"{ADA}:ada:2024-12-31,{BOB}:bob") as after:
        assert "the key has expired" in told(with_cookie(after, token))


def test_without_keys_there_is_nothing_to_trade() -> None:
    with serving() as served:
        answer = httpx.post(f"{served.url}/session")
        assert answer.json() == {"user": "127.0.0.1", "expires_in_s": None}
        assert "set-cookie" not in answer.headers
        assert httpx.delete(f"{served.url}/session").status_code == 204
        assert with_cookie(served, "garbage").status_code == 200


# In a browser


OPEN = """key => fetch("/session", {method: "POST", headers: {"x-api-key": key}}).then(got => got.status)"""

START = """text => fetch("/agents/chat/runs", {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({input: text}),
}).then(async got => [got.status, await got.json()])"""

FOLLOW = """run => new Promise(done => {
    const source = new EventSource(`/runs/${run}/events`);
    let text = "";
    source.addEventListener("token", one => text += JSON.parse(one.data).text);
    source.addEventListener("run.finished", one => { source.close(); done([JSON.parse(one.data).status, text]); });
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) done(["refused", text]); };
})"""

TALK = """protocols => new Promise(done => {
    const socket = new WebSocket(`ws://${location.host}/ws`, protocols);
    let text = "";
    const start = {type: "start", stream_id: "a", agent: "chat", input: "[[say=yes]]"};
    socket.onopen = () => socket.send(JSON.stringify(start));
    socket.onmessage = one => {
        const frame = JSON.parse(one.data);
        if (frame.event === "token") text += frame.data.text;
        if (frame.event === "run.finished") { socket.close(); done([frame.data.status, text, socket.protocol]); }
    };
    socket.onclose = end => done([end.code, text, socket.protocol]);
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    one = browser.new_context()
    yield one
    one.close()


@pytest.fixture
def page(context: BrowserContext, server: Served) -> Page:
    """A page of the server's own origin, of somebody who has shown no key yet."""
    one = context.new_page()
    one.goto(f"{server.url}/health/live")
    return one


def test_in_a_browser_everything_works_by_the_cookie_and_no_script_sees_it(
    context: BrowserContext, page: Page, server: Served
) -> None:
    assert page.evaluate(START, "hi")[0] == 401
    assert page.evaluate(TALK, [])[0] == 4401
    assert page.evaluate(OPEN, "wrong") == 401
    assert page.evaluate(OPEN, ADA) == 200
    assert page.evaluate("document.cookie") == ""
    (cookie,) = context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == (COOKIE, True, "Strict")
    status, row = page.evaluate(START, "[[say=yes]]")
    assert (status, row["user"]) == (202, "ada")
    assert page.evaluate(FOLLOW, row["run_id"]) == ["completed", "yes"]
    assert page.evaluate(TALK, []) == ["completed", "yes", ""]
    page.goto(f"{server.url}/agents/chat/playground/")
    field = page.locator("textarea").last
    expect(field).to_be_empty()
    page.wait_for_timeout(200)  # the form's own timers
    field.fill("[[say=yes]]")
    page.wait_for_timeout(200)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("h2:has-text('Output') + div")).to_have_text("yes", timeout=20_000)
    assert len(server.runner.kept("ada")) >= 3
    assert page.evaluate("fetch('/session', {method: 'DELETE'}).then(got => got.status)") == 204
    assert context.cookies() == []
    assert page.evaluate(FOLLOW, row["run_id"]) == ["refused", ""]
    assert page.evaluate(TALK, [])[0] == 4401


def test_in_a_browser_a_socket_may_bring_its_key_by_itself(page: Page) -> None:
    assert page.evaluate(TALK, ["millrace", f"bearer.{ADA}"]) == ["completed", "yes", "millrace"]
    assert page.evaluate(TALK, ["millrace", "bearer.wrong"]) == [4401, "", "millrace"]


def test_a_page_of_another_site_has_nothing_of_the_cookie(context: BrowserContext, page: Page, server: Served) -> None:
    assert page.evaluate(OPEN, ADA) == 200
    with serving() as elsewhere:
        foreign = context.new_page()
        foreign.goto(elsewhere.url.replace("127.0.0.1", "localhost") + "/health/live")
        before = len(server.runner.kept("ada"))
        sent = """url => fetch(url, {method: "POST", mode: "no-cors", credentials: "include", body: '{"input": "hi"}'})
            .then(got => got.type, error => error.name)"""
        assert foreign.evaluate(sent, f"{server.url}/agents/chat/runs") == "opaque"  # sent, and refused
        read = "url => fetch(url, {credentials: 'include'}).then(got => got.status, error => error.name)"
        assert foreign.evaluate(read, f"{server.url}/runs") == "TypeError"
        talk = TALK.replace("${location.host}", server.url.removeprefix("http://"))
        assert foreign.evaluate(talk, [])[0] == 4403
        assert len(server.runner.kept("ada")) == before
