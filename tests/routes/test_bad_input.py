"""What a client may get wrong: the contract's error object, the right status, and a server that goes on."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from serving import Served

RUNS = "/agents/assistant/runs"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe{}", 400, "invalid_json"),
        (b'{"input": NaN}', 400, "invalid_json"),
        (b'{"input": "\\ud800"}', 400, "invalid_json"),
        (b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "invalid_json"),
        (b'{"input": ' + b"[" * 500 + b"]" * 500 + b"}", 422, "invalid_input"),
        (b"[]", 422, "invalid_input"),
        (b'"hello"', 422, "invalid_input"),
        (b"null", 422, "invalid_input"),
        (b"{}", 422, "invalid_input"),
        (b'{"input": null}', 422, "invalid_input"),
        (b'{"input": ""}', 422, "invalid_input"),
        (b'{"input": "  \\n"}', 422, "invalid_input"),
        (b'{"input": {}}', 422, "invalid_input"),
        (b'{"input": []}', 422, "invalid_input"),
        (b'{"input": 7}', 422, "invalid_input"),
        (b'{"input": {"messages": []}}', 422, "invalid_input"),
        (b'{"input": {"messages": [{"role": "user", "content": ""}]}}', 422, "invalid_input"),
        (b'{"input": {"messages": [{"role": "wizard", "content": "hi"}]}}', 422, "invalid_input"),
        (b'{"input": {"messages": [{"role": ["user"], "content": "hi"}]}}', 422, "invalid_input"),
        (b'{"input": {"messages": [{"content": "hi"}]}}', 422, "invalid_input"),
        (b'{"input": {"messages": [{"role": "user", "content": 7}]}}', 422, "invalid_input"),
        (b'{"input": {"messages": [{"role": "user"}]}}', 422, "invalid_input"),
        (b'{"input": {"messages": [{"role": "tool", "content": "x"}]}}', 422, "invalid_input"),
        (b'{"input": {"messages": 7}}', 422, "invalid_input"),
        (b'{"input": {"messages": [7]}}', 422, "invalid_input"),
        (b'{"input": {"other": "x"}}', 422, "invalid_input"),
        (b'{"input": "hi", "on_disconnect": "explode"}', 422, "invalid_input"),
        (b'{"input": "hi", "disconnect_grace_s": -1}', 422, "invalid_input"),
        (b'{"input": "hi", "disconnect_grace_s": "5"}', 422, "invalid_input"),
        (b'{"input": "hi", "timeout_s": 0}', 422, "invalid_input"),
        (b'{"input": "hi", "metadata": []}', 422, "invalid_input"),
        (b'{"input": "hi", "on_disconect": "cancel"}', 422, "invalid_input"),
        (b'{"input": "hi", "max_tokens": -1}', 422, "invalid_input"),
        (b'{"input": "hi", "thread_id": ""}', 422, "invalid_input"),
        (b'{"resume": "yes"}', 422, "invalid_input"),
        (b'{"input": "hi", "token_timeout_s": 0}', 422, "invalid_input"),
        (b'{"input": "hi", "pause_after": "page"}', 422, "invalid_input"),
        (
            b'{"input": {"messages": [{"lc": 1, "type": "constructor", "id": ["x"], "kwargs": {}}]}}',
            422,
            "invalid_input",
        ),
    ],
)
async def test_a_bad_body_is_refused_with_the_reason(
    client: httpx.AsyncClient, body: bytes, status: int, code: str
) -> None:
    answer = await client.post(RUNS, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert answer.json()["error"]["message"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": "hi", "on_disconect": "cancel"}, "on_disconect"),
        ({"input": "hi", "timeout_s": "5"}, "timeout_s"),
        ({"input": {"messages": [{"role": "wizard", "content": "hi"}]}}, "input.messages[0].role"),
        ({"input": "hi", "thread_id": 7}, "thread_id"),
        ({"input": "hi", "metadata": {"long": "x" * 20_000}}, "metadata"),
    ],
)
async def test_a_wrong_field_is_named(client: httpx.AsyncClient, body: Any, field: str) -> None:
    error = (await client.post(RUNS, json=body)).json()["error"]
    assert error["detail"][0]["field"] == field
    assert field in error["message"]


@pytest.mark.parametrize("path", ["/agents/nobody/runs", "/agents/nobody/invoke", "/runs/none/cancel", "/nothing"])
async def test_what_is_not_there_is_404(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json={"input": "hi"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("unknown_agent", "unknown_run", "not_found")


@pytest.mark.parametrize("path", ["/runs/none", "/runs/none/events", "/runs/none/result"])
async def test_an_unknown_run_is_404(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).json()["error"]["code"] == "unknown_run"


async def test_a_wrong_method_is_405_in_the_same_form(client: httpx.AsyncClient) -> None:
    answer = await client.put(RUNS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "٣", "9" * 40, "1" * 7000, "18446744073709551616"])
@pytest.mark.parametrize("way", ["header", "query"])
async def test_an_event_id_that_is_none_is_refused(client: httpx.AsyncClient, value: str, way: str) -> None:
    run_id = (await client.post("/agents/chat/runs", json={"input": "hi"})).json()["run_id"]
    path = f"/runs/{run_id}/events"
    if way == "header":
        answer = await client.get(path, headers={b"Last-Event-ID": value.encode()})
    else:
        answer = await client.get(path, params={"after": value})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_event_id")


async def test_an_event_id_in_the_future_is_refused(client: httpx.AsyncClient) -> None:
    run_id = (await client.post("/agents/chat/runs", json={"input": "[[tokens=3]] hi"})).json()["run_id"]
    await client.get(f"/runs/{run_id}/result", params={"wait": "true"})
    answer = await client.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": "999999"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_event_id")


async def test_a_body_over_the_bound_is_413_by_its_length_and_by_its_bytes(client: httpx.AsyncClient) -> None:
    big = json.dumps({"input": "x" * 2_000_000}).encode()

    async def pieces() -> Any:
        for start in range(0, len(big), 65536):
            yield big[start : start + 65536]

    for path in (RUNS, "/agents/chat/invoke"):
        told = await client.post(path, content=big)
        assert (told.status_code, told.json()["error"]["code"]) == (413, "body_too_large")
        counted = await client.post(path, content=pieces())
        assert (counted.status_code, counted.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_compressed_body_is_not_unpacked(client: httpx.AsyncClient) -> None:
    answer = await client.post(RUNS, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8000", ""])
async def test_a_host_that_is_not_this_machine_is_refused(served: Served, host: str) -> None:
    where = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(f"GET /agents HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 403")
    assert b'"forbidden"' in answer


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example"]
)
async def test_a_page_from_elsewhere_cannot_start_a_run(client: httpx.AsyncClient, origin: str) -> None:
    answer = await client.post(RUNS, json={"input": "hi"}, headers={"Origin": origin})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


async def test_the_servers_own_pages_may(client: httpx.AsyncClient, served: Served) -> None:
    answer = await client.post(RUNS, json={"input": "hi"}, headers={"Origin": served.url})
    assert answer.status_code == 202


async def test_text_that_could_break_a_frame_arrives_whole(client: httpx.AsyncClient) -> None:
    said = "a\r\nb\ndata: x\u2028y\u2029z\u0085\x00end"
    quoted = "".join(f"%{byte:02X}" for byte in said.encode())
    run_id = (await client.post("/agents/chat/runs", json={"input": f"[[say={quoted}]]"})).json()["run_id"]
    result = (await client.get(f"/runs/{run_id}/result", params={"wait": "true"})).json()
    assert result["text"] == said
    stream = (await client.get(f"/runs/{run_id}/events")).text
    frames = [frame for frame in stream.removeprefix("retry: 1000\n").split("\n\n") if frame]
    assert all(len(frame.splitlines()) == 3 for frame in frames)


async def test_after_all_that_the_server_still_answers(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/ready")).json() == {"status": "ready"}
