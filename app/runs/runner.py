"""The one door: every run starts here, whatever protocol asked, and every task that writes a log is owned here.

``Runner.start`` admits, makes the run with its log and scope, and starts the task that drives the graph. It does
not await: when it returns, the run is known, readable and cancellable. Whatever ends the graph (its last step, an
error, a deadline, a cancel, the server's stop), the run's log gets exactly one terminal event.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, cast
from uuid import UUID, uuid4

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig

from app.errors import InvalidInput, NotFound, Unavailable, Unsupported
from app.eventlog.base import LogFull
from app.eventlog.memory import MemoryLog
from app.events import codec
from app.events.grammar import Grammar
from app.events.request import RunRequest
from app.runs.agent import Agent, refuse_constructors
from app.runs.failure import Failure, describe
from app.runs.run import Run
from app.runs.scope import Ending, Scope
from app.runs.tap import Tap

logger = logging.getLogger("millrace.runs")

MAX_METADATA = 16 * 1024
"""Bytes of JSON; a run's row is kept for long."""

RESERVED = ("langgraph_", "checkpoint_", "ls_", "lc_", "__")
"""How the names begin under which LangChain and LangGraph keep their own account in a step's metadata."""

MAX_ROWS = 10_000
"""Finished runs whose rows are kept; beyond them the oldest is forgotten."""

Outcome = tuple[Ending, Failure | None]


