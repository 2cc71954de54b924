"""What is said with one agent, and how the agent comes to know of what was said before.

An agent with threads keeps the conversation on the server. To one without, a chain such as ``chat``, what was said so
far is sent along with each question; one that takes no messages is asked anew each time.
"""

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec

from app.remote import Refusal
from app.terminal.tables import Agent


@dataclass
class Conversation:
    """``waits``: its last run asked a person, who has not answered."""

    agent: Agent
    thread_id: str = field(default_factory=lambda: str(uuid4()))
    messages: list[dict[str, str]] = field(default_factory=list)
    waits: bool = False

    def ask(self, question: str) -> dict[str, Any]:
        """The body of a start. Raises ``Refusal``."""
        can = self.agent["capabilities"]
        if self.waits:
            raise Refusal("it waits for your word: /resume asks again, /new begins another conversation")
        if can["threads"]:
            return {"input": question, "thread_id": self.thread_id}
        if can["messages"]:
            return {"input": {"messages": [*self.messages, {"role": "user", "content": question}]}}
        return {"input": question if can["text_input"] else _object(question, self.agent["name"])}

    def hear(self, question: str, said: str) -> None:
        """What came of it. Of a question that had no answer nothing is kept: it is asked again."""
        if said:
            self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": said}]

    @property
    def memory(self) -> str | None:
        """What a person must know of its memory."""
        name, can = self.agent["name"], self.agent["capabilities"]
        if can["threads"]:
            return None
        if can["messages"]:
            return f"{name} remembers nothing by itself: what was said is sent along with each question."
        return f"{name} remembers nothing: each question stands alone."


def _object(line: str, agent: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        raise Refusal(f'{agent} takes an object and no text: write JSON, such as {{"name": "value"}}') from None
