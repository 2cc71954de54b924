"""What a model is told of arguments that do not fit a tool."""

from typing import Annotated, Any

from langchain_core.tools import BaseTool, InjectedToolArg, InjectedToolCallId, StructuredTool, Tool, tool
from langgraph.prebuilt import InjectedState
from pydantic import BaseModel, Field, field_validator

from chains.arguments import build_fit


@tool
def weather(place: str, days: Annotated[int, Field(ge=1)] = 1) -> str:
    """Tell the weather."""
    return place


def test_what_fits_has_no_problem() -> None:
    fit = build_fit(weather)
    assert fit({"place": "Oslo"}) == []
    assert fit({"place": "Oslo", "days": "3"}) == []  # the tool takes it, too
    assert fit({"place": "Oslo", "mood": "fine"}) == []


def test_a_problem_names_the_field_and_what_stood_there() -> None:
    fit = build_fit(weather)
    assert fit({"place": {"not": "a text"}}) == ['place: Input should be a valid string, not {"not": "a text"}']
    assert fit({}) == ["place: Field required"]
    assert fit({"place": "Oslo", "days": 0}) == ["days: Input should be greater than or equal to 1, not 0"]


def test_a_long_value_is_quoted_in_part_and_no_address_is_told() -> None:
    (problem,) = build_fit(weather)({"place": ["x" * 10_000]})
    assert len(problem) < 300
    assert "http" not in problem


def test_arguments_that_are_put_in_are_not_the_models() -> None:
    @tool
    def remember(
        fact: str,
        state: Annotated[dict[str, Any], InjectedState],
        call_id: Annotated[str, InjectedToolCallId],
        user: Annotated[str, InjectedToolArg],
    ) -> str:
        """Remember a fact."""
        return fact

    fit = build_fit(remember)
    assert fit({"fact": "snow"}) == []
    assert fit({}) == ["fact: Field required"]


def test_the_models_own_validators_are_asked() -> None:
    class Place(BaseModel):
        name: str

        @field_validator("name")
        @classmethod
        def known(cls, name: str) -> str:
            if name == "Nowhere":
                raise ValueError("there is no such place")
            if name == "Trap":
                raise RuntimeError("a defect of the validator's")
            return name

    @tool(args_schema=Place)
    def visit(name: str) -> str:
        """Visit a place."""
        return name

    fit = build_fit(visit)
    assert fit({"name": "Nowhere"}) == ['name: Value error, there is no such place, not "Nowhere"']
    assert fit({"name": "Trap"}) == []  # the tool's run will tell


def by_schema(schema: dict[str, Any]) -> BaseTool:
    return StructuredTool.from_function(lambda **given: str(given), name="any", description="Any.", args_schema=schema)


def test_a_tool_with_a_json_schema_is_asked_that() -> None:
    place = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
    fit = build_fit(by_schema(place))
    assert fit({"place": "Oslo"}) == []
    assert fit({}) == ['the arguments: "place" is a required property']
    assert fit({"place": 5}) == ['place: this value is not of type "string" (5)']


def test_nothing_is_fetched_and_a_schema_that_is_none_says_nothing() -> None:
    assert build_fit(by_schema({"$ref": "http://127.0.0.1:1/schema.json"}))({"place": 5}) == []
    assert build_fit(by_schema({"type": "no such type"}))({"place": 5}) == []


def test_a_tool_without_a_schema_takes_anything() -> None:
    assert build_fit(Tool(name="any", description="Any.", func=str))({"__arg1": 1}) == []


def test_a_tool_without_arguments_takes_none() -> None:
    @tool
    def now() -> str:
        """Tell the time."""
        return "noon"

    assert build_fit(now)({}) == []
