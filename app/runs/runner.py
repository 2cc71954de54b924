"""The one door: every run starts here, whatever protocol asked, and every task that writes a log is owned here.

``Runner.start`` admits, makes the run with its log and scope, and starts the task that lives its life: wait for the
thread's turn, drive the graph, stand still while it is paused, leave the thread fit for the next turn, write the end.
Whatever ends the graph (its last step, an error, a deadline, a cancel, the server's stop), the run's log gets exactly
one terminal event. A paused run is the one that a stopping server lets go of without: the next server has it.
What fails in the ledger keeps no run from going on or ending.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast
from uuid import UUID, uuid4

import msgspec
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, StateSnapshot

from app.errors import Conflict, InvalidInput, MillraceError, NotFound, Unavailable, Unsupported
from app.eventlog.base import Lag, LogFull
from app.eventlog.memory import MemoryLog
from app.events import codec
from app.events.grammar import Grammar
from app.events.request import RunRequest
from app.limits.door import Door, Seat, Slot
from app.limits.gate import Gate
from app.limits.policy import Limits, Policy
from app.runs import pause
from app.runs.agent import Agent, refuse_constructors
from app.runs.books import Account, Books
from app.runs.executor import occupant
from app.runs.failure import Failure, describe, timed_out
from app.runs.ledger import Ledger, Row
from app.runs.past import PastRun
from app.runs.report import report
from app.runs.run import MAX_LAG, WITHOUT_RESULT, Run
from app.runs.scope import Attachment, Ending, Scope
from app.runs.tap import Tap
from app.runs.threads import Turns, conversation, is_broken, leading, refuse_loose_calls, repair
from app.runs.watchdog import Watchdog

logger = logging.getLogger("millrace.runs")

MAX_METADATA = 16 * 1024
"""Bytes of JSON; a run's row is kept for long."""

MAX_LISTED = 1000
"""Rows of ``GET /runs``."""

SETTLE_S = 2.0
"""How long a cancel or a pause waits for its effect, so that its answer can usually tell the final status."""

RESERVED = ("langgraph_", "checkpoint_", "ls_", "lc_", "__")
"""How the names begin under which LangChain and LangGraph keep their own account in a step's metadata."""

LOST = "The server was stopped before this call had a result. It may have had an effect all the same."
"""What the model is told of calls that another process was at."""

LOG_FULL = Failure("log_full", "The agent put out more than the run's log may hold (RUN_MAX_BYTES).", False)

_INTERRUPT_ID = re.compile(r"[0-9a-f]{32}")

Outcome = tuple[Ending, Failure | None]


class _LetGo(Exception):
    """The server stops, and the run stays paused."""


class Timing(NamedTuple):
    """The bounds of time of every run that has none of its own, in seconds."""

    run_timeout_s: float = 300
    first_token_timeout_s: float = 60
    token_timeout_s: float = 30
    disconnect_grace_s: float = 0
    pause_timeout_s: float = 600
    retention_s: float = 600
    queue_timeout_s: float = 30


class Brought(NamedTuple):
    """What a protocol brings along to a run, beside the request: LangServe's config, callbacks and tap.

    ``slot``: the request has been let in, and this is its place or will be. ``seated``: who asks counts as a reader.
    """

    config: RunnableConfig | None = None
    callbacks: Sequence[BaseCallbackHandler] = ()
    tap: Tap | None = None
    slot: Slot | None = None
    seated: bool = False


