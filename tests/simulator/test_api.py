"""The HTTP surface, and every fault as a real client meets it."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai.types.chat import ChatCompletionChunk

from app.simulator.server import Simulator


@tool
def weather(place: str) -> str:
    """Look up the weather."""
    return f"It is raining in {place}."


@pytest.fixture
def http(simulator: Simulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=simulator.base_url, timeout=10) as client:
        yield client


def asked(text: str = "count to 9", **fields: Any) -> dict[str, Any]:
    return {"model": "simulated", "messages": [{"role": "user", "content": text}], **fields}


def streamed(client: openai.OpenAI, told: str, text: str = "count to 9") -> Iterator[ChatCompletionChunk]:
    return iter(
        client.chat.completions.create(
            model=f"simulated?{told}",
            messages=[{"role": "user", "content": text}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )


def words(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]


def collect(chunks: Iterator[ChatCompletionChunk], kept: list[ChatCompletionChunk]) -> None:
    for chunk in chunks:
        kept.append(chunk)  # noqa: PERF402  what came before the error is what is looked at


WHOLE = "1, 2, 3, 4, 5, 6, 7, 8, 9."


# -- the surface ------------------------------------------------------------------------------------------------------


def test_errors_of_any_kind_are_the_wires_error_object(http: httpx.Client) -> None:
    responses = [
        http.post("/chat/completions", content=b"nonsense"),
        http.get("/chat/completions"),
        http.get("/nowhere"),
        http.post("/chat/completions", json=asked(stream=1)),
    ]
    assert [response.status_code for response in responses] == [400, 405, 404, 400]
    for response in responses:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_without_end_is_refused(http: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(65):
            yield b" " * 1024 * 1024

    assert http.post("/chat/completions", content=endless()).status_code == 413


def test_a_large_conversation_is_answered(http: httpx.Client) -> None:
    response = http.post("/chat/completions", json=asked("word " * 200_000))
    assert response.json()["usage"]["prompt_tokens"] == 200_003 + 1


def test_the_stream_has_the_headers_of_one(http: httpx.Client) -> None:
    with http.stream("POST", "/chat/completions", json=asked(stream=True)) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["transfer-encoding"] == "chunked"
        assert response.read().endswith(b"data: [DONE]\n\n")


def test_each_token_is_a_write_of_its_own(simulator: Simulator) -> None:
    """Seen from the socket: one HTTP chunk for each frame."""
    host, port = simulator.base_url.removesuffix("/v1").removeprefix("http://").split(":")
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"count to 9"}]}'
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        raw.sendall(head.encode() + body)
        received = b"".join(iter(lambda: raw.recv(65536), b""))
    chunks = received.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2]
    assert len([chunk for chunk in chunks if chunk.startswith(b"data: ")]) == 18 + 3


def test_requests_and_connections_can_be_read_by_another_process(http: httpx.Client, simulator: Simulator) -> None:
    http.post("/chat/completions", json=asked(stream=True))
    root = httpx.URL(simulator.base_url).copy_with(path="/")
    assert simulator.wait_for(lambda: simulator.requests[-1].finished)
    (request,) = http.get(root.join("/simulator/requests")).json()
    (connection,) = http.get(root.join("/simulator/connections")).json()
    assert request | {"started": 0, "ended": 0} == {
        "number": 1,
        "connection": 1,
        "method": "POST",
        "path": "/v1/chat/completions",
        "started": 0,
        "model": "simulated",
        "roles": ["user"],
        "stream": True,
        "prompt_tokens": 6,
        "status": 200,
        "tokens_sent": 18,
        "ended": 0,
        "finished": True,
    }
    assert (connection["number"], connection["requests"], connection["tokens_sent"]) == (1, 1, 18)
    assert connection["closed"] is None


def beginning(http: httpx.Client, said: str, told: str = "", question: str = "count to 9") -> str:
    """What is answered when the conversation ends with the answer's own beginning."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
    body = {"model": f"simulated?{told}", "messages": messages}
    return str(http.post("/chat/completions", json=body).json()["choices"][0]["message"]["content"])


def test_an_answer_goes_on_from_its_own_beginning(http: httpx.Client) -> None:
    assert all(beginning(http, WHOLE[:cut]) == WHOLE[cut:] for cut in range(1, len(WHOLE) + 1))
    assert beginning(http, "Well: ") == WHOLE
    assert beginning(http, "1, 2", "tokens=5") == "The stream turns without"
    assert beginning(http, "The stream", "tokens=5") == " turns without"


def test_the_directives_of_a_question_hold_for_the_rest_of_its_answer_too(http: httpx.Client) -> None:
    assert beginning(http, "The stream", question="[[tokens=5]]") == " turns without"
    assert beginning(http, "The stream", question="[[call=2 tokens=5]] count to 9") == WHOLE


