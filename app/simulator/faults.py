"""What the simulated provider can be told to do wrong, and how fast it is to talk.

Told by the model's name (``simulated?stall_after=5&tokens_per_second=200``), by the header ``x-simulate`` or by a
directive in the last user message (``[[stall_after=5]]``). Pairs are separated by ``&`` or spaces, values are
percent-encoded, flags are ``1``. A later source overrides an earlier one, in that order.

A turn with tools makes several model calls, all with the same last user message: a directive there holds for the
first call, ``call=2`` for the second, ``call=all`` for each. In the name and the header it holds for each unless
``call=`` says otherwise. An unknown directive or a bad value is refused with HTTP 400.

``FIELDS`` is the list of what can be told. Pure: text in, ``Directives`` out; acts in, disturbed acts out.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import unquote

import orjson

from app.simulator import prose
from app.simulator.request import Message, Refused
from app.simulator.script import Call, Reply, call_number, turn
from app.simulator.wire import FRAGMENT, STREAM, Act, Frames, Pause, Reset, Send, Stall, Start, frame, refusal

BAD_JSON = ("trailing_comma", "mismatched", "cut_string", "wrong_type", "empty")
LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Directives:
    """One field for everything that can be told; the defaults disturb nothing.

    ``…_after``: so many tokens go out first. Seconds end in ``_s``.
    """

    # pace
    tokens_per_second: float | None = None  # 0: flat out
    first_token_s: float | None = None  # silence before the first chunk
    headers_s: float = 0.0  # silence before the response's headers
    burst: bool = False  # flat out
    # content
    say: str | None = None  # answer exactly this
    tokens: int | None = None  # answer with exactly so many tokens
    paragraphs: int | None = None  # in so many paragraphs; without ``tokens``, of four sentences each
    overlap: int = 0  # an answer that goes on repeats so many tokens of what was there, as real models do
    reasoning: int = 0  # so many reasoning tokens first
    # the response fails
    status: int | None = None  # an HTTP error instead of an answer
    code: str | None = None  # its error code, ``insufficient_quota`` for instance
    retry_after: float | None = None  # its Retry-After, in seconds
    hang_up: bool = False  # the connection is closed instead of a response
    stall_after: int | None = None  # then silence until the client leaves
    drop_after: int | None = None  # then a TCP reset
    close_after: int | None = None  # then a clean end, with no [DONE]
    error_after: int | None = None  # then an error frame
    fail_times: int | None = None  # only so many attempts at one conversation fail, the next one is sound
    # the content is wrong
    bad_json: str | None = None  # one of BAD_JSON: the arguments of tool calls, and documents
    bad_call: int | None = None  # of tool calls, only those of this one, from 1
    twice_named: bool = False  # the name of each tool that is called is said twice
    unknown_tool: bool = False  # also call a tool that was not offered
    dup_ids: bool = False  # all tool calls have one id
    no_ids: bool = False  # tool calls have no id
    no_usage: bool = False
    wrong_usage: bool = False
    # the bytes are cut strangely
    lump: bool = False  # arguments in a single fragment
    byte_by_byte: bool = False  # one byte a write, one character of arguments a fragment
    cut_utf8: int | None = None  # a pause inside the first character of several bytes from this token on
    split_lines: bool = False  # a pause inside each line
    empty_chunks: int = 0  # so many chunks that say nothing, before the first token

    @property
    def fragment(self) -> int:
        """How many characters of tool arguments go into one chunk."""
        return 1 if self.byte_by_byte else 1_000_000_000 if self.lump else FRAGMENT

    @property
    def cuts(self) -> bool:
        """Whether any response of these directives is disturbed on its way."""
        return bool(
            self.byte_by_byte
            or self.split_lines
            or self.cut_utf8 is not None
            or self.empty_chunks
            or any(at is not None for at in (self.stall_after, self.drop_after, self.close_after, self.error_after))
        )

    def sound(self) -> "Directives":
        """Without what makes a response fail; pace and content stay."""
        return replace(
            self,
            status=None,
            hang_up=False,
            stall_after=None,
            drop_after=None,
            close_after=None,
            error_after=None,
            bad_json=None,
        )


FIELDS = tuple(field.name for field in fields(Directives))
_ALIASES = {"error": "status", "stall": "stall_after"}


# -- reading ----------------------------------------------------------------------------------------------------------

_PAIR = r"[A-Za-z_]\w{0,40}=[^\s&\]]{0,4000}"
_INLINE = re.compile(rf"\[\[\s*({_PAIR}(?:[\s&]+{_PAIR}){{0,40}})\s*\]\]")


def model_name(model: str) -> tuple[str, str]:
    """The model's plain name and the directives behind its question mark."""
    name, _, told = model.partition("?")
    return name, told


