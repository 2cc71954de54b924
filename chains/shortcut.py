"""A way for a model's plain text past LangChain.

LangChain makes an object of each chunk, tells every callback of it and hands it through tasks and queues: several times
what all the rest of a token costs, for text that most often nobody but the reader wants. So the text may go straight
from the reader of the provider's bytes (``chains.deltas``) to whoever shows it, a server's run. LangChain is given the
same, as one chunk, when something else comes or the stream ends.

A shortcut is asked for in an ``ainvoke`` or ``invoke``, where no code of a user's sees the chunks, and in calls of the
models that ``chains.answering`` serves, where the run decides whether that matters. Who refuses a text gets this and
all that follows the usual way.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import NamedTuple, Protocol
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables.config import ensure_config

CONTROL = "__millrace"
"""The key in a config's ``configurable`` under which the server's run lies."""


class Shortcut(Protocol):
    """A way for plain text past LangChain."""

    def say(self, text: str) -> bool:
        """Show the next piece of the answer. False: it, and all that follows, has to go the usual way."""


class Shortcuts(Protocol):
    """Who gives shortcuts: a run."""

    def shortcut(self, run_id: UUID, message_id: str, handlers: Sequence[object], *, seen: bool) -> Shortcut | None:
        """A shortcut for the model call of that id, which ``handlers`` listen to; ``None`` when one needs every chunk.

        ``message_id`` is the one that LangChain will give the answer. ``seen``: the caller reads it chunk by chunk.
        """


shortcut_ahead: ContextVar[Shortcut | None] = ContextVar("millrace_shortcut", default=None)
"""The shortcut of the call that is about to be made in this context."""


class Caller(NamedTuple):
    """LangChain's public method that asks a model for its stream, and the manager of the call's callbacks."""

    code: CodeType
    manager: AsyncCallbackManagerForLLMRun | CallbackManagerForLLMRun

    @property
    def sees(self) -> bool:
        """Whether whoever called that reads the answer chunk by chunk."""
        return self.code not in _INVOKES

    def shortcut(self, shortcuts: Shortcuts | None) -> Shortcut | None:
        """The call's shortcut, if there is anybody to give one."""
        run_id = self.manager.run_id
        if shortcuts is None:
            return None
        return shortcuts.shortcut(run_id, f"lc_run--{run_id}", self.manager.handlers, seen=self.sees)


def _codes(*names: str) -> tuple[CodeType | None, ...]:
    return tuple(getattr(getattr(BaseChatModel, name, None), "__code__", None) for name in names)


_INVOKES = _codes("_agenerate_with_cache", "_generate_with_cache")
_CALLERS = (*_INVOKES, *_codes("astream", "stream"))
_MANAGERS = (AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun)


def caller(frame: FrameType | None) -> Caller | None:
    """Who asks, if ``frame`` is LangChain's, and all that is between.

    LangChain passes the class's own method neither the call's id nor its callbacks; they are known there alone.
    """
    while frame is not None and frame.f_globals.get("__name__", "").startswith("langchain_"):
        if frame.f_code in _CALLERS:
            manager = frame.f_locals.get("run_manager")
            return Caller(frame.f_code, manager) if isinstance(manager, _MANAGERS) else None
        frame = frame.f_back
    return None


def shortcut_for(frame: FrameType) -> Shortcut | None:
    """The shortcut of the call whose stream ``frame`` asks for: in our own models' context, else where it is invoked.

    Between an ``ainvoke`` or ``invoke`` and here there is no code of others, and nobody but LangChain sees the chunks.
    """
    shortcut = shortcut_ahead.get()
    if shortcut is not None:
        return shortcut
    called = caller(frame)
    if called is None or called.sees:
        return None
    return called.shortcut(ensure_config().get("configurable", {}).get(CONTROL))