def test_it_can_repeat_itself_as_models_do_that_go_on_by_request(http: httpx.Client) -> None:
    assert beginning(http, "1, 2", "overlap=2") == ", 2" + WHOLE[4:]
    messages = [
        {"role": "user", "content": "count to 9"},
        {"role": "assistant", "content": "1, 2"},
        {"role": "user", "content": "Continue"},
    ]
    body = {"model": "simulated?overlap=2", "messages": messages}
    answer = http.post("/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == ", 2" + WHOLE[4:]


def test_the_beginning_is_part_of_the_prompt(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "count to 9"}, {"role": "assistant", "content": "1, 2"}]
    usage = http.post("/chat/completions", json={"model": "simulated", "messages": messages}).json()["usage"]
    assert usage["prompt_tokens"] == (3 + 3) + (3 + 3)
    assert usage["completion_tokens"] == 15


# -- pace -------------------------------------------------------------------------------------------------------------


def test_the_pace_is_kept(http: httpx.Client) -> None:
    started = time.monotonic()
    http.post("/chat/completions", json=asked() | {"model": "m?tokens=21&tokens_per_second=100"})
    assert time.monotonic() - started >= 0.2
    started = time.monotonic()
    http.post(
        "/chat/completions", json=asked(stream=True) | {"model": "m?tokens=21&tokens_per_second=100&first_token_s=0.1"}
    )
    assert time.monotonic() - started >= 0.3


def test_headers_come_before_the_first_token_unless_they_are_to_wait_too(http: httpx.Client) -> None:
    with http.stream(
        "POST", "/chat/completions", json=asked(stream=True) | {"model": "m?first_token_s=60"}
    ) as response:
        assert response.status_code == 200
    with (
        pytest.raises(httpx.ReadTimeout),
        http.stream("POST", "/chat/completions", json=asked(stream=True) | {"model": "m?headers_s=60"}, timeout=0.2),
    ):
        pass


def test_a_burst_is_flat_out() -> None:
    with Simulator(tokens_per_second=1) as slow:
        body = asked(stream=True) | {"model": "m?burst=1&tokens=10000"}
        assert httpx.post(f"{slow.base_url}/chat/completions", json=body).text.count('{"content":') == 10_000


# -- three ways to tell -----------------------------------------------------------------------------------------------


def test_header_and_message_reach_it_too(http: httpx.Client) -> None:
    by_header = http.post("/chat/completions", json=asked(), headers={"x-simulate": "say=one%20two"}).json()
    by_message = http.post("/chat/completions", json=asked("weather? [[say=one%20two]]")).json()
    for body in (by_header, by_message):
        assert body["choices"][0]["message"]["content"] == "one two"
        assert body["model"] == "simulated"
    assert http.post("/chat/completions", json=asked("[[say=x sya=y]]")).status_code == 400


def test_directives_can_be_off() -> None:
    with Simulator(directives=False, tokens_per_second=0) as plain:
        body = {"model": "m?say=x", "messages": [{"role": "user", "content": "[[say=y]]"}]}
        response = httpx.post(f"{plain.base_url}/chat/completions", json=body, headers={"x-simulate": "say=z"})
    assert response.json()["model"] == "m?say=x"
    assert "[[say=y]]" in response.json()["choices"][0]["message"]["content"]


def test_a_message_can_address_the_call_after_the_tools(chat: Callable[..., ChatOpenAI]) -> None:
    model = chat().bind_tools([weather])
    question = HumanMessage("weather in Oslo [[call=2 status=503]]")
    first = model.invoke([question])
    with pytest.raises(openai.InternalServerError):
        model.invoke([question, first, weather.invoke(first.tool_calls[0])])


# -- the response fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, openai.RateLimitError), (500, openai.InternalServerError), (503, openai.InternalServerError)],
)
def test_an_http_error_instead_of_an_answer(
    client: openai.OpenAI, status: int, kind: type[openai.APIStatusError]
) -> None:
    with pytest.raises(kind) as caught:
        streamed(client, f"status={status}&retry_after=7&first_token_s=60")
    assert caught.value.status_code == status
    assert caught.value.response.headers["retry-after"] == "7"


def test_only_the_first_attempts_fail(simulator: Simulator) -> None:
    with openai.OpenAI(base_url=simulator.base_url, api_key="x", max_retries=2) as client:
        chunks = list(streamed(client, "status=503&retry_after=0.01&fail_times=2"))
    assert "".join(words(chunks)) == WHOLE
    assert [request.status for request in simulator.requests] == [503, 503, 200]


