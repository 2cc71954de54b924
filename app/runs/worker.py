"""One of several workers behind one port that share nothing: no log, no thread, no count.

Any of them may be asked. So what a run is told or asked in the very connection that started it works as ever (its
stream, LangServe's calls, a socket's commands), and whatever would have to find a run, a thread or a sum that another
worker may have is refused, always and by name: also where the right worker was asked, as next time it would not be.
Nothing here guesses, waits or asks the others.
"""

from typing import Any, NoReturn
from uuid import UUID

from typing_extensions import override

from app.errors import NotShared
from app.events.request import RunRequest
from app.runs.agent import Agent
from app.runs.ledger import Row
from app.runs.past import PastRun
from app.runs.run import Run
from app.runs.runner import Brought, Runner


class Worker(Runner):
    """A ``Runner`` beside others of its kind, ``workers`` in all."""

    def __init__(self, *args: Any, workers: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._workers = workers

    @override
    async def start(
        self,
        agent: Agent,
        request: RunRequest,
        *,
        user: str,
        streams: bool,
        run_id: UUID | None = None,
        idempotency_key: str | None = None,
        brought: Brought = Brought(),
    ) -> Run:
        """Start a run that is read where it was started, and ends with its readers. Raises ``NotShared`` for others."""
        for wanted, what in (
            (not streams, "a run in the background"),
            (idempotency_key is not None, "an Idempotency-Key"),
            (request.thread_id is not None, "a thread_id"),
            (request.resume is not None, "a resume"),
            (agent.asks_person, f"agent {agent.name!r}, which waits for a person's answer,"),
            (request.on_disconnect == "continue", 'on_disconnect "continue"'),
            (bool(request.disconnect_grace_s), "a disconnect_grace_s"),
            (request.pause_after is not None, "pause_after"),
        ):
            if wanted:
                self._refuse(what)
        return await super().start(agent, request, user=user, streams=streams, run_id=run_id, brought=brought)

    @override
    async def get(self, run_id: str, user: str) -> Run | PastRun:
        """Refused."""
        self._refuse("a run by its id")

    @override
    async def rows(self, user: str) -> list[Row]:
        """Refused."""
        self._refuse("a list of runs")

    @override
    async def usage(self, user: str, days: int) -> dict[str, Any]:
        """Refused."""
        self._refuse("a sum of what was used")

    @override
    async def thread(self, thread_id: str, user: str) -> dict[str, Any]:
        """Refused."""
        self._refuse("a thread")

    @override
    async def _hold(self, run: Run) -> None:
        await super()._hold(run)
        run.durable = False  # there is no next server that would find it: in a drain it ends

    def _refuse(self, what: str) -> NoReturn:
        raise NotShared(
            f"{what} needs what workers share, and the {self._workers} workers of this server share nothing: any of "
            "them may be asked, and only one would know. Read a run in the response that starts it, or have the "
            "server run with one worker."
        )
