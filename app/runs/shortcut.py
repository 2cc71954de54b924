"""The way of a model's plain text past LangChain: from the reader of the provider's bytes to the run's log.

LangChain makes an object of each chunk, tells every callback of it, and hands it through a task and a queue: several
times what all the rest of a token costs. Where nobody but the run listens, that serves nothing. So the model's reader
(``chains.deltas``) asks the run for a shortcut, which is for one call of the model, says each text to it as it comes,
and gives LangChain the whole of it in one chunk later. Whether somebody listens is read off the call's handlers.
"""

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.tracers import event_stream
from typing_extensions import override


class Ear(Protocol):
    """Who hears what is said: a run."""

    def hear(self, shortcut: "Shortcut", text: str) -> bool:
        """A piece of the text of the shortcut's call. False: it must come the usual way."""

    def overhear(self, shortcut: "Shortcut", text: str) -> bool:
        """The same, in another thread than the run's own."""


class Shortcut:
    """The shortcut of one call, by its id and, as events have it, ``run_id``. See ``chains.shortcut.Shortcut``.

    ``spell`` is the run's between two pauses: a call that was made in another one is cut.
    """

    __slots__ = ("_ear", "call", "message_id", "run_id", "spell")

    def __init__(self, ear: Ear, call: UUID, message_id: str, spell: int = 0) -> None:
        self._ear = ear
        self.spell = spell
        self.call = call
        self.run_id = str(call)
        self.message_id = message_id

    def say(self, text: str) -> bool:
        """Show the next piece."""
        return self._ear.hear(self, text)


class Overheard(Shortcut):
    """The same of a call that a synchronous node makes, which speaks in a thread."""

    __slots__ = ()

    @override
    def say(self, text: str) -> bool:
        return self._ear.overhear(self, text)


def are_deaf(handlers: Sequence[object]) -> bool:
    """Whether none of these callbacks does anything with a model's chunks, but for the run's own event stream.

    A second event stream is one that a user's node reads.
    """
    streams = sum(type(one).__module__ == event_stream.__name__ for one in handlers)
    deaf = sum(_function(one) in _UNHEARING for one in handlers)
    return streams <= 1 and streams + deaf == len(handlers)


def _function(handler: object) -> object:
    return getattr(getattr(handler, "on_llm_new_token", None), "__func__", None)


_UNHEARING = (BaseCallbackHandler.on_llm_new_token, AsyncCallbackHandler.on_llm_new_token)
