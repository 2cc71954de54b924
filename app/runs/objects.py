"""A structured answer while a model writes it: what of it is valid so far, and each field as it comes to its end.

``Shape`` is a JSON schema, asked about one place of a document at a time; ``Growing`` is one document. A value that
its schema does not admit is not shown, nor is what is not complete, but for the beginning of a plain text. Where a
schema is a union, a value is shown that one of its branches admits: whether the whole is valid is for the graph to say.

The fields alone, set at their paths in the order in which they come, make the object: one for each number, text,
boolean and null, wherever it stands, and one for each empty list or object. A value, once shown, stays.

Clients may send schemas: so no reference is ever fetched, and a pattern that searches for long is not met.
Nothing here awaits or raises for what a model writes.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ijson
import jsonschema_rs
from pydantic_core import from_json

from app.events import codec

FIRST_PARSE = 16
"""Characters before the first partial parse; each next one waits until the text grew by an eighth."""

MAX_DEPTH = 60
"""What lies deeper is not shown while it is written."""

Path = list[str | int]

_UNFINISHED = re.compile(r"([\[:,]\s*)-?[\d.eE+-]+$")
_ROOT = "urn:millrace:answer"
_UNIONS = ("allOf", "anyOf", "oneOf")
_AFTERWARDS = frozenset(("enum", "const", "pattern", "format", "contentEncoding", "contentMediaType", "minLength"))
"""What can only be said of a text when it is complete."""


def next_parse(size: int) -> int:
    """How long the text must be for the next parse, so that all snapshots together stay linear in the text."""
    return size + max(size // 8, FIRST_PARSE)


def parsed(text: str) -> Any:
    """The best partial parse: of an incomplete document what there is, of one that is broken None.

    A number at the end is not shown: it may go on, and while it does, as in ``1.`` or ``1e``, it is none.
    """
    try:
        return from_json(_UNFINISHED.sub(r"\1", text), allow_partial="trailing-strings")
    except ValueError:
        return None


_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000, size_limit=1 << 20)
"""Without look-around a pattern takes time linear in the text; with it, no more than so many steps."""


class Form(NamedTuple):
    """That a model call answers with an object: as arguments of a ``call``, else as its text. And by which schema."""

    call: bool
    schema: Mapping[str, Any] | None


def form_of(told: Mapping[str, Any]) -> Form | None:
    """What the options of a model call say of the form of its answer, as LangChain tells them its callbacks.

    ``with_structured_output`` leaves a note of its own, whichever provider; ``response_format`` is the OpenAI wire's.
    """
    options = told.get("options") or {}
    note = options.get("ls_structured_output_format")
    if isinstance(note, Mapping) and isinstance(note.get("schema"), Mapping):
        return Form((note.get("kwargs") or {}).get("method") == "function_calling", note["schema"])
    match options.get("response_format") or (told.get("invocation_params") or {}).get("response_format"):
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return Form(False, schema)
        case {"type": "json_object"}:
            return Form(False, None)
    return None


# -- the schema -------------------------------------------------------------------------------------------------------

Places = tuple[str, ...]
"""Where in a schema a value may be described, as JSON pointers (RFC 6901): several in a union. None: nowhere."""

ANYWHERE: Places = ("?",)
"""The schema says nothing of it: anything goes."""


class Shape:
    """A schema; without one, and where it cannot be read, everything is admitted."""

    def __init__(self, schema: Mapping[str, Any] | None) -> None:
        self._schema = None if schema is None else _readable(schema)
        self._validators: dict[str, jsonschema_rs.Validator | None] = {}
        self._below: dict[tuple[Places, str | int], Places] = {}
        self._registry: jsonschema_rs.Registry | None = None
        if self._schema is not None:
            try:
                self._registry = jsonschema_rs.Registry([(_ROOT, self._schema)], retriever=_refuse)
            except Exception:  # noqa: BLE001 - whatever is wrong with a schema, the provider has taken it
                self._schema = None

    @property
    def root(self) -> Places:
        """The whole document's place."""
        return ANYWHERE if self._schema is None else ("",)

    def below(self, places: Places, step: str | int) -> Places:
        """The place of a property or an item; empty where the schema has none."""
        if places in (ANYWHERE, ()):
            return places
        known = self._below.get((places, step))
        if known is None:
            known = self._find_below(places, step)
            if isinstance(step, str):  # an item's position may be any
                self._below[places, step] = known
        return known

    def admits(self, places: Places, value: Any) -> bool:
        """Whether a complete number, text, boolean or null may stand there."""
        return places == ANYWHERE or any(self._is_valid(place, value) for place in places)

    def opens(self, places: Places, kind: str) -> bool:
        """Whether an ``object`` or an ``array`` may begin there."""
        return places == ANYWHERE or any(_of_type(schema, kind) for _, schema in self._spoken(places))

    def begins(self, places: Places, text: str) -> bool:
        """Whether the beginning of a text can be shown: not where only the whole of it can be judged."""
        return places == ANYWHERE or any(
            _of_type(schema, "string")
            and _AFTERWARDS.isdisjoint(schema)
            and len(text) <= schema.get("maxLength", len(text))
            for _, schema in self._spoken(places)
        )

    def _find_below(self, places: Places, step: str | int) -> Places:
        found: list[str] = []
        free = False
        for place, schema in self._spoken(places):
            below = _property(schema, step) if isinstance(step, str) else _item(schema, step)
            if below is None:
                free = True
            elif below:
                found.append(f"{place}/{below}")
        return tuple(found) or (ANYWHERE if free else ())

    def _spoken(self, places: Places) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """What is said there, behind references and unions."""
        waiting, seen = list(places), set[str]()
        while waiting:
            place = waiting.pop(0)
            schema = self._at(place)
            if place in seen or not isinstance(schema, Mapping):
                continue
            seen.add(place)
            further = [f"{place}/{union}/{at}" for union in _UNIONS for at in range(len(schema.get(union) or ()))]
            reference = schema.get("$ref")
            if isinstance(reference, str) and reference.startswith("#"):
                further.append(reference[1:])
            if not further or "type" in schema or "properties" in schema:
                yield place, schema
            waiting += further

    def _at(self, place: str) -> Any:
        found: Any = self._schema
        for step in place.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping):
                found = found.get(name)
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                return None
        return found

    def _is_valid(self, place: str, value: Any) -> bool:
        if place not in self._validators:
            self._validators[place] = self._validator(place)
        validator = self._validators[place]
        return validator is None or validator.is_valid(value)

    def _validator(self, place: str) -> jsonschema_rs.Validator | None:
        try:
            return jsonschema_rs.validator_for(
                {"$ref": f"{_ROOT}#{_quoted(place)}"},
                registry=self._registry,
                pattern_options=_PATTERNS,
                offline=True,
            )
        except Exception:  # noqa: BLE001 - a schema that we cannot read keeps nothing from being shown
            return None


