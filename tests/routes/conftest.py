"""What the routes' tests share: a provider, a tool that waits, and a client of the module's own ``server``."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from graphs import Slow
from serving import Served

from app.simulator.server import Simulator


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    """A provider whose requests can be counted; a token every 5 ms."""
    with Simulator(tokens_per_second=200) as one:
        yield one


@pytest.fixture(scope="module")
def slow() -> Slow:
    """A tool and an agent that wait until they are let go."""
    return Slow()


@pytest.fixture(scope="module")
def server(served: Served) -> Served:
    """The server that ``client`` speaks to; a module that needs its own says so by a fixture of this name."""
    return served


@pytest.fixture
async def client(server: Served) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of that server."""
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as one:
        yield one