def without_directives(text: str) -> str:
    """The text as the model reads it."""
    return _INLINE.sub("", text).strip() if "[[" in text else text


def read(model: str, header: str, messages: Sequence[Message]) -> Directives:
    """What this model call was told, by all three ways; raises ``Refused``."""
    call = call_number(messages)
    last, _ = turn(messages)
    told: dict[str, Any] = {}
    for text, default in [
        (model_name(model)[1], "all"),
        (header, "all"),
        *((inline, "1") for inline in _INLINE.findall(last)),
    ]:
        pairs = dict(_pairs(text))
        if _addressed(pairs.pop("call", default), call):
            told |= {key: _READERS[key](key, value) for key, value in pairs.items()}
    return Directives(**told)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for pair in re.split(r"[&\s]+", text.strip()):
        if not pair:
            continue
        key, _, value = pair.partition("=")
        name = _ALIASES.get(key, key)
        if name not in FIELDS and name != "call":
            raise Refused(f"Unknown directive {key!r}; known are call, {', '.join(FIELDS)}.", param="model")
        if not value:
            raise Refused(f"The directive {key!r} needs a value: {key}=….", param="model")
        yield name, unquote(value)


def _addressed(call: str, number: int) -> bool:
    if call == "all":
        return True
    if not call.isdecimal() or int(call) < 1:
        raise Refused(f"'call' is the number of the model call, from 1, or \"all\"; not {call!r}.", param="model")
    return int(call) == number


def _flag(key: str, value: str) -> bool:
    if value not in {"0", "1"}:
        raise _bad(key, value, "0 or 1")
    return value == "1"


def _whole(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) > prose.LONGEST:
        raise _bad(key, value, f"a whole number from 0 to {prose.LONGEST}")
    return int(value)


def _decimal(key: str, value: str) -> float:
    if not re.fullmatch(r"\d{1,9}(?:\.\d{1,9})?", value) or (key.endswith("_s") and float(value) > LONGEST_WAIT_S):
        raise _bad(key, value, f"a number, not negative{', up to 3600' if key.endswith('_s') else ''}")
    return float(value)


def _status(key: str, value: str) -> int:
    if not re.fullmatch(r"[45]\d\d", value):
        raise _bad(key, value, "an HTTP status from 400 to 599")
    return int(value)


def _kind(key: str, value: str) -> str:
    if value not in BAD_JSON:
        raise _bad(key, value, f"one of {', '.join(BAD_JSON)}")
    return value


def _text(_key: str, value: str) -> str:
    return value


def _bad(key: str, value: str, wanted: str) -> Refused:
    return Refused(f"The directive '{key}' must be {wanted}; not {value!r}.", param="model")


_READERS: dict[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(("burst", "hang_up", "unknown_tool", "dup_ids", "no_ids", "no_usage", "wrong_usage"), _flag),
    **dict.fromkeys(("twice_named", "lump", "byte_by_byte", "split_lines"), _flag),
    **dict.fromkeys(
        ("tokens", "paragraphs", "overlap", "reasoning", "bad_call", "fail_times", "cut_utf8", "empty_chunks"), _whole
    ),
    **dict.fromkeys(("stall_after", "drop_after", "close_after", "error_after"), _whole),
    **dict.fromkeys(("tokens_per_second", "first_token_s", "headers_s", "retry_after"), _decimal),
    "status": _status,
    "bad_json": _kind,
    "say": _text,
    "code": _text,
}


# -- doing ------------------------------------------------------------------------------------------------------------


def reshape(reply: Reply, told: Directives) -> Reply:
    """The reply with another content: other words, broken arguments, wrong ids."""
    if told.say is not None:
        reply = Reply(text=told.say)
    elif told.tokens is not None:
        reply = Reply(text=prose.exactly(told.tokens, told.paragraphs or 1))
    elif told.paragraphs is not None:
        reply = Reply(text=prose.paragraphs(told.paragraphs))
    if told.cut_utf8 is not None and reply.text.isascii() and not reply.calls:
        reply = Reply(text=f"{reply.text} 🌾")  # something to cut
    if told.bad_json and reply.document:
        reply = Reply(text=_broken(reply.text, told.bad_json))
    calls = list(reply.calls)
    if told.unknown_tool:
        calls.append(Call(f"call_{'0' * 24}", "no_such_tool", '{"reason":"told to"}'))
    if told.bad_json:
        calls = [
            Call(call.id, call.name, _broken(call.arguments, told.bad_json)) if told.bad_call in (None, at) else call
            for at, call in enumerate(calls, start=1)
        ]
    if told.twice_named:
        calls = [Call(call.id, 2 * call.name, call.arguments) for call in calls]
    if told.dup_ids or told.no_ids:
        calls = [Call(None if told.no_ids else calls[0].id, call.name, call.arguments) for call in calls]
    return Reply(text="" if calls else reply.text, calls=tuple(calls))


