"""What an agent is asked: something short, at a known pace where the provider is simulated, else something cheap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import quote

from app.remote import Refusal

PACE = "tokens=60&tokens_per_second=40"
"""Of the simulated answer."""

STALLED = "tokens=60&stall_after=1"
"""One that does not end by itself, for what is left or paused."""

QUESTION, MAX_TOKENS = "Count from 1 to 60 in words, separated by spaces, and say nothing else.", 160
"""What a real model is asked, and what its answer may have where that can be said."""


class Capabilities(TypedDict):
    """What of an agent's capabilities matters here."""

    text_input: bool
    pause: bool
    max_tokens: bool


class Agent(TypedDict):
    """What of a row of ``GET /agents`` matters here."""

    name: str
    model: str | None
    capabilities: Capabilities


class Agents(TypedDict):
    """The answer of ``GET /agents``."""

    agents: list[Agent]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an agent. ``value`` is the caller's own input, if there is one."""

    agent: Agent
    value: Any = None

    @property
    def path(self) -> str:
        """Where its runs are started."""
        return f"/agents/{quote(self.agent['name'], safe='')}/runs"

    def body(self, directives: str = PACE, **options: Any) -> dict[str, Any]:
        """A run request."""
        name = (self.agent["model"] or "").rpartition(":")[2].partition("?")[0]
        value = self.value
        if value is None:
            value = f"[[{directives}]] {QUESTION}" if name == "simulated" else QUESTION
        bound = {"max_tokens": MAX_TOKENS} if self.agent["capabilities"]["max_tokens"] else {}
        return {"input": value, **bound, **options}


def chosen(agents: Sequence[Agent], wanted: str | None, value: Any) -> Request:
    """The agent that is asked: the one that is named, else ``chat``, else the first that takes a text."""
    named = {agent["name"]: agent for agent in agents}
    if wanted is not None and wanted not in named:
        raise Refusal(f"there is no agent {wanted!r} there; there are {', '.join(named) or 'none'}")
    texts = [agent for agent in agents if agent["capabilities"]["text_input"] or value is not None]
    agent = named[wanted] if wanted is not None else named.get("chat", texts[0] if texts else None)
    if agent is None or (value is None and not agent["capabilities"]["text_input"]):
        raise Refusal("the agent takes no plain text: name one by --agent, and what it is to be asked by --input")
    return Request(agent, value)