class Runner:
    """Starts runs, finds them, lets them go. ``run_max_bytes`` bounds each run's log.

    ``door`` says who may start, ``gate`` when a model may be called, and what comes of it is kept in ``books``; by
    default nobody is limited. ``adaptive`` bounds the answers of users who stop most of theirs, ``tools_at_once`` the
    tools that a run of our own graphs has at work. ``strict`` checks every event against the grammar; tests and debug
    servers run that way.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        ledger: Ledger | None = None,
        *,
        timing: Timing = Timing(),
        lag: Lag = MAX_LAG,
        run_max_bytes: int = 8 * 1024 * 1024,
        strict: bool = False,
        door: Door | None = None,
        gate: Gate | None = None,
        books: Books | None = None,
        adaptive: bool = False,
        tools_at_once: int = 8,
    ) -> None:
        self.agents = agents
        self.door = door or Door(Policy(Limits(max_streams=0, max_readers=0)))
        self.gate = gate or Gate()
        self.draining = asyncio.Event()
        self._ledger = ledger or Ledger()
        self._books = books or Books(self._ledger, self.door)
        self._adaptive = adaptive
        self._tools_at_once = tools_at_once
        self._timing = timing
        self._lag = lag
        self._run_max_bytes = run_max_bytes
        self._strict = strict
        self._runs: dict[str, Run] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._by_key: dict[tuple[str, str], Run] = {}
        self._turns = Turns()
        self._kept = InMemorySaver()
        self._stopping = False

    async def open(self) -> None:
        """Open the ledger, and take over the runs that were paused when the last server stopped."""
        await self._ledger.open()
        self.gate.open()
        await self._books.open()
        for data in await self._ledger.held():
            await self._restore(data)

    def agent(self, name: str) -> Agent:
        """The agent of that name. Raises ``NotFound``."""
        agent = self.agents.get(name)
        if agent is None:
            raise NotFound(f"there is no agent {name!r}; GET /agents lists them", code="unknown_agent")
        return agent

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
        """Start a run, or find the one that the same user started with the same ``idempotency_key``.

        ``streams``: whether the start itself is read, which decides the default of ``on_disconnect``. The input is
        checked before anything exists. Raises ``InvalidInput``, ``Unsupported``, ``Conflict``, ``NotFound`` for
        another user's thread, ``Unavailable``, and ``TooManyRequests`` or ``UpstreamBusy`` when a limit is reached.
        """
        key = None if idempotency_key is None else (user, idempotency_key)
        if key in self._by_key:
            return self._by_key[key]
        self._refuse_in_drain()
        _refuse_unsupported(agent, request, brought)
        if agent.asks_person and request.thread_id is None:
            request = msgspec.structs.replace(request, thread_id=str(uuid4()))  # where its question can be answered
        value = _input(agent, request)
        if request.thread_id is not None:
            await self._admit(agent, request.thread_id, request, user, value)
            if key in self._by_key:  # the same start, while this one looked at the thread
                return self._by_key[key]
            self._refuse_in_drain()
            self._turns.check(request.thread_id, request.multitask_strategy)  # anew, before anything is consumed
        with contextlib.ExitStack() as undo:
            slot = undo.enter_context(self._let_in(user, request, brought, reads=streams))
            run = self._new(
                agent,
                request,
                slot,
                run_id=run_id or uuid4(),
                key=idempotency_key,
                streams=streams,
                pausable=agent.served_model and brought == Brought(),
                direct=brought.tap is None and not brought.callbacks,
            )
            run.start()
            if run.thread_id is None:
                run.turn.set()
            else:
                self._turns.enter(run, run.thread_id, request.multitask_strategy)
            self._keep(run)
            self._live(run, value, brought)
            undo.pop_all()
        self._ledger.put(run.row())
        return run

    def admit(self, user: str, requests: int) -> list[Slot]:
        """Let so many requests in, which are to be started one after another: their slots, of which the first is held.

        Raises as ``start`` does. Who asks must give back what is not used.
        """
        with self._refusals():
            self.gate.check(user)
            first = self.door.admit(user, requests=requests)
        return [first, *(self.door.slot(user) for _ in range(requests - 1))]

    def attach(self, run: Run, min_grace_s: float = 0) -> Attachment:
        """Be a reader of the run. Raises ``TooManyReaders``."""
        seat = self.seat(run.user)
        return run.scope.attach(min_grace_s, seat.close)

    def seat(self, user: str) -> Seat:
        """Be counted as one of the user's readers, until it is closed. Raises ``TooManyReaders``."""
        with self._refusals():
            return self.door.reading(user)

    def allowance(self, user: str) -> dict[str, str]:
        """What is left to the user, as headers."""
        return self.door.allowance(user)

    async def get(self, run_id: str, user: str) -> Run | PastRun:
        """The user's run; of one whose log is gone, its row. Raises ``NotFound``, for another user's too."""
        run: Run | PastRun | None = self._runs.get(run_id)
        if run is None:
            row = await self._ledger.row(run_id)
            run = None if row is None else PastRun(row)
        if run is None or run.user != user:
            raise NotFound("there is no such run", code="unknown_run")
        return run

    async def rows(self, user: str) -> list[Row]:
        """The rows of the user's runs, newest first."""
        kept = {run.run_id: run.row() for run in self.kept(user)}
        past = [row for row in await self._ledger.rows(user, MAX_LISTED) if row["run_id"] not in kept]
        return sorted([*kept.values(), *past], key=lambda row: float(row["created_at"]), reverse=True)[:MAX_LISTED]

    def kept(self, user: str) -> list[Run]:
        """The user's runs that can still be read, newest first."""
        return [run for run in reversed(self._runs.values()) if run.user == user]

    async def usage(self, user: str, days: int) -> dict[str, Any]:
        """What the user has spent in so many days, today's included: see ``runs.report``."""
        now = datetime.now(UTC)
        since = now.date() - timedelta(days=days - 1)
        spent, limits = self.door.budget.spent(user, now.date()), self.door.policy.of(user)
        return report(user, since, await self._ledger.usage(user, since), limits=limits, spent=spent, now=now)

    async def cancel(self, run: Run | PastRun) -> None:
        """End the run now, whoever reads it. Cancelling a run that is over changes nothing."""
        if isinstance(run, Run):
            run.scope.end(Ending("cancelled", "requested"))
            await _soon(run.done)

    async def pause(self, run: Run | PastRun) -> None:
        """Pause the run: at once in mid-answer, in mid-tool at the next model call. Raises ``Unsupported``."""
        if isinstance(run, Run) and not run.finished:
            if not run.pausable:
                raise Unsupported(f"agent {run.agent.name!r} cannot be paused, or not through this route")
            if run.scope.pausing is None:
                run.want_pause("requested")
            await _soon(run.paused)

    async def resume(self, run: Run | PastRun) -> None:
        """Let a paused run go on. One that is not paused is left as it is.

        Raises ``Unavailable`` in a drain, and ``TooManyRequests`` when the user has no place for it now.
        """
        if isinstance(run, Run) and run.status == "paused" and run.scope.ending is None:
            if self.draining.is_set():
                raise Unavailable("the server is shutting down; the run stays paused", retry_after_ms=1000)
            if run.slot is not None:
                with self._refusals():
                    self.door.readmit(run.slot)
            run.go_on()
            await _soon(run.going)

    async def thread(self, thread_id: str, user: str) -> dict[str, Any]:
        """A conversation: its messages and what it waits for. Raises ``NotFound``, for another user's too."""
        row = await self._ledger.thread(thread_id)
        agent = None if row is None else self.agents.get(row.agent)
        if row is None or row.user != user or agent is None:
            raise NotFound("there is no such thread", code="unknown_thread")
        busy = self._turns.busy(thread_id)
        state = await self._state(agent, thread_id)
        told = conversation(state)
        status = busy.status if busy is not None else "interrupted" if told["interrupts"] else "idle"
        run_id = None if busy is None else busy.run_id
        return {**row._asdict(), "status": status, "run_id": run_id, **told}

    @property
    def open_for_runs(self) -> bool:
        """Whether new runs are taken."""
        return not self.draining.is_set()

    @property
    def live(self) -> int:
        """Runs whose task is still going; a paused run's waits."""
        return len(self._lives)

    async def drain(self, grace_s: float) -> None:
        """Refuse new runs, give those that are going ``grace_s`` seconds, then end them. Paused ones are let go."""
        self.draining.set()
        going = [run for run_id in self._lives if not (run := self._runs[run_id]).paused.is_set()]
        if going:
            logger.info("draining: %d runs have %g s to finish", len(going), grace_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    for run in going:
                        await run.paused.wait()  # or over
        await self.close()

    def states(self) -> dict[str, int]:
        """How many runs there are that are not over, by their status."""
        return Counter(str(self._runs[run_id].status) for run_id in self._lives)

    def stop(self) -> None:
        """Refuse new runs and end those that are going; paused ones are let go, the next server has them."""
        self.draining.set()
        self._stopping = True
        for run in [self._runs[run_id] for run_id in self._lives]:
            if run.scope.pausing is None:
                run.scope.end(Ending("cancelled", "shutdown"))
            else:
                run.scope.changed.set()

    async def close(self) -> None:
        """Stop, and wait until every log is closed and every row written."""
        self.draining.set()
        while self._lives:
            self.stop()
            await asyncio.gather(*self._lives.values(), return_exceptions=True)
        self.gate.close()
        await self._ledger.close()

    # Admission

    def _new(
        self,
        agent: Agent,
        request: RunRequest,
        slot: Slot,
        *,
        run_id: UUID,
        key: str | None,
        streams: bool,
        pausable: bool,
        direct: bool = True,
        max_tokens: int | None = None,
    ) -> Run:
        timing, user = self._timing, slot.user
        most = max_tokens or request.max_tokens
        if most is None and self._adaptive and agent.served_model:
            most = self._books.habits.ceiling(user, agent.name)
        grace = request.disconnect_grace_s
        scope = Scope(
            request.on_disconnect or ("cancel" if streams else "continue"),
            timing.disconnect_grace_s if grace is None else grace,
            request.timeout_s or timing.run_timeout_s,
        )
        return Run(
            str(run_id),
            agent=agent,
            request=request,
            user=user,
            idempotency_key=key,
            log=MemoryLog(self._run_max_bytes),
            scope=scope,
            watchdog=Watchdog(
                scope,
                first_token_timeout_s=request.first_token_timeout_s or timing.first_token_timeout_s,
                token_timeout_s=request.token_timeout_s or timing.token_timeout_s,
            ),
            grammar=Grammar() if self._strict else None,
            lag=self._lag,
            pausable=pausable,
            direct=direct,
            max_tokens=most,
            slot=slot,
            gate=self.gate,
            queue_timeout_s=timing.queue_timeout_s,
            tools_at_once=self._tools_at_once,
            account=Account(self._books, run_id=str(run_id), agent=agent.name, user=user, most=most),
        )

    def _let_in(self, user: str, request: RunRequest, brought: Brought, *, reads: bool) -> Slot:
        """The request's slot, its place or one in line, when no limit is reached. A refusal has consumed nothing."""
        with self._refusals():
            if reads and not brought.seated:
                self.door.check_reader(user)
            if brought.slot is not None:
                return brought.slot
            self.gate.check(user)
            waits = request.thread_id is not None and self._turns.busy(request.thread_id) is not None
            return self.door.admit(user, waits=waits)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except MillraceError as error:
            self._books.refused(error)
            raise

    def _refuse_in_drain(self) -> None:
        if self.draining.is_set():
            raise Unavailable("the server is shutting down; start the run again in a moment", retry_after_ms=1000)

    def _keep(self, run: Run) -> None:
        self._runs[run.run_id] = run
        if run.idempotency_key is not None:
            self._by_key[run.user, run.idempotency_key] = run

    async def _admit(self, agent: Agent, thread_id: str, request: RunRequest, user: str, value: Any) -> None:
        """Whether this user may speak on the thread now, and to this agent."""
        self._turns.check(thread_id, request.multitask_strategy)
        row = await self._ledger.claim(thread_id, user, agent.name)
        if row.user != user:
            raise NotFound("there is no such thread", code="unknown_thread")
        if row.agent != agent.name:
            raise Conflict(f"the thread is a conversation with agent {row.agent!r}", code="thread_of_another_agent")
        if self._turns.busy(thread_id) is None:
            _refuse_turn(await self._state(agent, thread_id), request, value)

    async def _state(self, agent: Agent, thread_id: str) -> StateSnapshot:
        return await agent.graph(self._ledger.saver).aget_state({"configurable": {"thread_id": thread_id}})

    async def _restore(self, data: bytes) -> None:
        try:
            held = pause.thaw(data)
            agent = self.agents.get(held.agent)
            if agent is None:
                logger.warning("the paused run %s is kept: there is no agent %r", held.run_id, held.agent)
                return
            streams, pausable = held.on_disconnect == "cancel", agent.served_model
            run = self._new(
                agent,
                held.request,
                self.door.slot(held.user),
                run_id=UUID(held.run_id),
                key=held.key,
                streams=streams,
                pausable=pausable,
                max_tokens=held.max_tokens,
            )
            pause.restore(run, held, self._run_max_bytes)
        except (msgspec.MsgspecError, ValueError):
            logger.exception("a paused run is kept, but this server cannot read it")
            return
        if run.thread_id is None and agent.is_graph:
            await pause.copy_checkpoint(self._ledger.saver, self._kept, run.run_id)
        if run.thread_id is None:
            run.turn.set()
        else:
            self._turns.enter(run, run.thread_id, "enqueue")
        self._keep(run)
        self._live(run, None, Brought(), paused_s=held.paused_s())

    # A run's life

    def _live(self, run: Run, value: Any, brought: Brought, paused_s: float | None = None) -> None:
        life = asyncio.create_task(self._life(run, value, brought, paused_s), name=f"run {run.run_id}")
        self._lives[run.run_id] = life
        life.add_done_callback(lambda _: self._lives.pop(run.run_id, None))

    async def _life(self, run: Run, value: Any, brought: Brought, paused_s: float | None) -> None:
        """One run from its admission to its end, or until this server lets go of it. Never cancelled."""
        with self._turns.place(run), contextlib.ExitStack() as places:
            places.callback(run.rest)  # as `finish` has done, if it came to that
            try:
                outcome = await self._outcome(run, value, brought, paused_s)
            except _LetGo:
                run.abandon()
                return
            except Exception as error:  # noqa: BLE001 - a defect of ours, or the ledger's; the log must have its end
                outcome = self._failed(run, error)
            await self._settle(run, outcome[0])
            run.finish(*outcome)
            if brought.tap is not None:
                brought.tap.close()
            del self._lives[run.run_id]
        if run.threads:
            logger.warning("run %s has ended; %d threads of it are left to end by themselves", run.run_id, run.threads)
        self._ledger.put(run.row())
        self._retire(run)

    async def _outcome(self, run: Run, value: Any, brought: Brought, paused_s: float | None) -> Outcome:
        outcome = None if paused_s is None else await self._stand_still(run, paused_s)
        while outcome is None:
            outcome = await self._act(run, value, brought, again=run.held is not None)
            if outcome is None:
                await self._hold(run)
                outcome = await self._stand_still(run, 0)
        return outcome

    async def _act(self, run: Run, value: Any, brought: Brought, *, again: bool) -> Outcome | None:
        """Drive the graph to its end or to a pause, which is ``None``."""
        task = asyncio.create_task(self._drive(run, value, brought, again=again), name=f"graph of {run.run_id}")
        run.scope.bind(task)
        await asyncio.wait((task,))
        run.scope.unbind()
        ending, pausing = run.scope.ending, run.scope.pausing
        error = task.exception() if not task.cancelled() else asyncio.CancelledError("the agent cancelled itself")
        if ending is not None:
            failure = timed_out(ending.reason or "") if ending.status == "timed_out" else None
            return ending, failure
        if pausing is not None and not run.returned:
            return None
        if error is not None:
            return self._failed(run, error)
        if not run.returned:  # LangChain's event stream swallows a cancel that comes from within
            return self._failed(run, asyncio.CancelledError("the agent cancelled itself"))
        return Ending("completed"), None

    async def _drive(self, run: Run, value: Any, brought: Brought, *, again: bool) -> None:
        await run.turn.wait()
        if run.slot is not None:
            await run.slot.wait()
        if run.thread_id is None or again:
            run.begin()
        else:
            await self._take_turn(run, run.thread_id, value)
        runnable, options = self._served(run, again=again)
        occupant.set(run)
        config: RunnableConfig = {
            **(brought.config or {}),
            "run_id": UUID(run.run_id),
            "callbacks": [*([run.passage] if run.passage is not None else []), run.meter, *brought.callbacks],
            "metadata": {**(brought.config or {}).get("metadata", {}), **_passed_on(run.request.metadata)},
            "configurable": {**(brought.config or {}).get("configurable", {}), **options.configurable},
        }
        sent = None if again and options.checkpointed else _input(run.agent, run.request) if again else value
        raws = runnable.astream_events(sent, config, version="v2", **options.passed)
        async with aclosing(cast("AsyncGenerator[Mapping[str, Any], None]", raws)) as stream:
            async for raw in stream:
                if brought.tap is not None:
                    brought.tap.put(raw)
                run.feed(raw, brought.tap)

    def _served(self, run: Run, *, again: bool) -> "tuple[Runnable[Any, Any], _Options]":
        """The runnable as this run needs it: with the thread's checkpoints, with some of its own, or without."""
        agent, control = run.agent, {"__millrace": run}
        if run.thread_id is not None:
            # A person's answer is stored before it is acted on: who is killed at the deed must not ask for it again.
            kept = {"durability": "sync"} if run.request.resume is not None else {}
            options = _Options({**control, "thread_id": run.thread_id}, kept, True)
            return agent.graph(self._ledger.saver), options
        if run.pausable and agent.is_graph:
            # Nothing is kept before the graph ends or is paused, and then its state alone.
            own = {**control, "thread_id": run.run_id}
            return agent.graph(self._kept), _Options(own, {"durability": "exit"}, True)
        return agent.runnable, _Options(control, {}, False)

    async def _take_turn(self, run: Run, thread_id: str, value: Any) -> None:
        """The thread is this run's: begin, unless it is refused, and put in order what the last one has left of it."""
        state = await self._state(run.agent, thread_id)
        _refuse_turn(state, run.request, value)
        run.begin()  # from here on the thread is repaired at the run's end, also when this repair is broken off
        given = value.get("messages", ()) if isinstance(value, Mapping) else ()
        if is_broken(state, given):  # its server was killed, or could not repair it
            await self._repair(run, LOST, leading(given))

    async def _repair(self, run: Run, why: str, answers: Sequence[ToolMessage] = ()) -> None:
        config: RunnableConfig = {"configurable": {"thread_id": run.thread_id}}
        graph = run.agent.graph(self._ledger.saver)
        await repair(graph, config, said=run.said(), results=run.results(), answers=answers, why=why)

    async def _settle(self, run: Run, ending: Ending) -> None:
        """Leave nothing behind but a thread that is fit for its next turn."""
        abnormal = ending.status not in ("completed", "interrupted")
        if run.thread_id is not None and run.started_at is not None and abnormal:
            with _logged("the thread of run %s could not be repaired", run):
                await self._repair(run, WITHOUT_RESULT[ending.status])
        if run.thread_id is not None:
            with _logged("the thread of run %s could not be dated", run):
                await self._ledger.touch(run.thread_id)
        if run.held is not None:
            await self._release(run)
        if run.thread_id is None and run.pausable and run.agent.is_graph:
            self._kept.delete_thread(run.run_id)
            if run.held is not None:
                with _logged("the checkpoint of run %s could not be deleted", run):
                    await self._ledger.saver.adelete_thread(run.run_id)

    # Pauses

    async def _hold(self, run: Run) -> None:
        """The graph has stopped for a pause: keep what is needed to go on, also by another process."""
        run.stop()
        paused_at = time.time()
        with _logged("run %s is paused, and will not outlive this server", run):
            if run.thread_id is None and run.agent.is_graph:
                await pause.copy_checkpoint(self._kept, self._ledger.saver, run.run_id)
            await self._ledger.hold(run.run_id, pause.freeze(run, paused_at))
            run.durable = True
        run.pause(int(paused_at * 1000))
        run.rest()
        self._ledger.put(run.row())

    async def _release(self, run: Run) -> None:
        run.durable = False
        with _logged("run %s could not be released: a server that is killed now leaves it paused", run):
            await self._ledger.release(run.run_id)

    async def _stand_still(self, run: Run, paused_s: float) -> Outcome | None:
        """Wait until the run goes on, which is ``None``, or ends. Raises ``_LetGo`` when the server stops."""
        try:
            async with asyncio.timeout(max(self._timing.pause_timeout_s - paused_s, 0)):
                while run.scope.ending is None and run.scope.pausing is not None:
                    if self._stopping and run.durable:
                        raise _LetGo
                    if self._stopping:
                        run.scope.end(Ending("cancelled", "shutdown"))
                        break
                    run.scope.changed.clear()
                    await run.scope.changed.wait()
        except TimeoutError:
            run.scope.end(Ending("cancelled", "pause_timeout"))
        if run.scope.ending is not None:
            return run.scope.ending, None
        await self._release(run)
        run.resume()
        self._ledger.put(run.row())
        return None

    def _failed(self, run: Run, error: BaseException | None) -> Outcome:
        failure = LOG_FULL if isinstance(error, LogFull) else describe(error, streamed=run.meter.streamed)
        trace = error if failure.code == "agent_error" else None  # a provider's failure has no story in our frames
        words = ("run %s of agent %s failed: %s: %s", run.run_id, run.agent.name, failure.code, error)
        logger.error(*words, exc_info=trace)
        return Ending("failed", failure.code), failure

    def _retire(self, run: Run) -> None:
        """Keep a finished run readable for a while, then only its row."""
        asyncio.get_running_loop().call_later(self._timing.retention_s, self._expire, run)

    def _expire(self, run: Run) -> None:
        run.expire()
        self._runs.pop(run.run_id, None)
        if run.idempotency_key is not None:
            self._by_key.pop((run.user, run.idempotency_key), None)


class _Options(NamedTuple):
    """How a runnable is called: what goes into ``configurable``, keywords, whether it goes on from a checkpoint."""

    configurable: dict[str, Any]
    passed: dict[str, Any]
    checkpointed: bool


@contextlib.contextmanager
def _logged(problem: str, run: Run) -> Iterator[None]:
    """What fails in here is told to the operator, and keeps nothing from going on."""
    try:
        yield
    except Exception:
        logger.exception(problem, run.run_id)


async def _soon(event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            await event.wait()


def _input(agent: Agent, request: RunRequest) -> Any:
    """What the graph is given: the input in its own terms, or a person's answer to its interrupts."""
    if request.resume is None:
        return agent.prepare(request.input)
    if request.input is not None:
        raise InvalidInput("send either input or resume", detail=[{"field": "resume", "message": "excludes input"}])
    refuse_constructors(request.resume, "resume")
    return Command(resume=request.resume)


def _refuse_turn(state: StateSnapshot, request: RunRequest, value: Any) -> None:
    asked = {one.id for one in state.interrupts}
    if state.interrupts and request.resume is None:
        raise Conflict("the thread waits for a person: answer with resume", code="thread_interrupted")
    if not state.interrupts and request.resume is not None:
        raise Conflict("the thread waits for nobody: there is nothing to resume", code="thread_not_interrupted")
    by_id = isinstance(request.resume, dict) and all(
        map(_INTERRUPT_ID.fullmatch, request.resume)
    )  # so LangGraph reads it
    if by_id and (not request.resume or not set(request.resume) <= asked):
        detail = [{"field": "resume", "message": f"must name interrupts of: {', '.join(sorted(asked))}"}]
        raise InvalidInput("resume answers no interrupt of the thread", detail=detail)
    if len(asked) > 1 and not (isinstance(request.resume, dict) and set(request.resume) <= asked):
        detail = [{"field": "resume", "message": "must be {interrupt_id: value}"}]
        raise InvalidInput("the thread waits for several answers: say by their ids which are given", detail=detail)
    if isinstance(value, Mapping) and isinstance(value.get("messages"), list):
        refuse_loose_calls(state, value["messages"])


def _passed_on(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What of a client's metadata the graph and its callbacks are given; a checkpoint takes no larger integers."""
    return {name: codec.plain(value) for name, value in metadata.items() if not name.startswith(RESERVED)}


def _refuse_unsupported(agent: Agent, request: RunRequest, brought: Brought) -> None:
    refuse_constructors(request.metadata, "metadata")
    if len(codec.dumps(request.metadata)) > MAX_METADATA:
        detail = [{"field": "metadata", "message": f"is over {MAX_METADATA} bytes"}]
        raise InvalidInput(f"metadata is over {MAX_METADATA} bytes", detail=detail)
    can = {"thread_id": agent.has_threads, "resume": agent.has_threads, "max_tokens": agent.served_model}
    can["pause_after"] = agent.served_model and brought.tap is None
    for field, able in can.items():
        if getattr(request, field) is not None and not able:
            raise Unsupported(
                f"agent {agent.name!r} does not support {field}; GET /agents lists what each agent can do",
                detail=[{"field": field, "message": "is not supported by this agent"}],
            )
    if request.resume is not None and request.thread_id is None:
        detail = [{"field": "thread_id", "message": "is needed with resume"}]
        raise InvalidInput("resume needs the thread_id of the conversation that waits", detail=detail)
