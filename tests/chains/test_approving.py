"""The node that asks a person, in a graph of calls and tools alone."""

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command
from pydantic import BaseModel, Field

from chains.approving import build_approve, needs_approval
from chains.toolnode import build_tool_node, open_calls

CONFIG: RunnableConfig = {"configurable": {"thread_id": "t"}}


class Bank:
    """Tools that leave a trace: one is marked, one is not, one is marked and known by a JSON schema."""

    def __init__(self) -> None:
        self.done: list[Any] = []

        class Transfer(BaseModel):
            to: str
            amount: int = Field(gt=0)

        @tool(args_schema=Transfer)
        async def pay(to: str, amount: int) -> str:
            """Pay somebody.

            More words, for the model.
            """
            self.done.append((to, amount))
            return f"{to} has {amount}"

        @tool
        async def look() -> str:
            """Look."""
            self.done.append("looked")
            return "all there"

        @tool(args_schema={"type": "object", "properties": {"why": {"type": "string"}}, "required": ["why"]})
        async def close(**args: Any) -> str:
            """Close the account."""
            self.done.append(args)
            return "closed"

        pay.metadata = {"needs_approval": True}
        close.metadata = {"needs_approval": True}
        self.tools: list[BaseTool] = [pay, look, close]
        graph = StateGraph(MessagesState)
        graph.add_node("approve", build_approve(self.tools))
        graph.add_node("tools", build_tool_node(self.tools))
        graph.add_edge(START, "approve")
        graph.add_conditional_edges(
            "approve", lambda state: "tools" if open_calls(state["messages"]) else "__end__", ["tools", "__end__"]
        )
        self.graph: CompiledStateGraph[Any, Any, Any, Any] = graph.compile(checkpointer=InMemorySaver())

    async def asked(self, *calls: tuple[str, dict[str, Any]], **fields: Any) -> Any:
        """Make these calls; what the person is asked, or None."""
        made = [
            {"name": name, "args": args, "id": f"c{n}", "type": "tool_call"} for n, (name, args) in enumerate(calls)
        ]
        message = AIMessage(**{"content": "", "id": "m", "tool_calls": made, **fields})
        return self._question(await self.graph.ainvoke({"messages": [HumanMessage("go"), message]}, CONFIG))

    async def answered(self, answer: Any) -> Any:
        """Answer; what the person is asked next, or None."""
        return self._question(await self.graph.ainvoke(Command(resume=answer), CONFIG))

    def messages(self) -> list[Any]:
        return list(self.graph.get_state(CONFIG).values["messages"][1:])

    def results(self) -> list[tuple[Any, ...]]:
        return [(one.tool_call_id, one.status, one.content) for one in self.messages() if isinstance(one, ToolMessage)]

    @staticmethod
    def _question(state: Any) -> Any:
        found = state.get("__interrupt__", ())
        return found[0].value if found else None


PAY = ("pay", {"to": "ada", "amount": 5})
LOOK: tuple[str, dict[str, Any]] = ("look", {})
REJECTED = "Error: a person rejected this call, and it was not made. Do not repeat it unless you are asked to."


def test_a_tool_needs_approval_if_it_is_marked() -> None:
    assert [needs_approval(one) for one in Bank().tools] == [True, False, True]


async def test_calls_of_unmarked_tools_pass_unasked() -> None:
    bank = Bank()
    assert await bank.asked(LOOK) is None
    assert bank.done == ["looked"]


async def test_the_question_has_the_shape_of_langchains_middleware_with_the_id_of_each_call() -> None:
    assert await Bank().asked(PAY, LOOK) == {
        "action_requests": [
            {
                "name": "pay",
                "args": {"to": "ada", "amount": 5},
                "description": "pay runs only when a person has approved it: Pay somebody.",
                "call_id": "c0",
            }
        ],
        "review_configs": [{"action_name": "pay", "allowed_decisions": ["approve", "edit", "reject"]}],
    }


async def test_nothing_of_the_message_runs_before_the_answer() -> None:
    bank = Bank()
    await bank.asked(LOOK, PAY)
    assert bank.done == []
    await bank.answered("approve")
    assert sorted(bank.done, key=str) == [("ada", 5), "looked"]
    assert [one[0] for one in bank.results()] == ["c0", "c1"]


async def test_calls_that_have_a_result_are_not_asked_about() -> None:
    bank = Bank()
    message = AIMessage("", tool_calls=[{"name": "pay", "args": {}, "id": "c", "type": "tool_call"}])
    given = [HumanMessage("go"), message, ToolMessage("Error: no such arguments", tool_call_id="c", status="error")]
    assert "__interrupt__" not in await bank.graph.ainvoke({"messages": given}, CONFIG)
    assert bank.done == []


@pytest.mark.parametrize(
    "answer",
    ["approve", {"type": "approve"}, {"decisions": [{"type": "approve"}]}, {"decisions": ["approve"]}],
    ids=str,
)
async def test_an_approval_lets_the_call_pass_as_it_is(answer: Any) -> None:
    bank = Bank()
    await bank.asked(PAY)
    assert await bank.answered(answer) is None
    assert bank.done == [("ada", 5)]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("reject", REJECTED),
        ({"type": "reject"}, REJECTED),
        ({"type": "reject", "message": "too much"}, f"{REJECTED} They say: too much"),
        ({"decisions": [{"type": "reject", "message": "too much"}]}, f"{REJECTED} They say: too much"),
    ],
    ids=str,
)
async def test_a_rejection_is_told_to_the_model_with_the_persons_words(answer: Any, said: str) -> None:
    bank = Bank()
    await bank.asked(PAY)
    assert await bank.answered(answer) is None
    assert (bank.done, bank.results()) == ([], [("c0", "error", said)])


