"""A function as a node of a graph, or as what decides where a step leads, called where the graph is.

LangGraph runs a plain function in a thread, also one that only looks at a state and names the next node. LangChain's
own ``RunnableLambda`` is called on the loop, but is traced, streamed and inspected as a chain of its own, which costs
more than the step itself; and its events, beside those that LangGraph tells of each node anyway, say nothing more.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, var_child_runnable_config
from typing_extensions import override

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")


class Step(Runnable[InputT, OutputT], Generic[InputT, OutputT]):
    """``func`` for synchronous graphs, ``afunc`` for others; without it ``func``, which then must wait for nothing."""

    def __init__(
        self, func: Callable[[InputT], OutputT], afunc: Callable[[InputT], Awaitable[OutputT]] | None = None
    ) -> None:
        self.name = func.__name__
        self._func = func
        self._afunc = afunc

    @override
    def invoke(self, input: InputT, config: RunnableConfig | None = None, **kwargs: Any) -> OutputT:
        with _called_with(config):
            return self._func(input)

    @override
    async def ainvoke(self, input: InputT, config: RunnableConfig | None = None, **kwargs: Any) -> OutputT:
        with _called_with(config):
            return self._func(input) if self._afunc is None else await self._afunc(input)


@contextmanager
def _called_with(config: RunnableConfig | None) -> Iterator[None]:
    """What the function calls has this config, as in LangChain's own runnables."""
    token = var_child_runnable_config.set(ensure_config(config))
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)
