"""Fixtures that every room's tests may use."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serving import Served, serving

os.environ.setdefault("LANGSMITH_TRACING", "false")
os.environ["MILLRACE_DATABASE_URL"] = "sqlite://"  # no test leaves a file in the working directory


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """One server for all tests that need nothing special of it."""
    with serving() as one:
        yield one


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of that server."""
    async with httpx.AsyncClient(base_url=served.url, timeout=20) as one:
        yield one


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until a condition holds; fail after ten seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "the condition never held"
            time.sleep(0.005)

    return wait


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], "asyncio.Future[None]"]:
    """The same, for tests with a loop to keep running."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)

    return lambda condition: asyncio.ensure_future(wait(condition))
