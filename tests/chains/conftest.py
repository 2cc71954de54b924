"""What the agents' tests share: a provider that is not slow, and a model that speaks to it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import pytest
import uvloop
from langchain_core.language_models import BaseChatModel
from openai import DefaultAsyncHttpxClient

from app.simulator.server import Simulator
from chains.models import build_model


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What speaks to the loop itself is tested on both."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    return loops | {"uvloop": uvloop.new_event_loop} if item.path.stem in ("test_dialling", "test_transport") else loops


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=0) as one:
        yield one


@pytest.fixture
async def model(provider: Simulator) -> AsyncIterator[BaseChatModel]:
    """With a client of this test's loop: the default one is shared by all loops of the process."""
    async with DefaultAsyncHttpxClient() as client:
        yield build_model("openai:simulated", base_url=provider.base_url, client=client)
