"""The schema an object must fit: that of a Pydantic model of ours, or a JSON schema that came with a request.

A client's schema is looked through before anything is done with it. No reference is ever fetched. What it may cost to
check an object is bounded beforehand: by its size with every reference spelt out (references to references double
with each step), and by patterns that may not search long. A schema that refers to itself has no such bound, and is
refused like any other that cannot be used, with a message that says why.

Pure: nothing here calls a model, and an object is judged, never changed to fit, but for what Pydantic reads as equal.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import unquote

import jsonschema_rs
import orjson
from pydantic import BaseModel, ValidationError

MAX_BYTES = 64 * 1024
"""Of a client's schema, as JSON."""

MAX_PARTS = 2000
"""Objects and lists in it, each reference counted as what it refers to."""

MAX_DEPTH = 64
"""How deep they may be nested, references followed."""

MAX_PATTERNS = 100
"""Regular expressions: what each may cost is bounded too, see ``_PATTERNS``."""

MAX_PROBLEMS = 10
"""Of an object, that are told."""

_LONGEST = 200  # characters of one problem
_NAME = re.compile(r"[^a-zA-Z0-9_-]+")
_AMBIGUOUS = ("$schema", "$id", "id", "name", "strict", "schema", "parameters", "input_schema", "toolSpec")
_DRAFT_4 = re.compile(r"https?://json-schema\.org/draft-0[34]/")

# An expression that needs no look-around runs in time linear in the text; one that does, as generators
# write for decimals, gives up after so many steps, and the text counts as wrong.
_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000, size_limit=1 << 20)


class BadSchema(ValueError):
    """A client's schema cannot be used; the message says why, for whoever sent it."""

    failure_code = "invalid_schema"


class Unfit(Exception):
    """What a model wrote is not the object that was asked for. ``problems``: short lines, one at least."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Schema(NamedTuple):
    """What a model is told (``name``, and ``told``, a JSON schema with that title), and how its object is judged."""

    name: str
    told: dict[str, Any]
    fit: Callable[[dict[str, Any]], dict[str, Any]]
    """The object as plain JSON; raises ``Unfit``."""


def of_model(model: type[BaseModel]) -> Schema:
    """A Pydantic model's."""

    def fit(value: dict[str, Any]) -> dict[str, Any]:
        try:
            return model.model_validate(value).model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            raise Unfit(*(_problem(one["loc"], one["msg"]) for one in found[:MAX_PROBLEMS])) from None

    told = model.model_json_schema()
    return Schema(_name(told), _told(told), fit)


def of_request(given: Mapping[str, Any]) -> Schema:
    """A client's JSON schema, of draft 6 or later. Raises ``BadSchema``.

    Formats (``date``, ``email``) are checked where the schema's draft says so: up to draft 7.
    """
    schema = _rooted(given)
    validator = _validator(schema)

    def fit(value: dict[str, Any]) -> dict[str, Any]:
        found = [_problem(one.instance_path, one.message) for one in islice(validator.iter_errors(value), MAX_PROBLEMS)]
        if found:
            raise Unfit(*found)
        return value

    return Schema(_name(schema), _told(schema), fit)


