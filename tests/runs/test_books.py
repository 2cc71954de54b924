"""What a run came to is told to all who keep count of it: events, budget, ledger, metrics, log; and they agree."""

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from prometheus_client.parser import text_string_to_metric_families
from runners import runner_of, told
from scripted import Gate as Held
from scripted import Scripted, say, words

from app.events.event import RunFinished, Usage
from app.events.request import RunRequest
from app.limits.door import Door
from app.limits.policy import Limits, Policy
from app.runs.books import Books
from app.runs.ledger import Ledger
from app.runs.prices import Price, Prices
from app.runs.run import Run
from app.runs.runner import Runner
from app.telemetry.metrics import Metrics
from chains.answering import serve

Until = Callable[[Callable[[], bool]], Awaitable[None]]
PRICES = Prices({"m": Price(input=1000, output=10_000, cached=100)})


class Named(Scripted):
    """A scripted model with a name, as a provider's has."""

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {**super()._get_ls_params(stop, **kwargs), "ls_model_name": "m"}


def counted(sent: int, received: int, reasoning: int = 0, cached: int = 0) -> dict[str, Any]:
    return {
        "input_tokens": sent,
        "output_tokens": received,
        "total_tokens": sent + received,
        "input_token_details": {"cache_read": cached},
        "output_token_details": {"reasoning": reasoning},
    }


def asking(*turns: Any) -> Any:
    """A graph with one node for each of the turns, one after another."""
    graph, before = StateGraph(MessagesState), START
    for number, turn in enumerate(turns):
        model = Named(turns=[turn])

        async def node(state: MessagesState, model: Any = model) -> dict[str, list[AIMessage]]:
            return {"messages": [await model.ainvoke(state["messages"])]}

        graph.add_node(f"n{number}", node)
        graph.add_edge(before, f"n{number}")
        before = f"n{number}"
    return graph.compile()


class House:
    """A ledger, a door and the books between them."""

    def __init__(self, **options: Any) -> None:
        self.ledger = Ledger()
        self.door = Door(Policy(Limits(max_streams=0)))
        self.metrics = Metrics(["one"])
        self.books = Books(self.ledger, self.door, metrics=self.metrics, prices=PRICES, **options)

    def runner(self, runnable: Any) -> Any:
        return runner_of(runnable, self.ledger, door=self.door, books=self.books)

    def spent(self, user: str = "ann") -> tuple[int, float]:
        spent = self.door.budget.spent(user, datetime.now(UTC).date())
        return spent.tokens, round(spent.cost_usd, 9)

    def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.metrics.render("text/plain")[0].decode())
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(one.value for one in samples if labels.items() <= one.labels.items())


async def start(runner: Runner) -> Run:
    return await runner.start(runner.agent("one"), RunRequest(input="hello"), user="ann", streams=False)


async def test_a_run_is_the_sum_of_its_calls_wherever_it_is_told(until: Until) -> None:
    house = House()
    turns = [say("a", usage_metadata=counted(100, 10, cached=50))], [say("b", usage_metadata=counted(200, 20, 5))]
    async with house.runner(asking(*turns)) as runner:
        events = await told(await start(runner))
        usage = await runner.usage("ann", 1)
    calls = [event for event in events if isinstance(event, Usage)]
    assert [one.model for one in calls] == ["m", "m"]
    # 50 new and 50 cached tokens of input and 10 of output; 200 and 20
    assert [one.cost_usd for one in calls] == pytest.approx([0.155, 0.4])
    total = events[-1]
    assert isinstance(total, RunFinished)
    sums = total.usage
    assert (sums.input_tokens, sums.output_tokens, sums.reasoning_tokens, sums.cached_tokens) == (300, 30, 5, 50)
    assert sums.cost_usd == pytest.approx(0.555)
    assert house.spent() == (330, 0.555)
    assert (usage["total"]["total_tokens"], usage["total"]["cost_usd"]) == (330, 0.555)
    assert usage["total"]["runs"] == {"completed": 1}
    labels = {"agent": "one", "model": "m", "status": "completed"}
    assert house.metric("millrace_tokens_total", kind="input", **labels) == 300
    assert house.metric("millrace_cost_usd_total", **labels) == pytest.approx(0.555)