def test_attempts_are_counted_for_each_conversation_and_anew_after_a_success(client: openai.OpenAI) -> None:
    def attempt(text: str) -> bool:
        kept: list[ChatCompletionChunk] = []
        try:
            collect(streamed(client, "drop_after=2&fail_times=1", text), kept)
        except (openai.APIConnectionError, openai.APIError):
            return False
        return True

    assert [attempt(text) for text in ("count to 8", "count to 9", "count to 8", "count to 8", "count to 8")] == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_an_error_can_have_a_code_of_its_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        list(streamed(client, "status=429&code=insufficient_quota"))
    assert caught.value.code == "insufficient_quota"


@pytest.mark.parametrize("stream", [True, False])
def test_the_connection_is_closed_instead_of_a_response(http: httpx.Client, simulator: Simulator, stream: bool) -> None:
    body = {**asked(stream=stream), "model": "simulated?hang_up=1&fail_times=1"}
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        http.post("/chat/completions", json=body)
    assert simulator.wait_closed(1)
    assert (simulator.connections[0].ended, simulator.requests[0].status) == ("server_closed", None)
    assert http.post("/chat/completions", json=body).status_code == 200


def test_an_error_frame_in_mid_stream(client: openai.OpenAI) -> None:
    kept: list[ChatCompletionChunk] = []
    with pytest.raises(openai.APIError, match="failed in mid-answer"):
        collect(streamed(client, "error_after=5"), kept)
    assert "".join(words(kept)) == "1, 2, 3"


@pytest.mark.parametrize("number", [0, 5])
def test_a_reset_in_mid_stream(client: openai.OpenAI, simulator: Simulator, number: int) -> None:
    kept: list[ChatCompletionChunk] = []
    with pytest.raises((openai.APIConnectionError, openai.APIError)):
        collect(streamed(client, f"drop_after={number}"), kept)
    assert simulator.wait_closed(1)
    assert simulator.connections[0].ended == "server_reset"
    assert simulator.connections[0].tokens_sent == number
    assert not simulator.requests[0].finished


def test_a_clean_end_without_done_is_taken_for_success_by_the_client(client: openai.OpenAI) -> None:
    chunks = list(streamed(client, "close_after=5"))
    assert "".join(words(chunks)) == "1, 2, 3"
    assert chunks[-1].choices[0].finish_reason is None
    assert all(chunk.usage is None for chunk in chunks)


def test_an_answer_in_one_piece_fails_as_a_whole(http: httpx.Client) -> None:
    def post(told: str) -> httpx.Response:
        return http.post("/chat/completions", json=asked() | {"model": f"m?{told}"})

    assert post("error_after=3").status_code == 500
    assert post("close_after=3").text == '{"id":"chatcmpl-'
    with pytest.raises(httpx.TransportError):
        post("drop_after=3")
    with pytest.raises(httpx.ReadTimeout):
        http.post("/chat/completions", json=asked() | {"model": "m?stall_after=3"}, timeout=0.2)


# -- the content is wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["trailing_comma", "mismatched", "cut_string", "empty"])
def test_broken_arguments_reach_the_client(chat: Callable[..., ChatOpenAI], kind: str) -> None:
    answer = chat(f"simulated?bad_json={kind}").bind_tools([weather]).invoke("weather in Oslo")
    if kind == "empty":
        assert [call["args"] for call in answer.tool_calls + answer.invalid_tool_calls] in ([{}], [""])
    else:
        assert [call["name"] for call in answer.invalid_tool_calls] == ["weather"]


def test_arguments_of_another_type_fail_in_the_tool(chat: Callable[..., ChatOpenAI]) -> None:
    answer = chat("simulated?bad_json=wrong_type").bind_tools([weather]).invoke("weather in Oslo")
    assert answer.tool_calls[0]["args"] == {"place": {"not": "a text"}}


def test_a_broken_call_that_was_answered_is_not_asked_again(chat: Callable[..., ChatOpenAI]) -> None:
    model = chat("simulated?bad_json=mismatched").bind_tools([weather])
    first = model.invoke("weather in Oslo")
    assert isinstance(first, AIMessage)
    result = ToolMessage("Error: the arguments are not JSON.", tool_call_id=first.invalid_tool_calls[0]["id"] or "")
    assert "tool failed" in model.invoke([HumanMessage("weather in Oslo"), first, result]).text


def test_calls_with_one_id_with_none_and_of_an_unknown_tool(chat: Callable[..., ChatOpenAI]) -> None:
    def calls(told: str) -> list[tuple[str, str | None]]:
        whole = chat(f"simulated?{told}").bind_tools([weather]).invoke("weather in Oslo and in Rome")
        return [(call["name"], call["id"]) for call in whole.tool_calls]

    assert len(set(calls("dup_ids=1"))) == 1
    assert calls("no_ids=1") == [("weather", None)] * 2
    assert calls("unknown_tool=1")[-1][0] == "no_such_tool"


