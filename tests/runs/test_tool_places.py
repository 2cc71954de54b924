"""How many tools of a run are at work at once, whichever of its graphs calls them."""

import asyncio
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from runners import runner_of, told
from scripted import Scripted, words

from app.events.event import ToolFinished
from app.events.request import RunRequest
from chains.assistant import build_assistant


class Room:
    """A tool that notes how many of it are at work, and waits until the test lets all go."""

    def __init__(self, enough: int) -> None:
        self.now = 0
        self.most = 0
        self.full = asyncio.Event()

        @tool
        async def work(number: int) -> str:
            """Work."""
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now == enough:
                self.full.set()
            await self.full.wait()
            await asyncio.sleep(0)  # whoever may come in besides, comes in now
            self.now -= 1
            return f"{number}"

        self.agent: Runnable[Any, Any] = build_assistant(
            Scripted(turns=[[self._calls(12, work.name)], words("done")]), [work]
        )

    @staticmethod
    def _calls(count: int, name: str) -> AIMessageChunk:
        asked: list[Any] = [{"name": name, "args": {"number": at}, "id": f"c{at}"} for at in range(count)]
        return AIMessageChunk(content="", tool_calls=asked)


async def test_no_more_tools_of_a_run_work_at_once_than_there_are_places_and_all_have_their_turn() -> None:
    room = Room(enough=4)
    async with runner_of(room.agent, tools_at_once=4) as runner:
        run = await runner.start(runner.agent("one"), RunRequest(input="go"), user="ann", streams=True)
        events = await told(run)
    assert room.most == 4
    assert sorted(int(one.output) for one in events if isinstance(one, ToolFinished)) == list(range(12))