@pytest.mark.parametrize(
    "answer",
    [
        {"type": "edit", "args": {"to": "bob", "amount": 1}},
        {"type": "edit", "edited_action": {"args": {"to": "bob", "amount": 1}}},
        {"decisions": [{"type": "edit", "edited_action": {"name": "pay", "args": {"to": "bob", "amount": 1}}}]},
    ],
    ids=str,
)
async def test_an_edited_call_is_made_as_edited_and_the_conversation_says_so(answer: Any) -> None:
    bank = Bank()
    block = {"type": "tool_use", "id": "c0", "name": "pay", "input": {"to": "ada", "amount": 5}}
    await bank.asked(PAY, content=[{"type": "text", "text": "Well."}, block])
    assert await bank.answered(answer) is None
    assert bank.done == [("bob", 1)]
    message = bank.messages()[0]
    assert (message.id, message.tool_calls[0]["args"]) == ("m", {"to": "bob", "amount": 1})
    assert message.content == [{"type": "text", "text": "Well."}, {**block, "input": {"to": "bob", "amount": 1}}]


async def test_several_calls_are_decided_each_on_its_own() -> None:
    bank = Bank()
    question = await bank.asked(PAY, ("pay", {"to": "bob", "amount": 1}), ("close", {"why": "?"}), LOOK)
    assert [one["call_id"] for one in question["action_requests"]] == ["c0", "c1", "c2"]
    edit = {"type": "edit", "edited_action": {"name": "close", "args": {"why": "moved"}}}
    assert await bank.answered({"decisions": [{"type": "reject"}, {"type": "approve"}, edit]}) is None
    assert sorted(bank.done, key=str) == [("bob", 1), "looked", {"why": "moved"}]
    assert [(call_id, status) for call_id, status, _ in bank.results()] == [
        ("c0", "error"), ("c1", "success"), ("c2", "success"), ("c3", "success"),
    ]  # fmt: skip


@pytest.mark.parametrize(("answer", "done"), [("approve", 2), ("reject", 0)])
async def test_a_short_answer_is_for_all_calls(answer: str, done: int) -> None:
    bank = Bank()
    await bank.asked(PAY, PAY)
    assert await bank.answered(answer) is None
    assert len(bank.done) == done


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("maybe", "Decide about pay by a type that is one of approve, edit, reject"),
        (True, "Decide about pay"),
        ([], "Decide about pay"),
        ({"type": "respond", "message": "done"}, "Decide about pay"),
        ({"decisions": []}, "Send a list of 1 decisions"),
        ({"decisions": ["approve", "approve"]}, "Send a list of 1 decisions"),
        ({"decisions": "approve"}, "Send a list of 1 decisions"),
        ({"decisions": [None]}, "Decide about pay"),
        ({"type": "reject", "message": 5}, "must be a text"),
        ({"type": "edit"}, "An edit carries the whole arguments"),
        ({"type": "edit", "args": "ada"}, "An edit carries the whole arguments"),
        ({"type": "edit", "edited_action": 1}, "An edit carries the whole arguments"),
        ({"type": "edit", "edited_action": {"name": "look", "args": {}}}, "not which tool is called"),
        ({"type": "edit", "args": {"to": "ada", "amount": 0}}, "do not fit pay: amount: "),
        (
            {"type": "edit", "args": {"to": "ada", "amount": 1, "bcc": "eve"}},
            "pay takes no argument bcc; it takes to, ",
        ),
        ({"type": "edit", "args": {"to": "ada"}}, "do not fit pay: amount: "),
    ],
    ids=str,
)
async def test_an_answer_that_cannot_be_followed_is_asked_for_again(answer: Any, problem: str) -> None:
    bank = Bank()
    first = await bank.asked(PAY, LOOK)
    again = await bank.answered(answer)
    assert problem in again.pop("problem")
    assert (again, bank.done) == (first, [])
    once_more = await bank.answered("perhaps")  # as often as it takes
    assert "Decide about pay" in once_more["problem"]
    assert await bank.answered("approve") is None
    assert sorted(bank.done, key=str) == [("ada", 5), "looked"]


async def test_an_empty_answer_is_none_and_the_question_stands() -> None:
    bank = Bank()
    first = await bank.asked(PAY)
    assert await bank.answered({}) == first
    assert await bank.answered("approve") is None
    assert bank.done == [("ada", 5)]


async def test_one_wrong_decision_among_several_makes_none_of_them_count() -> None:
    bank = Bank()
    await bank.asked(PAY, PAY)
    assert "problem" in await bank.answered({"decisions": ["approve", "what?"]})
    assert "which to edit" in (await bank.answered({"type": "edit", "args": {"to": "eve", "amount": 9}}))["problem"]
    assert await bank.answered({"decisions": ["reject", "reject"]}) is None
    assert bank.done == []


async def test_edited_arguments_are_checked_by_a_json_schema_too() -> None:
    bank = Bank()
    await bank.asked(("close", {"why": "?"}))
    assert "do not fit close" in (await bank.answered({"type": "edit", "args": {"why": 5}}))["problem"]


async def test_it_can_be_asked_and_answered_without_a_loop() -> None:
    bank = Bank()

    def ask() -> Any:
        call = {"name": "pay", "args": PAY[1], "id": "c0", "type": "tool_call"}
        given = {"messages": [HumanMessage("go"), AIMessage("", tool_calls=[call])]}
        return bank.graph.invoke(given, CONFIG)["__interrupt__"][0].value

    assert (await asyncio.to_thread(ask))["action_requests"][0]["name"] == "pay"
    await asyncio.to_thread(bank.graph.invoke, Command(resume="reject"), CONFIG)
    assert bank.results() == [("c0", "error", REJECTED)]