def test_usage_can_be_missing_or_wrong(client: openai.OpenAI) -> None:
    assert all(chunk.usage is None for chunk in streamed(client, "no_usage=1"))
    wrong = list(streamed(client, "wrong_usage=1"))[-1].usage
    assert wrong is not None
    assert wrong.total_tokens != wrong.prompt_tokens + wrong.completion_tokens


def test_reasoning_comes_first_and_is_counted(client: openai.OpenAI) -> None:
    chunks = list(streamed(client, "reasoning=4"))
    thoughts = [getattr(chunk.choices[0].delta, "reasoning_content", None) for chunk in chunks if chunk.choices]
    assert thoughts[:6] == [None, "thought", " thought", " thought", " thought", None]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 4 + 18
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 4


# -- the bytes are cut strangely --------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["split_lines=1", "byte_by_byte=1", "empty_chunks=5", "cut_utf8=1"])
def test_strange_cuts_change_nothing_for_a_sound_client(client: openai.OpenAI, told: str) -> None:
    assert "".join(words(list(streamed(client, told)))) == WHOLE + " 🌾" * (told == "cut_utf8=1")


@pytest.mark.parametrize(("told", "fragments"), [("lump=1", 1), ("byte_by_byte=1", len('{"place":"Oslo"}'))])
def test_arguments_come_in_one_fragment_or_letter_by_letter(
    chat: Callable[..., ChatOpenAI], told: str, fragments: int
) -> None:
    chunks = list(chat(f"simulated?{told}").bind_tools([weather]).stream("weather in Oslo"))
    calls = [part for chunk in chunks if isinstance(chunk, AIMessageChunk) for part in chunk.tool_call_chunks]
    pieces = [part["args"] for part in calls if part["args"]]
    assert len(pieces) == fragments
    assert "".join(piece or "" for piece in pieces) == '{"place":"Oslo"}'


# -- the client leaves ------------------------------------------------------------------------------------------------


LEAVING = {
    "before the headers": ("headers_s=60", 0),
    "before the first token": ("first_token_s=60", 0),
    "in a stall before the first token": ("stall_after=0", 0),
    "in mid-token": ("tokens=1000&tokens_per_second=50", 3),
    "in a stall in mid-answer": ("stall_after=4", 4),
    "flat out": ("tokens=100000", 3),
}


@pytest.mark.parametrize("when", LEAVING)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_the_generation_at_once(simulator: Simulator, when: str, stream: bool) -> None:
    told, tokens = LEAVING[when]
    body = asked(stream=stream) | {"model": f"simulated?{told}"}

    async def ask() -> None:
        async with httpx.AsyncClient() as client:
            await client.post(f"{simulator.base_url}/chat/completions", json=body)

    asking = asyncio.create_task(ask())
    arrived = await asyncio.to_thread(
        simulator.wait_for, lambda: any(request.tokens_sent >= tokens for request in simulator.requests)
    )
    assert arrived
    asking.cancel()
    await asyncio.wait([asking])
    left = time.monotonic()
    assert await asyncio.to_thread(simulator.wait_closed, 1)
    assert await asyncio.to_thread(simulator.wait_for, lambda: simulator.requests[0].ended is not None)
    connection, request = simulator.connections[0], simulator.requests[0]
    assert connection.ended in {"client_closed", "client_reset"}
    assert connection.closed is not None
    assert connection.closed - left < 1
    assert not request.finished
    assert connection.tokens_sent == request.tokens_sent >= tokens


async def test_closing_an_openai_stream_closes_the_connection(
    async_client: openai.AsyncOpenAI, simulator: Simulator
) -> None:
    stream = await async_client.chat.completions.create(
        model="simulated?tokens=1000&tokens_per_second=50", messages=[{"role": "user", "content": "x"}], stream=True
    )
    seen = 0
    async for chunk in stream:
        seen += bool(chunk.choices[0].delta.content)
        if seen == 3:
            break
    await stream.close()
    assert await asyncio.to_thread(simulator.wait_closed, 1)
    assert 3 <= simulator.requests[0].tokens_sent < 1000


def test_hundreds_of_streams_at_once_all_come_whole(simulator: Simulator) -> None:
    async def one(client: httpx.AsyncClient) -> int:
        body = asked(stream=True) | {"model": "m?tokens=20&tokens_per_second=20"}
        return (await client.post("/chat/completions", json=body)).text.count("data: ")

    async def all_of_them() -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=simulator.base_url, limits=limits, timeout=30) as client:
            return await asyncio.gather(*(one(client) for _ in range(200)))

    assert asyncio.run(all_of_them()) == [23] * 200
    assert all(request.finished for request in simulator.requests)
