"""A simulated provider and real clients of it, each closed when its test ends."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import httpx2
import openai
import pytest
from langchain_openai import ChatOpenAI

from app.simulator.server import Simulator


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A provider that talks as fast as it can."""
    with Simulator(tokens_per_second=0) as one:
        yield one


@pytest.fixture
def client(simulator: Simulator) -> Iterator[openai.OpenAI]:
    """The synchronous ``openai`` client; it does not try again."""
    with openai.OpenAI(base_url=simulator.base_url, api_key="any", max_retries=0) as one:
        yield one


@pytest.fixture
async def async_client(simulator: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    """The asynchronous one."""
    async with openai.AsyncOpenAI(base_url=simulator.base_url, api_key="any", max_retries=0) as one:
        yield one


@pytest.fixture
def chat(simulator: Simulator) -> Iterator[Callable[..., ChatOpenAI]]:
    """``chat(model)``: LangChain's client of that provider, for synchronous calls."""
    with ExitStack() as clients:

        def build(model: str = "simulated") -> ChatOpenAI:
            http = clients.enter_context(httpx2.Client())
            return ChatOpenAI(
                model=model,
                base_url=simulator.base_url,
                api_key=lambda: "any",
                stream_usage=True,
                max_retries=0,
                http_client=http,
            )

        yield build


@pytest.fixture
async def async_chat(simulator: Simulator) -> AsyncIterator[ChatOpenAI]:
    """LangChain's client for asynchronous calls."""
    async with httpx2.AsyncClient() as http:
        yield ChatOpenAI(
            model="simulated",
            base_url=simulator.base_url,
            api_key=lambda: "any",
            stream_usage=True,
            max_retries=0,
            http_async_client=http,
        )
