"""Where a step leads, decided on the event loop.

LangGraph runs a plain function in a thread, also one that only looks at a state and names the next node: a hop there
and back for each step of each run. These are quick and wait for nothing, so they are called where they are.
"""

from collections.abc import Callable
from typing import Any

from langchain_core.runnables import Runnable, RunnableLambda


def edge(path: Callable[[Any], Any]) -> Runnable[Any, Any]:
    """``path`` for ``add_conditional_edges``."""

    async def apath(state: Any) -> Any:
        return path(state)

    return RunnableLambda(path, apath, name=path.__name__)
