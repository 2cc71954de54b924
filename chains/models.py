"""The model of the built-in agents, from ``provider:name``.

Everything ``init_chat_model`` knows can be named; its integration package has to be installed. For the OpenAI
wire, usage is asked for explicitly: with a base URL of one's own, ``ChatOpenAI`` would leave it out of streams.

What is built here answers through ``chains.answering``: retries that can be seen, the run's bound, pause and
continue. So the client's own retries, which nobody would see, are off.
"""

import os
from collections.abc import Mapping
from typing import Any

from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from openai import DefaultAsyncHttpxClient

from chains.answering import prefills, serve
from chains.retries import Retries

__all__ = ["OURS", "build_model", "prefills"]

OURS: Mapping[str, Any] = {"max_retries": 0, "stream_chunk_timeout": None}
"""What clients would do unseen, and the server does: attempts are repeated with an event, silence has a deadline."""


def build_model(
    spec: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    client: DefaultAsyncHttpxClient | None = None,
    retries: Retries | None = None,
    prefill: bool | None = None,
    **options: Any,
) -> BaseChatModel:
    """A chat model that streams and reports its usage.

    ``spec``: ``"openai:gpt-5-mini"``, ``"anthropic:…"``; a bare name is understood as ``init_chat_model`` does.
    ``base_url``, ``api_key`` and ``client`` are for the OpenAI wire; servers on one's own machine need no key. Without
    a ``client`` of its own, ChatOpenAI shares one a base URL with the whole process, whichever event loop asks: a
    server should bring its own, and close it. ``prefill``: whether the provider goes on with an assistant message that
    ends the conversation; None: what is known of it. What ``options`` say of ``OURS`` holds.
    Raises ``ValueError`` or ``ImportError`` with the integration's name when the model cannot be built.
    """
    if spec.startswith("openai:"):
        options = {"stream_usage": True, **options}
        if client is not None:
            options["http_async_client"] = client
        if base_url is not None:
            options |= {"base_url": base_url, "api_key": api_key or "none"}
        elif api_key is not None:
            options["api_key"] = api_key
        elif os.environ.get("OPENAI_BASE_URL") and not os.environ.get("OPENAI_API_KEY"):
            options.setdefault("api_key", "none")
    return serve(_built(spec, options), retries=retries, prefill=prefill)


def _built(spec: str, options: dict[str, Any]) -> BaseChatModel:
    """The model with ``OURS``, as far as its class takes them; which class that is, is known when it is built."""
    model: BaseChatModel = init_chat_model(spec, **options)
    ours = {name: value for name, value in OURS.items() if name in type(model).model_fields and name not in options}
    if ours:
        model = init_chat_model(spec, **{**ours, **options})
    return model
