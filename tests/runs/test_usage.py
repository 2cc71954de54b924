"""Every model call is counted once: by the provider's numbers where there are any, by what came where it was cut."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast
from uuid import uuid4

import pytest
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import LLM, FakeListLLM
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from scripted import Scripted, Step, Turn, piece, say, usage, words

from app.events.event import Totals, Usage
from app.runs.failure import ProviderDropped
from app.runs.scope import Ending, Scope
from app.runs.usage import Meter

PROMPT: list[BaseMessage] = [HumanMessage("How is the weather?")]


def new_meter() -> Meter:
    return Meter(Scope("continue", 0))


def model(*turns: Turn, **fields: Any) -> Scripted:
    return Scripted(turns=list(turns), **fields)


def calling(meter: Meter) -> tuple[RunnableConfig, str]:
    run_id = uuid4()
    return {"callbacks": [meter], "run_id": run_id}, str(run_id)


async def stream(one: Any, meter: Meter, *, take: int | None = None) -> str:
    """Read the model's stream, or only its first chunks; returns the call's id."""
    config, run_id = calling(meter)
    chunks = cast("AsyncGenerator[Any, None]", one.astream(PROMPT, config))
    async with aclosing(chunks) as closing:
        count = 0
        async for _ in closing:
            count += 1
            if count == take:
                break
    return run_id


def account(meter: Meter, run_id: str) -> Usage:
    taken = meter.take(run_id, 7)
    assert taken is not None
    assert taken.ts == 7
    assert taken.total_tokens == taken.input_tokens + taken.output_tokens
    return taken


async def test_the_providers_numbers_are_used_where_they_exist() -> None:
    meter = new_meter()
    turn = [*words("It ", "rains"), say("", usage_metadata=usage(12, 34))]
    one = account(meter, await stream(model(turn), meter))
    assert (one.input_tokens, one.output_tokens, one.estimated) == (12, 34, False)
    total = meter.totals
    assert (total.input_tokens, total.output_tokens, total.total_tokens, total.estimated) == (12, 34, 46, False)


async def test_a_call_that_is_not_streamed_is_counted_too() -> None:
    meter = new_meter()
    config, run_id = calling(meter)
    turn = [say("It rains", usage_metadata=usage(3, 4))]
    await model(turn, disable_streaming=True).ainvoke(PROMPT, config)
    one = account(meter, run_id)
    assert (one.input_tokens, one.output_tokens, one.estimated) == (3, 4, False)


def test_a_call_on_a_thread_without_a_loop_is_counted_too() -> None:
    meter = new_meter()
    config, run_id = calling(meter)
    model([say("It rains", usage_metadata=usage(3, 4))]).invoke(PROMPT, config)
    assert account(meter, run_id).output_tokens == 4


async def test_without_the_providers_numbers_short_chunks_are_tokens() -> None:
    meter = new_meter()
    one = account(meter, await stream(model(words("It", " is", " rain", "ing", " cats", " and", " dogs", ".")), meter))
    assert (one.output_tokens, one.estimated) == (8, True)
    assert 1 <= one.input_tokens <= 20
    assert meter.totals.estimated


async def test_without_the_providers_numbers_long_chunks_are_measured() -> None:
    meter = new_meter()
    one = account(meter, await stream(model(words("x" * 400, "y" * 400)), meter))
    assert one.output_tokens == 200


async def test_an_answer_in_one_piece_without_numbers_is_measured() -> None:
    meter = new_meter()
    config, run_id = calling(meter)
    await model(words("x" * 400), disable_streaming=True).ainvoke(PROMPT, config)
    one = account(meter, run_id)
    assert (one.output_tokens, one.estimated) == (100, True)


async def test_arguments_of_tool_calls_cost_tokens() -> None:
    meter = new_meter()
    turn: list[Step] = [say("", piece("f", "", "c", 0)), *(say("", piece(args="abc", index=0)) for _ in range(10))]
    assert account(meter, await stream(model(turn), meter)).output_tokens == 10


async def test_blocks_and_reasoning_cost_tokens() -> None:
    meter = new_meter()
    turn: list[Step] = [
        say([{"type": "thinking", "thinking": "hm", "index": 0}]),
        say([{"type": "text", "text": "so", "index": 1}]),
        say("", additional_kwargs={"reasoning_content": "well"}),
    ]
    assert account(meter, await stream(model(turn), meter)).output_tokens == 3


async def test_empty_chunks_are_no_tokens() -> None:
    meter = new_meter()
    assert account(meter, await stream(model(words("", "a", "", "b", "")), meter)).output_tokens == 2


# Calls that were cut


async def test_a_stream_that_was_left_is_counted_as_far_as_it_came() -> None:
    meter = new_meter()
    turn = [*words(*"abcdefgh"), say("", usage_metadata=usage(1, 1000))]
    await stream(model(turn), meter, take=3)
    (one,) = meter.take_rest(9, "cancelled")
    assert (one.output_tokens, one.estimated, one.ts) == (3, True, 9)
    assert meter.take_rest(9, "cancelled") == []


async def test_a_cancelled_call_is_counted_though_no_callback_tells_of_the_cancel() -> None:
    meter = new_meter()
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(stream(model([*words("a", "b"), hang, say("c")]), meter))
    async with asyncio.timeout(10):
        await reached.wait()
        task.cancel()
        await asyncio.wait([task])
    assert [one.output_tokens for one in meter.take_rest(0, "cancelled")] == [2]


async def test_a_call_that_breaks_half_way_is_counted_as_far_as_it_came() -> None:
    meter = new_meter()
    with pytest.raises(RuntimeError):
        await stream(model([*words("a", "b"), RuntimeError("broken")]), meter)
    assert [one.output_tokens for one in meter.take_rest(0, "cancelled")] == [2]


async def test_a_call_that_was_refused_is_not_counted() -> None:
    meter = new_meter()
    with pytest.raises(RuntimeError):
        await stream(model([RuntimeError("refused")]), meter)
    assert meter.take_rest(0, "cancelled") == []
    assert meter.totals == Totals()


# Calls that go on with an answer that was paused


@pytest.mark.parametrize(
    ("turn", "provider", "counted"),
    [
        (words("It ra", "ins", " cats"), "scripted", (2, True)),
        ([*words("It ra", "ins"), say("", usage_metadata=usage(5, 1))], "scripted", (1, False)),
        (words("It rains", ""), "scripted", (0, True)),
        ([*words("It ra", "ins"), say("", response_metadata={"finish_reason": "stop"})], "openai", (1, True)),
    ],
    ids=["estimated", "told", "nothing-more", "openai"],
)
async def test_what_a_continued_call_repeats_is_not_counted_again(
    turn: list[Step], provider: str, counted: tuple[int, bool]
) -> None:
    meter, call = new_meter(), uuid4()

    async def goes_on() -> None:
        meter.skip(call)

    async for _ in model([goes_on, *turn], provider=provider).astream(PROMPT, {"callbacks": [meter], "run_id": call}):
        pass
    one = account(meter, str(call))
    assert (one.output_tokens, one.estimated) == counted


async def test_a_continued_call_of_the_openai_wire_needs_a_finish_reason_too() -> None:
    meter, call = new_meter(), uuid4()

    async def goes_on() -> None:
        meter.skip(call)

    with pytest.raises(ProviderDropped):
        async for _ in model([goes_on, *words("It ra")], provider="openai").astream(
            PROMPT, {"callbacks": [meter], "run_id": call}
        ):
            pass


async def test_a_call_that_was_cut_by_a_pause_stops_at_its_next_chunk_though_the_run_goes_on() -> None:
    meter = new_meter()
    chunks = model(words("a", "b", "c")).astream(PROMPT, {"callbacks": [meter]})
    await anext(chunks)
    assert [one.output_tokens for one in meter.take_rest(0, "cancelled")] == [1]
    with pytest.raises(asyncio.CancelledError):
        await anext(chunks)
    assert meter.take_rest(0, "cancelled") == []


# The account


async def test_a_calls_account_is_given_once() -> None:
    meter = new_meter()
    run_id = await stream(model(words("a")), meter)
    assert meter.take(run_id, 0) is not None
    assert meter.take(run_id, 0) is None
    assert meter.take(str(uuid4()), 0) is None
    assert meter.take_rest(0, "cancelled") == []


async def test_calls_side_by_side_are_counted_apart_and_summed() -> None:
    meter = new_meter()
    both = asyncio.Barrier(2)
    turns: list[Turn] = [[say("a"), both.wait, say("b")], [say("c"), both.wait, say("", usage_metadata=usage(10, 20))]]
    async with asyncio.timeout(10):
        first, second = await asyncio.gather(*(stream(model(turn), meter) for turn in turns))
    one, two = account(meter, first), account(meter, second)
    assert (one.output_tokens, two.output_tokens) == (2, 20)
    assert meter.totals.output_tokens == 22
    assert meter.totals.total_tokens == one.total_tokens + two.total_tokens
    assert meter.totals.estimated


async def test_one_estimate_marks_the_whole() -> None:
    meter = new_meter()
    exact = [say("a", usage_metadata=usage(1, 1))]
    account(meter, await stream(model(words("a")), meter))
    account(meter, await stream(model(exact), meter))
    assert meter.totals.estimated


async def test_a_text_completion_is_counted_too() -> None:
    meter = new_meter()
    config, run_id = calling(meter)
    await FakeListLLM(responses=["x" * 400]).ainvoke("How is the weather?", config)
    one = account(meter, run_id)
    assert one.output_tokens == 100
    assert one.input_tokens > 0


class Completing(LLM):
    """A text-completion model that streams."""

    @property
    def _llm_type(self) -> str:
        return "completing"

    def _call(self, prompt: str, *args: Any, **kwargs: Any) -> str:
        return "abc"

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        for letter in "abc":
            chunk = GenerationChunk(text=letter)
            if run_manager is not None:
                await run_manager.on_llm_new_token(letter, chunk=chunk)
            yield chunk


async def test_a_streamed_text_completion_is_counted_too() -> None:
    meter = new_meter()
    config, run_id = calling(meter)
    async for _ in Completing().astream("hi", config):
        pass
    assert account(meter, run_id).output_tokens == 3


def test_an_answer_without_any_generation_is_an_account_of_the_question() -> None:
    meter, run_id = new_meter(), uuid4()
    meter.on_chat_model_start({}, [PROMPT], run_id=run_id)
    meter.on_llm_end(LLMResult(generations=[]), run_id=run_id)
    assert account(meter, str(run_id)).output_tokens == 0


def test_callbacks_of_calls_it_never_saw_begin_are_no_matter() -> None:
    meter = new_meter()
    meter.on_llm_new_token("a", run_id=uuid4())
    meter.on_llm_end(LLMResult(generations=[]), run_id=uuid4())
    meter.on_llm_error(ValueError(), run_id=uuid4())
    meter.on_stream_event({}, run_id=uuid4())
    meter.skip(uuid4())
    assert meter.take_rest(0, "cancelled") == []


# Streams that end without a reason


async def test_a_stream_of_the_openai_wire_without_a_finish_reason_is_a_broken_one() -> None:
    meter = new_meter()
    with pytest.raises(ProviderDropped):
        await stream(model(words("It ra"), provider="openai"), meter)
    assert [one.output_tokens for one in meter.take_rest(0, "cancelled")] == [1]
    assert len(meter.failed) == 1


@pytest.mark.parametrize(
    ("turn", "provider"),
    [
        ([*words("It rains"), say("", response_metadata={"finish_reason": "stop"})], "openai"),
        (words("It rains"), "anthropic"),
    ],
)
async def test_a_stream_that_says_why_it_ends_or_need_not_is_whole(turn: list[Step], provider: str) -> None:
    meter = new_meter()
    account(meter, await stream(model(turn, provider=provider), meter))
    assert meter.failed == []


async def test_an_answer_in_one_piece_needs_no_finish_reason() -> None:
    meter = new_meter()
    config, run_id = calling(meter)
    await model(words("It rains"), provider="openai", disable_streaming=True).ainvoke(PROMPT, config)
    account(meter, run_id)


async def test_whether_the_answer_had_begun_is_known_of_the_call_that_failed() -> None:
    meter = new_meter()
    await stream(model(words("fine")), meter)
    with pytest.raises(RuntimeError):
        await stream(model([RuntimeError("refused")]), meter)
    assert meter.streamed is False
    with pytest.raises(RuntimeError):
        await stream(model([say("a"), RuntimeError("broken")]), meter)
    assert meter.streamed is True


# Cancels and tools


async def test_after_an_ending_no_call_begins_and_no_token_passes() -> None:
    scope = Scope("continue", 0)
    meter = Meter(scope)

    async def end() -> None:
        scope.end(Ending("cancelled", "requested"))

    chunks = model([*words("a"), end, *words("b", "c")]).astream(PROMPT, {"callbacks": [meter]})
    assert (await anext(chunks)).text == "a"
    with pytest.raises(asyncio.CancelledError):
        await anext(chunks)
    with pytest.raises(asyncio.CancelledError):
        await model(words("a")).ainvoke(PROMPT, {"callbacks": [meter]})
    with pytest.raises(asyncio.CancelledError):
        await FakeListLLM(responses=["a"]).ainvoke("hi", {"callbacks": [meter]})
    with pytest.raises(asyncio.CancelledError):
        await echo.ainvoke({"text": "a"}, {"callbacks": [meter]})
    rest = meter.take_rest(0, "cancelled")
    assert [one.output_tokens for one in rest] == [2]  # the token that heard of the end was paid for


@tool
async def echo(text: str) -> str:
    """Say it again."""
    return text


async def test_a_tools_run_is_known_by_the_call_it_answers() -> None:
    meter = new_meter()
    config, run_id = calling(meter)
    await echo.ainvoke({"type": "tool_call", "name": "echo", "id": "call-1", "args": {"text": "a"}}, config)
    assert meter.call_ids == {run_id: "call-1"}
    config, other = calling(meter)
    await echo.ainvoke({"text": "a"}, config)
    assert meter.call_ids == {run_id: "call-1", other: ""}
