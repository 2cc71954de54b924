"""The object in a model's answer, read strictly from what the model wrote.

Wherever it stands: as arguments of a call, or as the answer's text. What is certain is mended (``chains.repair``), and
nothing of an answer that was cut. What is not the object that was asked for is said in words that help the model to
correct it. A refusal is told apart, as there is nothing to correct.

Pure: a message in (a ``chains.transcript``), an object out or ``Unfit`` raised.
"""

import json
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import tool_call
from pydantic_core import from_json

from chains.repair import repaired, strict
from chains.schema import Schema, Unfit
from chains.transcript import Written, endings, is_cut, own_id, written

_WITHHELD = frozenset(("content_filter", "refusal", "safety"))


class Refused(Unfit):
    """The model, or its provider, will not answer."""


def read(message: AIMessage, schema: Schema) -> tuple[dict[str, Any], bool]:
    """The object, and whether it was mended; raises ``Unfit``, or ``Refused``."""
    if refusal := _refusal(message):
        raise Refused(refusal)
    call, cut = _call(message), is_cut(message)
    if call is not None and call.text is None:
        return schema.fit(call.args), False
    text, place = (message.text, "the answer") if call is None else (call.text or "", "the arguments")
    value = _object(text, place, cut=cut)
    return schema.fit(value), strict(text) is None


def settled(message: AIMessage, value: dict[str, Any]) -> AIMessage:
    """The answer as a conversation keeps it: the object's JSON, whichever way it was asked for.

    A call without a result, or with one that says nothing, would only be in the way of the next turn.
    """
    text = json.dumps(value, ensure_ascii=False)
    return AIMessage(
        text, id=message.id, usage_metadata=message.usage_metadata, response_metadata=message.response_metadata
    )


def correction(message: AIMessage, schema: Schema, problems: tuple[str, ...]) -> list[AnyMessage]:
    """The answer once more, under its id and as every provider takes it, and what was wrong with it."""
    wrong = "\n".join(f"- {problem}" for problem in problems)
    call = _call(message)
    if call is None:
        said = message.text if message.text.strip() else "(nothing)"  # no provider takes an empty answer
        again = f"Your answer is not valid:\n{wrong}\nWrite the object once more, corrected."
        return [AIMessage(said, id=message.id), HumanMessage(again)]
    error = f"Error: these arguments are not valid:\n{wrong}\nCall {schema.name} once more, corrected."
    return [
        AIMessage(message.text, id=message.id, tool_calls=[tool_call(name=schema.name, args=call.args, id=call.id)]),
        ToolMessage(error, tool_call_id=call.id, name=schema.name, status="error"),
    ]


def _call(message: AIMessage) -> Written | None:
    """The call that the object is in: the first, whatever its name.

    Only one function is offered; and who reads along while it is written is shown that one.
    """
    call = next(iter(written(message)), None)
    return call and call._replace(id=call.id or own_id(message.id or "call", 0))


def _object(text: str, place: str, *, cut: bool) -> dict[str, Any]:
    if not text.strip():
        raise Unfit(f"{place}: empty")
    value = strict(text)
    if value is None and cut:
        raise Unfit(f"{place}: cut off at the limit of tokens, be brief")
    if value is None:
        value = repaired(text)
    if value is None:
        raise Unfit(f"{place}: {_trouble(text)}")
    return value


def _trouble(text: str) -> str:
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        return f"not JSON ({error})"
    if isinstance(value, dict):
        return "a key that comes twice, or a number or character that JSON has not"
    return f"{'an array' if isinstance(value, list) else 'a single value'}, not an object"


def _refusal(message: AIMessage) -> str:
    said = message.additional_kwargs.get("refusal")
    blocks = message.content if isinstance(message.content, list) else []
    said = said or next((one["refusal"] for one in blocks if isinstance(one, dict) and "refusal" in one), None)
    if isinstance(said, str) and said:
        return f"the model refused: {' '.join(said.split())[:150]}"
    return "the provider withheld the answer" if endings(message) & _WITHHELD else ""