def _problem(path: Any, message: str) -> str:
    place = ".".join(map(str, path))
    line = " ".join((f"{place}: {message}" if place else message).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _name(schema: Mapping[str, Any]) -> str:
    """A name that every provider takes for a function: from the title."""
    return _NAME.sub("_", str(schema.get("title", ""))).strip("_")[:64] or "answer"


def _told(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is for validators, and what LangChain would take for another way to describe a function."""
    rest = {key: value for key, value in schema.items() if key not in _AMBIGUOUS}
    return {"description": "What is to be found in the text.", **rest, "title": _name(schema), "type": "object"}


# -- a client's -------------------------------------------------------------------------------------------------------


def _rooted(given: Mapping[str, Any]) -> dict[str, Any]:
    """The schema, bounded, with its properties at its root: providers want them there, and generators may not."""
    if not isinstance(given, Mapping):
        raise BadSchema("the schema must be a JSON object")
    try:
        size = len(orjson.dumps(given))
    except TypeError:
        raise BadSchema("the schema must be plain JSON, not nested too deeply") from None
    if size > MAX_BYTES:
        raise BadSchema(f"the schema is larger than {MAX_BYTES} bytes")
    _Extent(given).check()
    schema = dict(given)
    while isinstance(reference := schema.pop("$ref", None), str):
        target = _target(given, reference)
        schema = {**target, **schema} if isinstance(target, Mapping) else schema
    if schema.get("type", "object") != "object":
        raise BadSchema('the schema must describe an object: "type": "object" at its root')
    if not isinstance(schema.get("properties"), Mapping) or not schema["properties"]:
        raise BadSchema('the schema has no "properties": name at least one field to fill')
    return {**schema, "type": "object"}


def _validator(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    if _DRAFT_4.match(str(schema.get("$schema", ""))):
        raise BadSchema("the schema is of an old draft; 6, 7, 2019-09 and 2020-12 are understood")
    anonymous = {key: value for key, value in schema.items() if key != "$id"}
    try:
        return jsonschema_rs.validator_for(anonymous, mask="the value", pattern_options=_PATTERNS, offline=True)
    except ValueError as error:
        problem = _problem(getattr(error, "instance_path", ()), getattr(error, "message", "it is broken"))
        raise BadSchema(f"the schema is not valid: {problem}") from None


class _Extent:
    """How large a schema is with its references spelt out. Each target is measured once, however often it is used."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[str, tuple[int, int]] = {}
        self._open: list[str] = []
        self._patterns = 0

    def check(self) -> None:
        """Raise ``BadSchema`` where it is too large, too deep, has no end, or points out of itself."""
        parts, _ = self._of(self._root, 0)
        if parts > MAX_PARTS:
            raise BadSchema(f"the schema has more than {MAX_PARTS} parts, its references spelt out")
        if self._patterns > MAX_PATTERNS:
            raise BadSchema(f"the schema has more than {MAX_PATTERNS} patterns")

    def _of(self, node: Any, depth: int) -> tuple[int, int]:
        """``(parts, depth)`` of what is there."""
        if not isinstance(node, Mapping | list):
            return 0, 0
        if depth > MAX_DEPTH:
            raise BadSchema(f"the schema is nested deeper than {MAX_DEPTH} levels")
        below = [self._of(item, depth + 1) for item in (node.values() if isinstance(node, Mapping) else node)]
        if isinstance(node, Mapping):
            if depth and isinstance(node.get("$id"), str):  # its references would begin elsewhere
                raise BadSchema("a part of the schema has an $id of its own: only the whole may have one")
            self._count_patterns(node)
            below += [self._referred(reference, depth + 1) for reference in _references(node)]
        parts, deepest = 1 + sum(one[0] for one in below), 1 + max((one[1] for one in below), default=0)
        if depth + deepest > MAX_DEPTH:
            raise BadSchema(f"the schema is nested deeper than {MAX_DEPTH} levels, its references followed")
        return parts, deepest

    def _referred(self, reference: str, depth: int) -> tuple[int, int]:
        if reference in self._open or reference == "#":
            raise BadSchema(f"the schema refers to itself ({reference}): spell out as many levels as you need")
        if reference not in self._known:
            self._open.append(reference)
            self._known[reference] = self._of(_target(self._root, reference), depth)
            self._open.pop()
        return self._known[reference]

    def _count_patterns(self, node: Mapping[str, Any]) -> None:
        self._patterns += isinstance(node.get("pattern"), str)
        named = node.get("patternProperties")
        self._patterns += len(named) if isinstance(named, Mapping) else 0


def _references(node: Mapping[str, Any]) -> Iterator[str]:
    """References alone: a property that is called ``$ref`` has a schema, and no text."""
    for key in ("$dynamicRef", "$recursiveRef"):
        if isinstance(node.get(key), str):
            raise BadSchema(f"the schema has a {key}: use $ref")
    if isinstance(node.get("$ref"), str):
        yield node["$ref"]


def _target(root: Mapping[str, Any], reference: str) -> Any:
    if not reference.startswith("#/"):
        raise BadSchema(f"the schema refers to {reference[:100]!r}: only to its own parts (#/$defs/…) it may")
    found: Any = root
    for step in reference.split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            found = found.get(name) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping | bool):
        raise BadSchema(f"the schema refers to {reference[:100]!r}, which is not in it")
    return found