def _readable(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema under our name for it, so that its references are found by that one; None when it is none."""
    ours = {key: value for key, value in schema.items() if key not in ("$id", "id")}
    try:
        return ours if jsonschema_rs.meta.is_valid(ours) else None
    except Exception:  # noqa: BLE001 - one of a dialect of its own
        return None


def _refuse(uri: str) -> Any:
    """A schema's reference to elsewhere is not followed: not to a file, and not to an address in our network."""
    raise ValueError("references to other documents are not followed")


def _quoted(place: str) -> str:
    return place.replace("%", "%25").replace(" ", "%20").replace('"', "%22")


def _of_type(schema: Mapping[str, Any], kind: str) -> bool:
    named = schema.get("type")
    return named is None or named == kind or (isinstance(named, list) and kind in named)


def _property(schema: Mapping[str, Any], name: str) -> str | None:
    """Where in the schema a property is described; None: anything goes, ``""``: there is no such property."""
    if not _of_type(schema, "object"):
        return ""
    if name in (schema.get("properties") or ()):
        return f"properties/{name.replace('~', '~0').replace('/', '~1')}"
    if schema.get("patternProperties"):
        return None
    extra = schema.get("additionalProperties", True)
    return "additionalProperties" if isinstance(extra, Mapping) else None if extra else ""


def _item(schema: Mapping[str, Any], at: int) -> str | None:
    if not _of_type(schema, "array"):
        return ""
    leading = "prefixItems" if isinstance(schema.get("prefixItems"), list) else "items"
    if isinstance(schema.get(leading), list):
        if at < len(schema[leading]):
            return f"{leading}/{at}"
        leading = "items" if leading == "prefixItems" else "additionalItems"
    rest = schema.get(leading, True)
    return leading if isinstance(rest, Mapping) else None if rest else ""


# -- the document -----------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """A value that is complete, and where it stands."""

    path: Path
    value: Any


class _Open:
    """An object or a list whose end has not come. ``shown``: it is part of what is shown, and so may be its next."""

    __slots__ = ("count", "holder", "key", "places", "shown", "whole")

    def __init__(self, holder: Any, places: Places, *, shown: bool) -> None:
        self.holder = holder
        self.places = places
        self.shown = shown
        self.whole = True
        self.count = 0
        self.key = ""

    @property
    def step(self) -> str | int:
        """Where its current value stands in it."""
        return self.key if isinstance(self.holder, dict) else self.count


class Growing:
    """One document, from its first ``{`` or ``[`` on; what a model says before or after it is passed over."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._heard: Any = ijson.sendable_list()
        self._parser: Any = ijson.basic_parse_coro(self._heard, use_float=True)
        self._text: list[str] = []
        self._size = 0
        self._parse_at = FIRST_PARSE
        self._open: list[_Open] = []
        self._value: Any = None
        self._begun = False
        self._over = False
        self._told: Any = None

    def feed(self, text: str) -> Iterator[Field]:
        """The fields that are complete with this piece of text."""
        if not self._begun:
            text = text[min((at for at in map(text.find, "{[") if at >= 0), default=len(text)) :]
            self._begun = bool(text)
        if not text or self._over:
            return
        self._text.append(text)
        self._size += len(text)
        try:
            self._parser.send(text.encode())
        except (ijson.JSONError, StopIteration):  # broken, or at its end
            self._over = True
        heard = list(self._heard)
        self._heard.clear()
        for event, value in heard:
            yield from self._hear(event, value)

    def partial(self, *, last: bool = False) -> Any:
        """What is valid so far, as JSON's values; None while there is too little new of it, and it is not the last."""
        if self._value is None or (self._size < self._parse_at and not last):
            return None
        self._parse_at = next_parse(self._size)
        value = codec.plain(self._value)
        self._add_beginning(value)
        if value == self._told:
            return None
        self._told = value
        return value

    def _hear(self, event: str, value: Any) -> Iterator[Field]:
        match event:
            case "map_key":
                self._open[-1].key = value
            case "start_map":
                self._begin({}, "object")
            case "start_array":
                self._begin([], "array")
            case "end_map" | "end_array":
                yield from self._end()
            case _:
                yield from self._put(codec.plain(value))

    def _begin(self, holder: Any, kind: str) -> None:
        places = self._place()
        shown = self._is_shown() and self._shape.opens(places, kind) and len(self._open) < MAX_DEPTH
        if shown:
            self._attach(holder)
        self._open.append(_Open(holder, places, shown=shown))

    def _end(self) -> Iterator[Field]:
        closed = self._open.pop()
        if closed.shown and not closed.count:
            yield Field(self._path(), codec.plain(closed.holder))
        self._next(shown=closed.shown)

    def _put(self, value: Any) -> Iterator[Field]:
        shown = self._is_shown() and self._shape.admits(self._place(), value)
        if shown:
            self._attach(value)
            yield Field(self._path(), value)
        self._next(shown=shown)

    def _is_shown(self) -> bool:
        return not self._open or (self._open[-1].shown and self._open[-1].whole)

    def _place(self) -> Places:
        if not self._open:
            return self._shape.root
        above = self._open[-1]
        return self._shape.below(above.places, above.step)

    def _attach(self, value: Any) -> None:
        if not self._open:
            self._value = value
        elif isinstance(self._open[-1].holder, dict):
            self._open[-1].holder[self._open[-1].key] = value
        else:
            self._open[-1].holder.append(value)

    def _next(self, *, shown: bool) -> None:
        """A value is over. In a list whose item is not shown the later ones would stand in the wrong place."""
        if self._open:
            above = self._open[-1]
            above.whole = above.whole and (shown or isinstance(above.holder, dict))
            above.count += 1
        else:
            self._over = True

    def _path(self) -> Path:
        return [one.step for one in self._open]

    def _add_beginning(self, value: Any) -> None:
        """The text that is being written, where its beginning may be shown."""
        if not self._open or not self._is_shown() or self._over:
            return
        text = _walk(parsed("".join(self._text)), path := self._path())
        if isinstance(text, str) and text and self._shape.begins(self._place(), text):
            holder = _walk(value, path[:-1])
            if isinstance(holder, dict):
                holder.setdefault(path[-1], codec.text(text))
            elif isinstance(holder, list):
                holder.append(codec.text(text))


def _walk(value: Any, path: Path) -> Any:
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value
