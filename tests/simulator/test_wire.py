import json
from typing import Any

import pytest

from app.simulator import wire
from app.simulator.request import parse
from app.simulator.script import Call, Reply
from app.simulator.wire import Completion, Frames, Send, Start, complete


def request(**fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello, world"}], **fields}
    return parse(json.dumps(body).encode())


def frames(*, include_usage: bool = False) -> Frames:
    return Frames("chatcmpl-1", 7, "simulated", include_usage=include_usage)


def streamed(completion: Completion, *, usage: bool = False) -> list[Any]:
    """What a client decodes: the chunks, then "[DONE]"."""
    acts = wire.streamed(completion, frames(include_usage=usage), completion.usage if usage else None)
    body = b"".join(act.data for act in acts if isinstance(act, Send))
    assert body.endswith(b"\n\n")
    lines = body.decode().removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def deltas(chunks: list[Any]) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]


def test_a_text_is_a_role_chunk_a_chunk_for_each_token_and_a_last_one() -> None:
    chunks = streamed(complete(Reply('Say "hi"\n✓'), request()))
    assert deltas(chunks) == [
        {"role": "assistant", "content": ""},
        *({"content": piece} for piece in ("Say", ' "', "hi", '"', "\n", "✓")),
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 7 + ["stop"]
    assert {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        ("chatcmpl-1", "chat.completion.chunk", 7, "simulated")
    }
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_comes_last_without_a_choice_and_is_null_before() -> None:
    *others, last = streamed(complete(Reply("one two"), request()), usage=True)
    assert [chunk["usage"] for chunk in others] == [None] * 4
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 2,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_parallel_calls_start_one_after_another_and_their_arguments_interleave() -> None:
    calls = (Call("a", "f", '{"x":"12345678"}'), Call("b", "g", "{}"))
    chunks = streamed(complete(Reply(calls=calls), request()))
    first, *pieces, last = deltas(chunks)
    assert first == {"role": "assistant", "content": None}
    assert last == {}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    fragments = [piece["tool_calls"][0] for piece in pieces]
    assert fragments[:2] == [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    assert fragments[2:] == [
        {"index": 0, "function": {"arguments": '{"x":'}},
        {"index": 1, "function": {"arguments": "{}"}},
        {"index": 0, "function": {"arguments": '"1234'}},
        {"index": 0, "function": {"arguments": '5678"'}},
        {"index": 0, "function": {"arguments": "}"}},
    ]


def test_what_is_counted_is_what_is_streamed() -> None:
    completion = complete(Reply("", (Call("a", "f", '{"x":"12345678"}'),)), request(), reasoning=3)
    acts = list(wire.streamed(completion, frames(), None))
    assert sum(act.tokens for act in acts if isinstance(act, Send)) == completion.tokens == 3 + 4
    assert completion.usage["completion_tokens_details"] == {"reasoning_tokens": 3}


def test_reasoning_comes_first() -> None:
    kinds = [set(delta) - {"role"} for delta in deltas(streamed(complete(Reply("a b"), request(), reasoning=2)))]
    assert kinds == [{"content"}, {"reasoning_content"}, {"reasoning_content"}, {"content"}, {"content"}, set()]


@pytest.mark.parametrize(
    ("fields", "text", "reason"),
    [
        ({"max_tokens": 2}, "one two", "length"),
        ({"max_completion_tokens": 1, "max_tokens": 2}, "one", "length"),
        ({"max_tokens": 5}, "one two three four five", "stop"),
        ({"stop": " three"}, "one two", "stop"),
        ({"stop": ["five", "two"]}, "one ", "stop"),
        ({"stop": ["", "none"]}, "one two three four five", "stop"),
    ],
)
def test_bounds_and_stop_texts_end_the_answer(fields: dict[str, Any], text: str, reason: str) -> None:
    completion = complete(Reply("one two three four five"), request(**fields))
    assert ("".join(completion.text), completion.finish_reason) == (text, reason)


def test_the_bound_counts_reasoning_and_arguments_too() -> None:
    completion = complete(Reply("", (Call("a", "f", '{"x":"12345678"}'),)), request(max_tokens=4), reasoning=2)
    assert completion.tokens == 4
    assert completion.finish_reason == "length"


def whole(completion: Completion) -> Any:
    acts = list(wire.whole(completion, frames(), completion.usage))
    start, body = acts[-2:]
    assert isinstance(start, Start)
    assert isinstance(body, Send)
    assert start.status == 200
    assert dict(start.headers)[b"content-length"] == str(len(body.data)).encode()
    assert sum(act.tokens for act in acts if isinstance(act, Send)) == completion.tokens
    return json.loads(body.data)


def test_the_answer_in_one_piece_says_the_same() -> None:
    body = whole(complete(Reply("Hello there"), request()))
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["completion_tokens"] == 2


def test_calls_in_one_piece_have_no_content() -> None:
    message = whole(complete(Reply(calls=(Call("a", "f", '{"x": 1}'),)), request()))["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    ]
