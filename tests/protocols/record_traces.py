"""Records the traces beside it: ``.venv/bin/python tests/protocols/record_traces.py [NAME …]``.

Each is one real run, as a client reads it over HTTP from the real server, whose agents talk to the simulated provider.
A line is an event, ``{"id", "event", "data"}``, the data's bytes as they came. Record anew only when the events
themselves have changed; a trace is good for as long as the grammar and the codec take it.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
from httpx_sse import connect_sse
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langgraph.graph import START, MessagesState, StateGraph

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from graphs import Slow, branches, nested, openai, tool_caller  # noqa: E402
from scripted import Scripted, say, usage  # noqa: E402
from serving import serving  # noqa: E402

from app.simulator.server import Simulator  # noqa: E402

TRACES = Path(__file__).parent / "traces"

UNICODE = (
    "Größe 漢字 \U0001f469\u200d\U0001f680 e\u0301 \u202eمرحبا\u202c \u2028\u2029\x85 \ufeff\x1f\x00 \\u0041 "
    '"quoted"\n\r\ndata: [DONE]\n\n{[…\U0001f3f4\U000e0067\U000e0062'
)


class Shape(NamedTuple):
    """What to run: one of the server's agents, or one that is built on the provider's address."""

    said: str
    agent: str | Callable[[str], Runnable[Any, Any]] = "chat"
    cancel_at: str | None = None
    """The event at which the run is cancelled."""


def thinking(_: str) -> Runnable[Any, Any]:
    """A model that shows how it came to its answer."""
    thoughts = [
        say("", additional_kwargs={"reasoning_content": f"{word} "}) for word in ["Hm,", "17", "+", "6", "is", "23"]
    ]
    words = [say(word) for word in ("It ", "is ", "twenty-three.")]
    return _answering(Scripted(turns=[[*thoughts, *words, say("", usage_metadata=usage(12, 34))]]))


def twice(base_url: str) -> Runnable[Any, Any]:
    """A model that breaks off in mid-answer, and one that takes over."""
    first, second = (openai(base_url, stream_usage=True) for _ in range(2))
    return _answering(first.with_fallbacks([second]))


def waiting(_: str) -> Runnable[Any, Any]:
    """Two tools that would wait for a minute."""
    return tool_caller([Slow().tool], [{"name": "wait", "args": {"seconds": 60}, "id": f"c{n}"} for n in (1, 2)])


def _answering(model: Runnable[Any, AIMessage]) -> Runnable[Any, Any]:
    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph.compile()


SHAPES = {
    "text": Shape("[[tokens=120]] Tell me of the mill."),
    "parallel_tools": Shape("What is 17 * 23, the weather in Oslo, and the time in Tokyo?", "assistant"),
    "broken_arguments": Shape("[[bad_json=mismatched call=1]] What is the weather in Oslo, and 6 * 7?", "assistant"),
    "reasoning": Shape("What is 17 + 6?", thinking),
    "subgraph": Shape("[[tokens=30]] Go deep.", nested),
    "branches": Shape("[[tokens=30]] Go wide.", branches),
    "discarded": Shape("[[drop_after=15 fail_times=1 tokens=40]] Begin twice.", twice),
    "failed": Shape("[[drop_after=15 tokens=40]] Break off."),
    "cancelled_in_tool": Shape("Wait.", waiting, cancel_at="tool.started"),
    "cancelled_in_answer": Shape("[[tokens=5000 tokens_per_second=300]] Go on.", cancel_at="token"),
    "unicode": Shape(f"[[say={quote(UNICODE)}]] Say it."),
}


def record(shape: Shape) -> Iterator[bytes]:
    """The run's events, a line each."""
    with Simulator(tokens_per_second=200) as provider:
        agents = None if isinstance(shape.agent, str) else {"one": shape.agent(provider.base_url)}
        with serving(agents) as served, httpx.Client(base_url=served.url, timeout=60) as client:
            path = f"/agents/{'one' if agents else shape.agent}/runs"
            with connect_sse(client, "POST", path, json={"input": shape.said}) as events:
                run = events.response.headers["content-location"]
                for event in events.iter_sse():
                    yield f'{{"id":{event.id},"event":"{event.event}","data":{event.data}}}\n'.encode()
                    if event.event == shape.cancel_at:
                        httpx.post(f"{served.url}{run}/cancel")


if __name__ == "__main__":
    for name in sys.argv[1:] or SHAPES:
        (TRACES / f"{name}.jsonl").write_bytes(b"".join(record(SHAPES[name])))
        print(name)