def _broken(arguments: str, kind: str) -> str:
    match kind:
        case "trailing_comma":
            return f"{arguments[:-1]},}}"
        case "mismatched":
            return f"{arguments[:-1]}]"
        case "cut_string":
            end = arguments.rfind('"')
            return arguments[: max(end - 1, 1)]
        case "wrong_type":
            values: dict[str, Any] = orjson.loads(arguments)
            return orjson.dumps({key: _other_type(value) for key, value in values.items()}).decode()
    return ""


def _other_type(value: Any) -> Any:
    return {"not": "a text"} if isinstance(value, str) else "not a number"


def wrong(usage: dict[str, Any]) -> dict[str, Any]:
    """A usage that cannot be true: no prompt, too many tokens, and a total that is not their sum."""
    return {**usage, "prompt_tokens": 0, "completion_tokens": 10 * usage["completion_tokens"] + 1000, "total_tokens": 1}


def error_status(told: Directives, status: int) -> Iterator[Act]:
    """The HTTP error that was asked for."""
    kind, code = ("rate_limit_error", "rate_limit_exceeded") if status == 429 else ("server_error", None)
    error = Refused(
        f"Simulated: the provider was told to answer {status}.", status=status, kind=kind, code=told.code or code
    )
    return refusal(error, retry_after=told.retry_after)


def disturb(acts: Iterable[Act], told: Directives, frames: Frames) -> Iterator[Act]:
    """The acts of a response, cut and broken off as told."""
    acts = _broken_off(_padded(acts, told.empty_chunks, frames), told)
    if told.cut_utf8 is not None:
        acts = _cut_inside_character(acts, told.cut_utf8)
    if told.split_lines:
        acts = _cut_lines(acts)
    return _cut_bytes(acts) if told.byte_by_byte else iter(acts)


def _padded(acts: Iterable[Act], empty: int, frames: Frames) -> Iterator[Act]:
    """Empty deltas, empty texts and chunks without a choice, by turns, before the first token of a stream."""
    kinds = (frames.choice({}), frames.choice({"content": ""}), frames.nothing())
    due = empty
    for act in acts:
        if due and isinstance(act, Send) and act.data and act.tokens:
            yield from (Send(kinds[at % 3]) for at in range(due))
            due = 0
        yield act


def _broken_off(acts: Iterable[Act], told: Directives) -> Iterator[Act]:
    endings = [
        (told.error_after, _error_frame),
        (told.close_after, _clean_end),
        (told.drop_after, lambda _: iter([Reset()])),
        (told.stall_after, lambda _: iter([Stall()])),
    ]
    due = [(at, ending) for at, ending in endings if at is not None]
    after, ending = min(due, key=lambda pair: pair[0], default=(None, _clean_end))
    sent, started = 0, False
    for act in acts:
        begins = isinstance(act, Start)
        if sent == after and (isinstance(act, Send) or (begins and act != STREAM)):
            yield from ending(started)
            return
        started = started or begins
        sent += act.tokens if isinstance(act, Send) else 0
        yield act


def _error_frame(started: bool) -> Iterator[Act]:
    """In mid-stream a frame; an answer that has not begun is an HTTP error instead."""
    error = Refused(
        "Simulated: the provider failed in mid-answer.", status=500, kind="server_error", code="server_error"
    )
    return iter([Send(frame(error.body()))]) if started else refusal(error)


def _clean_end(started: bool) -> Iterator[Act]:
    """The body ends where it stands; an answer in one piece ends in the middle of its JSON."""
    if not started:
        yield Start(200, ((b"content-type", b"application/json"),))
        yield Send(b'{"id":"chatcmpl-')


def _cut_inside_character(acts: Iterable[Act], after: int) -> Iterator[Act]:
    sent, done = 0, False
    for act in acts:
        if isinstance(act, Send):
            cut = next((at for at, byte in enumerate(act.data) if byte >= 0x80), None)
            if not done and sent >= after and cut is not None:
                done = True
                yield from (Send(act.data[: cut + 1]), Pause(0.05), Send(act.data[cut + 1 :], act.tokens))
                continue
            sent += act.tokens
        yield act


def _cut_lines(acts: Iterable[Act]) -> Iterator[Act]:
    for act in acts:
        if isinstance(act, Send) and len(act.data) > 1:
            middle = len(act.data) // 2
            yield from (Send(act.data[:middle]), Pause(0.001), Send(act.data[middle:], act.tokens))
        else:
            yield act


def _cut_bytes(acts: Iterable[Act]) -> Iterator[Act]:
    for act in acts:
        if isinstance(act, Send) and act.data:
            for at in range(len(act.data) - 1):
                yield Send(act.data[at : at + 1])
                yield Pause(0.0)
            yield Send(act.data[-1:], act.tokens)
        else:
            yield act
