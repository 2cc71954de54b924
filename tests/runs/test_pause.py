"""A pause as a run sees it: where it may be broken off, what is kept, and how a call goes on with what was said."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from langchain_core.runnables import RunnableLambda
from scripted import piece, say

from app.eventlog.memory import MemoryLog
from app.events.event import Event, MessageFinished, RunPaused, Token, Usage
from app.events.grammar import Grammar
from app.events.request import RunRequest
from app.runs import pause
from app.runs.agent import Agent
from app.runs.run import Run
from app.runs.scope import Ending, Scope

ROOT = "root"
AGENT = Agent("echo", RunnableLambda(lambda value: value), model="m", served_model=True)


@pytest.fixture(autouse=True)
async def loop() -> None:
    """A run belongs to a loop."""


def new_run(**request: Any) -> Run:
    return Run(
        str(UUID(int=7)), agent=AGENT, request=RunRequest(**request), user="ann", idempotency_key="k",
        log=MemoryLog(), scope=Scope("cancel", 0, 60), grammar=Grammar(), pausable=True,
    )  # fmt: skip


def begun(**request: Any) -> Run:
    run = new_run(**request)
    run.start()
    run.begin()
    run.feed(raw("on_chain_start", ROOT))
    return run


def raw(event: str, run_id: str, *, node: str = "", **data: Any) -> dict[str, Any]:
    metadata = {"langgraph_node": node, "langgraph_checkpoint_ns": f"{node}:1"} if node else {}
    return {
        "event": event, "run_id": run_id, "name": node or "x", "tags": ["graph:step:1"], "metadata": metadata,
        "parent_ids": [], "data": data,
    }  # fmt: skip


class Call:
    """A model call, whose callbacks are heard at once and whose events come when the test lets them."""

    def __init__(self, run: Run, node: str = "") -> None:
        self.run, self.id, self.node = run, uuid4(), node
        run.meter.on_chat_model_start({}, [[]], run_id=self.id)

    def told(self) -> "Call":
        self.run.feed(raw("on_chat_model_start", str(self.id), node=self.node))
        return self

    def says(self, chunk: AIMessageChunk) -> "Call":
        self.run.meter.on_llm_new_token(str(chunk.content), chunk=ChatGenerationChunk(message=chunk), run_id=self.id)
        self.run.feed(raw("on_chat_model_stream", str(self.id), chunk=chunk))
        return self

    def ends(self) -> "Call":
        self.run.meter.on_llm_end(LLMResult(generations=[[ChatGeneration(message=AIMessage("x"))]]), run_id=self.id)
        return self


def events(run: Run) -> list[Event]:
    log = MemoryLog.load(run.dump())
    return [entry.event for entry in log.read(0, 1000)]


def texts(run: Run) -> list[str]:
    return [event.text for event in events(run) if isinstance(event, Token)]


async def test_a_call_can_be_broken_off_in_mid_answer() -> None:
    run = begun()
    Call(run).told().says(say("a"))
    run.want_pause("requested")
    assert run.scope.pausing == "requested"


async def test_a_call_that_is_over_cannot_be_broken_off_though_its_events_are_still_on_their_way() -> None:
    run = begun()
    call = Call(run, "one").told().says(say("a")).ends()
    run.want_pause("requested")
    assert run.scope.pausing is None
    run.feed(raw("on_chat_model_end", str(call.id), node="one", output=AIMessage("a")))
    run.feed(raw("on_chain_end", "node", node="one"))
    Call(run, "two").told()
    assert run.scope.pausing == "requested"


async def test_a_node_that_has_done_something_already_is_not_made_anew() -> None:
    run = begun()
    call = Call(run, "one").told().ends()
    run.want_pause("requested")
    run.feed(raw("on_chat_model_end", str(call.id), node="one", output=AIMessage("a")))
    Call(run, "one").told()
    Call(run, "two").told()
    assert run.scope.pausing is None


async def test_two_calls_of_one_node_are_not_mixed_up() -> None:
    run = begun()
    Call(run, "one").told()
    Call(run, "one").told()
    run.want_pause("requested")
    assert run.scope.pausing is None


async def test_what_the_reader_has_not_been_told_of_is_not_broken_off() -> None:
    for begins in ("on_chat_model_start", "on_tool_start"):
        run = begun()
        Call(run, "one").told().says(say("a"))
        behind = getattr(run.meter, begins)  # in another branch
        behind({}, [[]], run_id=uuid4())
        run.want_pause("requested")
        assert run.scope.pausing is None


async def test_a_call_that_has_failed_and_is_made_anew_can_be_broken_off() -> None:
    run = begun()
    failed = Call(run, "one").told().says(say("a"))
    run.meter.on_llm_error(ValueError(), run_id=failed.id)
    Call(run, "one").told().says(say("b"))
    run.want_pause("requested")
    assert run.scope.pausing == "requested"


async def test_a_call_that_ends_after_the_pause_was_decided_does_not_let_its_graph_go_on() -> None:
    run = begun()
    call = Call(run, "one").told().says(say("a"))
    run.want_pause("requested")
    with pytest.raises(asyncio.CancelledError):
        call.ends()
    run.stop()
    assert run.meter.totals.output_tokens == 1


async def test_a_call_that_asks_for_tools_is_let_finish_and_so_are_its_tools() -> None:
    run = begun()
    call = Call(run, "ask").told().says(say("", piece("t", "{}", "c1", 0)))
    run.want_pause("requested")
    assert run.scope.pausing is None
    call.ends()
    message = AIMessage("", tool_calls=[{"name": "t", "args": {}, "id": "c1", "type": "tool_call"}])
    run.feed(raw("on_chat_model_end", str(call.id), node="ask", output=message))
    run.feed(raw("on_chain_end", "node", node="ask"))
    run.feed(raw("on_tool_start", "tool", node="t", input={}))
    Call(run, "other").told()  # another branch's
    assert run.scope.pausing is None
    run.feed(raw("on_tool_end", "tool", node="t", output="ok"))
    run.feed(raw("on_chain_end", "node", node="t"))
    assert run.scope.pausing == "requested"


async def test_what_comes_after_the_paragraph_is_not_told_and_not_kept() -> None:
    run = begun(pause_after="paragraph")
    call = Call(run).told()
    call.says(say("One.\n"))
    chunk = say("\nTwo.")
    run.meter.on_llm_new_token("\nTwo.", chunk=ChatGenerationChunk(message=chunk), run_id=call.id)
    run.feed(raw("on_chat_model_stream", str(call.id), chunk=chunk))
    assert run.scope.pausing == "paragraph"
    run.feed(raw("on_chat_model_stream", str(call.id), chunk=say("Three.")))
    assert texts(run) == ["One.\n", "\n"]


def paused(**request: Any) -> tuple[Run, Call]:
    run = begun(**request)
    call = Call(run).told().says(say("so ")).says(say("far"))
    run.want_pause("requested")
    run.stop()
    run.pause(5)
    return run, call


async def test_a_pause_accounts_for_the_call_that_was_cut_and_stops_the_clock() -> None:
    run, _ = paused()
    told = events(run)
    assert isinstance(told[-1], RunPaused)
    assert isinstance(told[-2], Usage)
    assert told[-1].usage.output_tokens == 2
    run.scope.unbind()
    assert run.scope.left_s is not None
    assert 0 < run.scope.left_s <= 60


async def test_the_call_that_is_made_anew_goes_on_in_the_same_message() -> None:
    run, _ = paused()
    run.scope.resume()
    run.resume()
    call = Call(run)
    said = run.take(call.id)
    assert said is not None
    assert said[0] == "so far"
    call.told().says(say("so far")).says(say(", so good"))
    assert texts(run) == ["so ", "far", ", so good"]
    assert run.take(uuid4()) is None


async def test_a_call_that_came_to_its_end_in_the_very_moment_of_the_pause_is_told_to_its_end() -> None:
    run, _ = paused()
    run.scope.resume()
    run.resume()
    message_id = next(event.message_id for event in events(run) if isinstance(event, Token))
    whole = {"messages": [AIMessage("so far, so good", id=message_id)]}
    run.feed(raw("on_chain_end", ROOT, output=whole))
    assert "".join(texts(run)) == "so far, so good"
    assert isinstance(events(run)[-1], MessageFinished)


async def test_cancelling_a_paused_run_closes_what_it_held() -> None:
    run, _ = paused()
    run.scope.end(Ending("cancelled", "requested"))
    run.finish(Ending("cancelled", "requested"))
    assert [event.type for event in events(run)][-2:] == ["message.finished", "run.finished"]
    assert run.result()["text"] == "so far"


async def test_a_run_that_was_kept_is_the_same_in_another_process() -> None:
    run, _ = paused(input="hi", metadata={"a": 1})
    run.scope.unbind()
    kept = MemoryLog.load(run.dump())
    before = [entry for entry in kept.read(0, 1000) if not isinstance(entry.event, RunPaused)]
    frozen = pause.thaw(pause.freeze(run, 0.005))
    assert (frozen.run_id, frozen.agent, frozen.user, frozen.key) == (run.run_id, "echo", "ann", "k")
    other = new_run(input="hi", metadata={"a": 1})
    log = MemoryLog()
    for entry in before:
        log.append(entry.event)
    pause.restore(other, msgspec.structs.replace(frozen, log=log.dump()), 1 << 20)
    assert events(other) == events(run)
    assert (other.status, other.last_event_id) == ("paused", run.last_event_id)
    assert (other.created_at, other.ttft_ms, other.meter.totals) == (run.created_at, run.ttft_ms, run.meter.totals)
    other.scope.resume()
    other.resume()
    said = other.take(Call(other).id)
    assert said is not None
    assert said[0] == "so far"
