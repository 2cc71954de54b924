"""Whether arguments fit a tool, told for a model: where they do not, what is wrong, and what it wrote there.

A tool with a pydantic model is asked that model, validators included, as LangChain asks it when the tool runs; one with
a JSON Schema (MCP's, for instance) is asked the schema. Arguments that LangGraph puts in, such as the state, are no
business of the model's. Nothing is fetched from anywhere, and nothing raises: what cannot be asked fits.
"""

import json
from collections.abc import Callable, Mapping, Set
from itertools import islice
from typing import Any

import jsonschema_rs
from langchain_core.tools import ArgsSchema, BaseTool
from langchain_core.utils.pydantic import get_fields
from pydantic import BaseModel, ValidationError
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import ValidationError as ValidationErrorV1

Fit = Callable[[dict[str, Any]], list[str]]
"""Arguments → a line for each problem; none: they fit."""

MOST = 20
"""Problems that are told; of more, so many."""

LONGEST = 200
"""Characters of one problem."""

QUOTED = 60
"""Characters of what stood there instead."""


# An expression that needs look-around gives up after so many steps: what it has not found by then is not there.
_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000, size_limit=1 << 20)


def build_fit(tool: BaseTool) -> Fit:
    """The tool's own view of its arguments, but for those that are put in when it runs."""
    schema = tool.args_schema
    if schema is None:
        return lambda args: []
    if isinstance(schema, dict):
        return _json_schema(schema)
    injected = get_fields(tool.get_input_schema()).keys() - get_fields(_model(tool.tool_call_schema)).keys()
    return lambda args: _misfits(_model(schema), args, injected)


def _model(schema: ArgsSchema) -> type[BaseModel | BaseModelV1]:
    assert isinstance(schema, type)
    return schema


def _misfits(schema: type[BaseModel | BaseModelV1], args: dict[str, Any], injected: Set[str]) -> list[str]:
    try:
        schema.parse_obj(args) if issubclass(schema, BaseModelV1) else schema.model_validate(args)
    except (ValidationError, ValidationErrorV1) as error:
        found = [one for one in error.errors() if not one["loc"] or one["loc"][0] not in injected]
        return [_line(".".join(map(str, one["loc"])), one["msg"], one) for one in found]
    except Exception:  # noqa: BLE001 - a validator of the user's may raise anything: the tool's run will tell of it
        return []
    return []


def _line(where: str, problem: str, told: Mapping[str, Any]) -> str:
    given = "" if told["type"] == "missing" or "input" not in told else f", not {_quoted(told['input'])}"
    return f"{where or 'the arguments'}: {shown(problem, LONGEST)}{given}"


def _quoted(value: object) -> str:
    return shown(json.dumps(value, ensure_ascii=False, default=str), QUOTED)


def _json_schema(schema: dict[str, Any]) -> Fit:
    try:
        validator = jsonschema_rs.validator_for(schema, pattern_options=_PATTERNS, mask="this value", offline=True)
    except (ValueError, jsonschema_rs.ReferencingError):
        return lambda args: []  # a schema that is none says nothing of arguments; the tool will
    return lambda args: [_misfit(one, args) for one in islice(validator.iter_errors(args), MOST + 1)]


def _misfit(error: jsonschema_rs.ValidationError, args: dict[str, Any]) -> str:
    where = ".".join(map(str, error.instance_path))
    given = f" ({_quoted(error.instance)})" if where else ""
    return f"{where or 'the arguments'}: {shown(error.message, LONGEST)}{given}"


def shown(text: str, chars: int) -> str:
    """The text, or its beginning and a sign that there is more."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= chars else f"{text[:chars]}…"