async def test_a_cancelled_run_tells_what_was_paid_and_what_was_likely_saved(until: Until) -> None:
    house, held = House(), Held()
    whole = [say("x", usage_metadata=counted(10, 100))]
    async with house.runner(asking(whole)) as runner:
        await told(await start(runner))
    house.ledger = Ledger()
    house.books.ledger = house.ledger
    async with house.runner(asking([*words(*["a "] * 40), held])) as runner:
        run = await start(runner)
        await until(lambda: run.last_event_id > 42)
        await runner.cancel(run)
        events = await told(run)
        usage = await runner.usage("ann", 1)
    call = next(event for event in events if isinstance(event, Usage))
    assert (call.output_tokens, call.estimated, call.saved_tokens) == (40, True, 60)
    assert call.saved_usd == pytest.approx(0.6)
    cancelled = usage["total"]["cancelled"]
    assert (cancelled["runs"], cancelled["output_tokens"], cancelled["saved_tokens"]) == (1, 40, 60)
    assert house.metric("millrace_saved_tokens_total") == 60


async def test_a_failed_call_costs_nothing_and_is_counted_as_failed() -> None:
    house = House()
    async with house.runner(asking([ValueError("no")])) as runner:
        events = await told(await start(runner))
    assert isinstance(events[-1], RunFinished)
    assert events[-1].usage.cost_usd == 0
    assert house.spent() == (0, 0)
    assert house.metric("millrace_runs_total", agent="one", status="failed") == 1
    assert house.metric("millrace_model_calls_total", status="failed") == 1


async def test_a_call_without_a_known_price_makes_the_runs_cost_unknown() -> None:
    house = House()
    house.books.prices = Prices()
    async with house.runner(asking([say("a", usage_metadata=counted(10, 1))])) as runner:
        run = await start(runner)
        await told(run)
        usage = await runner.usage("ann", 1)
    assert run.usage.cost_usd is None
    assert (usage["total"]["cost_usd"], usage["total"]["unpriced_calls"]) == (None, 1)


async def test_what_was_paused_was_paid_and_is_not_told_as_saved(until: Until) -> None:
    house, held = House(), Held()
    model = serve(Named(turns=[[*words("a ", "b "), held], words("a ", "b ", "c")]))
    graph = StateGraph(MessagesState)

    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph.add_node("n", node)
    graph.add_edge(START, "n")
    async with runner_of(graph.compile(), house.ledger, ours=True, door=house.door, books=house.books) as runner:
        run = await start(runner)
        await until(lambda: run.last_event_id > 4)
        await runner.pause(run)
        assert house.metric("millrace_model_calls_total", status="paused") == 1
        assert house.spent()[0] > 0
        await runner.resume(run)
        await told(run)
    assert run.usage.saved_tokens == 0
    assert house.metric("millrace_runs_total", status="completed") == 1


async def test_a_run_has_one_line_in_the_log_and_no_word_of_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    with caplog.at_level(logging.INFO, "millrace.runs"):
        async with house.runner(asking([say("secret", usage_metadata=counted(10, 1))])) as runner:
            await told(await start(runner))
    lines = [record for record in caplog.records if record.name == "millrace.runs"]
    assert len(lines) == 1
    assert "secret" not in str(lines[0].__dict__)
    assert "hello" not in str(lines[0].__dict__)


async def test_what_was_said_is_logged_where_the_operator_wants_it(caplog: pytest.LogCaptureFixture) -> None:
    house = House(prompts=True)
    with caplog.at_level(logging.INFO, "millrace.runs"):
        async with house.runner(asking([say("secret", usage_metadata=counted(10, 1))])) as runner:
            await told(await start(runner))
    assert "secret" in str(caplog.records[-1].__dict__)
    assert "hello" in str(caplog.records[-1].__dict__)


class Broken(Metrics):
    """Metrics with a defect."""

    def call(self, call: Any) -> None:
        raise ZeroDivisionError

    def run(self, run: Any) -> None:
        raise ZeroDivisionError


async def test_a_defect_in_the_books_costs_no_run_its_end() -> None:
    house = House()
    house.books.metrics = Broken(["one"])
    async with house.runner(asking([say("a", usage_metadata=counted(10, 1))])) as runner:
        events = await told(await start(runner))
    assert isinstance(events[-1], RunFinished)
    assert events[-1].status == "completed"
    assert house.spent() == (11, 0.02)
