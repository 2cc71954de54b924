"""The model of the built-in agents, from ``provider:name``.

Everything ``init_chat_model`` knows can be named; its integration package has to be installed. For the OpenAI
wire, usage is asked for explicitly: with a base URL of one's own, ``ChatOpenAI`` would leave it out of streams.
"""

from typing import Any

from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from openai import DefaultAsyncHttpxClient


def build_model(
    spec: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    client: DefaultAsyncHttpxClient | None = None,
    **options: Any,
) -> BaseChatModel:
    """A chat model that streams and reports its usage.

    ``spec``: ``"openai:gpt-5-mini"``, ``"anthropic:…"``; a bare name is understood as ``init_chat_model`` does.
    ``base_url``, ``api_key`` and ``client`` are for the OpenAI wire; servers on one's own machine need no key. Without
    a ``client`` of its own, ChatOpenAI shares one a base URL with the whole process, whichever event loop asks: a
    server should bring its own, and close it.
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
    model: BaseChatModel = init_chat_model(spec, **options)
    return model