class Runner:
    """Starts runs, finds them, lets them go. Times are in seconds, sizes in bytes.

    ``strict`` checks every event against the grammar; tests and debug servers run that way.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        *,
        run_timeout_s: float = 300,
        disconnect_grace_s: float = 0,
        retention_s: float = 600,
        run_max_bytes: int = 8 * 1024 * 1024,
        strict: bool = False,
    ) -> None:
        self.agents = agents
        self._run_timeout_s = run_timeout_s
        self._disconnect_grace_s = disconnect_grace_s
        self._retention_s = retention_s
        self._run_max_bytes = run_max_bytes
        self._strict = strict
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[Outcome]] = {}
        self._by_key: dict[tuple[str, str], Run] = {}
        self._closing = False

    def agent(self, name: str) -> Agent:
        """The agent of that name. Raises ``NotFound``."""
        agent = self.agents.get(name)
        if agent is None:
            raise NotFound(f"there is no agent {name!r}; GET /agents lists them", code="unknown_agent")
        return agent

    def start(
        self,
        agent: Agent,
        request: RunRequest,
        *,
        user: str,
        streams: bool,
        run_id: UUID | None = None,
        idempotency_key: str | None = None,
        config: RunnableConfig | None = None,
        callbacks: Sequence[BaseCallbackHandler] = (),
        tap: Tap | None = None,
    ) -> Run:
        """Start a run, or find the one that the same user started with the same ``idempotency_key``.

        ``streams``: whether the start itself is read, which decides the default of ``on_disconnect``. The input is
        checked before anything exists. Raises ``InvalidInput``, ``Unsupported``, ``Unavailable``.
        """
        if idempotency_key is not None and (user, idempotency_key) in self._by_key:
            return self._by_key[user, idempotency_key]
        if self._closing:
            raise Unavailable("the server is shutting down; start the run again in a moment")
        _refuse_unsupported(agent, request)
        value = agent.prepare(request.input)
        grace = request.disconnect_grace_s
        run = Run(
            str(run_id or uuid4()),
            agent=agent,
            request=request,
            user=user,
            idempotency_key=idempotency_key,
            log=MemoryLog(self._run_max_bytes),
            scope=Scope(
                request.on_disconnect or ("cancel" if streams else "continue"),
                self._disconnect_grace_s if grace is None else grace,
            ),
            grammar=Grammar() if self._strict else None,
        )
        self._runs[run.run_id] = run
        if idempotency_key is not None:
            self._by_key[user, idempotency_key] = run
        run.start()
        full: RunnableConfig = {
            **(config or {}),
            "run_id": UUID(run.run_id),
            "callbacks": [run.meter, *callbacks],
            "metadata": {**(config or {}).get("metadata", {}), **_passed_on(request.metadata)},
        }
        task = asyncio.create_task(self._drive(run, value, full, tap), name=f"run {run.run_id}")
        self._tasks[run.run_id] = task
        task.add_done_callback(partial(self._ended, run, tap))
        run.scope.bind(task, request.timeout_s or self._run_timeout_s)
        return run

    def get(self, run_id: str, user: str) -> Run:
        """The user's run. Raises ``NotFound``, for another user's too."""
        run = self._runs.get(run_id)
        if run is None or run.user != user:
            raise NotFound("there is no such run", code="unknown_run")
        return run

    def list(self, user: str) -> list[Run]:
        """The user's runs, newest first."""
        return [run for run in reversed(self._runs.values()) if run.user == user]

    @property
    def open(self) -> bool:
        """Whether new runs are taken."""
        return not self._closing

    @property
    def live(self) -> int:
        """Runs whose task is still going."""
        return len(self._tasks)

    def stop(self) -> None:
        """Refuse new runs and cancel those that are going."""
        self._closing = True
        for run_id in list(self._tasks):
            self._runs[run_id].scope.end(Ending("cancelled", "shutdown"))

    async def close(self) -> None:
        """Stop, and wait until every log is closed."""
        self.stop()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _drive(self, run: Run, value: Any, config: RunnableConfig, tap: Tap | None) -> Outcome:
        raws = run.agent.runnable.astream_events(value, config, version="v2")
        try:
            async with aclosing(cast("AsyncGenerator[Mapping[str, Any], None]", raws)) as stream:
                async for raw in stream:
                    if tap is not None:
                        tap.put(raw)
                    run.feed(raw)
        except LogFull:
            message = "The agent put out more than the run's log may hold (RUN_MAX_BYTES)."
            return Ending("failed", "log_full"), Failure("log_full", message, False)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a graph may raise anything; the log must be closed
            # After an ending was decided this is its echo, whatever the graph made of the cancel. With nobody's
            # request behind it, a cancel is the graph's own doing: a failure like any other.
            return _decided(run) or self._failed(run, error)
        if not run.returned:  # LangChain's event stream swallows a cancel that comes from within
            return _decided(run) or self._failed(run, asyncio.CancelledError("the agent cancelled itself"))
        return _decided(run) or (Ending("completed"), None)

    def _ended(self, run: Run, tap: Tap | None, task: "asyncio.Task[Outcome]") -> None:
        # A callback, not the task's last lines: a task cancelled before its first step runs none of its lines.
        try:
            if task.cancelled():
                run.finish(*(_decided(run) or (Ending("cancelled", "shutdown"), None)))
            elif task.exception() is not None:
                run.finish(*self._failed(run, task.exception()))
            else:
                run.finish(*task.result())
        finally:
            if tap is not None:
                tap.close()
            del self._tasks[run.run_id]
            self._retire(run)

    def _failed(self, run: Run, error: BaseException | None) -> Outcome:
        failure = describe(error, streamed=run.meter.streamed)
        trace = error if failure.code == "agent_error" else None  # a provider's failure has no story in our frames
        words = ("run %s of agent %s failed: %s: %s", run.run_id, run.agent.name, failure.code, error)
        logger.error(*words, exc_info=trace)
        return Ending("failed", failure.code), failure

    def _retire(self, run: Run) -> None:
        """Keep a finished run readable for a while, then only its row, then nothing."""
        asyncio.get_running_loop().call_later(self._retention_s, self._expire, run)
        while len(self._runs) > MAX_ROWS + len(self._tasks):
            oldest = next(iter(self._runs.values()))
            if not oldest.finished:
                break
            self._forget(oldest)

    def _expire(self, run: Run) -> None:
        run.expire()
        if run.idempotency_key is not None:
            self._by_key.pop((run.user, run.idempotency_key), None)

    def _forget(self, run: Run) -> None:
        self._expire(run)
        self._runs.pop(run.run_id, None)


def _decided(run: Run) -> Outcome | None:
    """The ending that a cancel, a leaving reader or the deadline has given the run."""
    ending = run.scope.ending
    if ending is not None and ending.status == "timed_out":
        return ending, Failure("run_timeout", "The run took longer than allowed.", True)
    return None if ending is None else (ending, None)


def _passed_on(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What of a client's metadata the graph and its callbacks are given."""
    return {name: value for name, value in metadata.items() if not name.startswith(RESERVED)}


def _refuse_unsupported(agent: Agent, request: RunRequest) -> None:
    refuse_constructors(request.metadata, "metadata")
    if len(codec.dumps(request.metadata)) > MAX_METADATA:
        detail = [{"field": "metadata", "message": f"is over {MAX_METADATA} bytes"}]
        raise InvalidInput(f"metadata is over {MAX_METADATA} bytes", detail=detail)
    for field in ("thread_id", "resume", "pause_after", "max_tokens"):
        if getattr(request, field) is not None:
            raise Unsupported(
                f"agent {agent.name!r} does not support {field}; GET /agents lists what each agent can do",
                detail=[{"field": field, "message": "is not supported by this agent"}],
            )
