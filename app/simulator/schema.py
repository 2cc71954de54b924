"""A value that fits a JSON schema, filled from a text: how the simulated model writes arguments and documents.

What the text gives under a property's name ("Street: 5 Mill Lane", "net 49.60") goes to that property. Else names and
quoted phrases of the text go to strings, its numbers to numbers, its dates and addresses to where such are wanted, in
order; what the text does not say gets a plain placeholder. Follows ``$ref``, ``allOf``, ``anyOf`` (the first branch
that is not null), enums, constants, bounds, nested objects and arrays. The same schema and text give the same value.

Never searches: a ``pattern`` that neither the text nor a short list of usual shapes meets stays unmet.
"""

import math
import re
from typing import Any

import jsonschema_rs

Schema = dict[str, Any]

_DEPTH = 6  # past this, optional things are left out: a schema may contain itself
_MANY = 1000  # and past so many values
_BOTTOM = 64  # past this, the schema admits no finite value at all
_FAR = 1e15
_MOST_ITEMS = 1000  # of one list
_MOST_CHARS = 10_000  # of one text
_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000)

_NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w])")
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|(?<!\w)'([^']+)'(?!\w)")
_CODE = re.compile(r"\b(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9][\w-]*\b")
_CAPITALISED = re.compile(r"\b[A-Z][\w’'-]*(?:\s+(?:(?:of|the|de|van|von)\s+)?[A-Z][\w’'-]*)*")
_OPENING_WORDS = (
    "a add an and are at book buy calculate call can cancel change check close compare compute convert could"
    " create do does extract find for get give hello hey hi how i i'm in is it let list look make move my name no"
    " of ok okay on open order pay plan please read run search send set show start stop summarise summarize tell"
    " the then this to translate use was we what what's when where which who why will would write yes you"
)
_OPENERS = frozenset(_OPENING_WORDS.split())
_IDENTIFIER = re.compile(r"(?:^|_)(?:id|number|no|code|key|ref)$|Id$")

_WRITTEN = {
    "date": re.compile(r"\b\d{4}-\d\d-\d\d\b(?!T\d)"),
    "date-time": re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)"),
    "email": re.compile(r"\b[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[a-z]{2,24}\b"),
    "uri": re.compile(r"\bhttps?://[^\s<>\"]{1,500}[^\s<>\".,;)]"),
}
_PHONE = re.compile(r"\+\d[\d ()-]{5,20}\d")
_CALLED = r"(?i)(?<!\w){name}\s*[:=]\s*(?:\"([^\"\n]+)\"|([^\s,;\n\"](?:[^,;\n.]|\.(?!\s|$))*))"
_COUNTED = r"(?i)(?<!\w){name}\s*[:=]?\s*[€$£]?\s*(-?\d+(?:,\d{{3}})*(?:\.\d+)?)(?![\w-])"

_SENTENCE = re.compile(r"\s*[^\n]{1,300}?(?:[.!?](?=\s|$)|(?=\n)|$)")
_WORDS = frozenset(("type", "enum", "const", "format", "pattern", "minLength", "maxLength"))

_FORMATS = {
    "date": "2026-01-15",
    "date-time": "2026-01-15T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_USUAL = (
    "example",
    "EXAMPLE",
    "Example",
    "A1",
    "a1",
    "1",
    "12",
    "123",
    "1234",
    "12345",
    "1.0",
    "#336699",
    "A-1",
    "A-123",
)


def numbers(text: str) -> list[float]:
    """The numbers that stand in the text, in order."""
    return [_number(found) for found in _NUMBER.findall(text)]


def _number(written: str) -> float:
    return float(written.replace(",", ""))


def _without_written(text: str) -> str:
    """The text with dates, addresses and telephone numbers blanked out: their digits are no numbers."""
    for written in (*_WRITTEN.values(), _PHONE):
        text = written.sub(lambda match: " " * len(match.group()), text)
    return text


def _spelt(name: str) -> str:
    """The words of ``unit_price`` and ``unitPrice``, as a pattern."""
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name))
    return r"[\s_-]*".join(map(re.escape, words)) or r"(?!)"


def phrases(text: str) -> list[str]:
    """What the text points at: quoted phrases, then codes such as ``A-17``, then capitalised names."""
    quoted = ["".join(groups) for groups in _QUOTED.findall(text)]
    rest = _QUOTED.sub(" ", text)
    names = (_without_openers(match.group()) for match in _CAPITALISED.finditer(rest))
    found = quoted + _CODE.findall(rest) + [name for name in names if name]
    return list(dict.fromkeys(found))


def _without_openers(name: str) -> str:
    words = name.split()
    while words and words[0].lower().replace("’", "'") in _OPENERS:
        words.pop(0)
    return " ".join(words)


class Filler:
    """Fills one schema from one text.

    ``text_for_strings``: what a string becomes when the text names nothing (tools get the question itself); without
    it, a placeholder with the property's name. ``everything``: fill optional properties too.
    """

    def __init__(self, text: str, *, text_for_strings: str | None = None, everything: bool = True) -> None:
        self._text = text
        plain = _without_written(text)
        self._numbers = [(match.start(), _number(match.group())) for match in _NUMBER.finditer(plain)]
        self._spare = [f"{number:g}" for _, number in self._numbers]
        self._phrases = phrases(text)
        self._written = {kind: written.findall(text) for kind, written in _WRITTEN.items()}
        self._text_for_strings = text_for_strings
        self._everything = everything
        self._root: Schema = {}
        self._made = 0
        self._taken: set[int] = set()  # where in the text the options stand that were chosen, and what has a name

    def fill(self, schema: Schema, given: dict[str, Any] | None = None) -> Any:
        """A value for ``schema``; ``given`` decides properties of the outermost object beforehand."""
        self._root = schema
        outer = self._resolve(schema)
        if given is None and not _is_object(outer):
            return self._value(outer, "value", 0)
        return self._object(outer, 0, {**self._about(outer), **(given or {})})

    def _about(self, outer: Schema) -> dict[str, str]:
        """What is said of the text as a whole, where its summary is wanted: the words it begins with."""
        properties: dict[str, Any] = outer.get("properties") or {}
        sentence = _SENTENCE.match(self._text)
        if "summary" not in properties or sentence is None:
            return {}
        said = sentence.group().strip()
        about = {"title": " ".join(said.split()[:8]).rstrip(".:,;"), "summary": said, "language": "en"}
        plain = {name: self._resolve(properties.get(name, False)) for name in about}
        return {name: about[name] for name, schema in plain.items() if schema.keys() & _WORDS == {"type"}}

    def _resolve(self, schema: Any, fuel: int = 32) -> Schema:
        """The schema behind ``$ref``, ``allOf`` and the unions; ``True`` and unknown targets allow anything."""
        while isinstance(schema, dict) and (fuel := fuel - 1) > 0:  # references may go in a circle
            if "$ref" in schema:
                schema = {**_target(self._root, str(schema["$ref"])), **_without(schema, "$ref")}
            elif schema.get("allOf"):
                schema = _merged(
                    [self._resolve(part, fuel // 2) for part in schema["allOf"]], _without(schema, "allOf")
                )
            elif union := schema.get("anyOf") or schema.get("oneOf"):
                schema = {**_without(schema, "anyOf", "oneOf"), **self._branch(union)}
            else:
                return schema
        return {}

    def _branch(self, union: list[Any]) -> Schema:
        branches = [branch for branch in union if isinstance(branch, dict)]
        return next((branch for branch in branches if branch.get("type") != "null"), {"type": "null"})

    def _value(self, schema: Schema, name: str, depth: int) -> Any:
        self._made += 1
        if depth > _BOTTOM or self._made > 10 * _MANY:
            return None
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._choice(schema["enum"])
        match _type(schema):
            case "object":
                return self._object(schema, depth, {})
            case "array":
                return self._array(schema, name, depth)
            case "integer":
                return self._number(schema, name, whole=True)
            case "number":
                return self._number(schema, name, whole=False)
            case "boolean":
                return True
            case "null":
                return None
        return self._string(schema, name)

    def _deep(self, depth: int) -> bool:
        return depth >= _DEPTH or self._made > _MANY

    def _choice(self, options: list[Any]) -> Any:
        """The option that the text mentions first and no property has taken yet; the first option otherwise."""
        places = {
            match.start(): option
            for option in options
            if isinstance(option, str) and (match := re.search(rf"(?i)\b{re.escape(option)}\b", self._text))
        }
        free = sorted(places.keys() - self._taken) or sorted(places)
        if not free:
            return options[0]
        self._taken.add(free[0])
        return places[free[0]]

    def _object(self, schema: Schema, depth: int, given: dict[str, Any]) -> dict[str, Any]:
        properties: dict[str, Any] = schema.get("properties") or {}
        required: list[str] = schema.get("required") or []
        wanted = (
            properties if self._everything and not self._deep(depth) else [key for key in properties if key in required]
        )
        keys = dict.fromkeys([*given, *wanted, *required])
        filled = {
            key: given[key] if key in given else self._property(properties.get(key), key, depth, key in required)
            for key in keys
        }
        extra = schema.get("additionalProperties")
        if not filled and isinstance(extra, dict) and self._everything and not self._deep(depth):
            return {"example": self._value(self._resolve(extra), "example", depth + 1)}
        return filled

    def _property(self, schema: Any, name: str, depth: int, required: bool) -> Any:
        """Null where the schema allows it and the nesting has gone deep enough; a value otherwise."""
        if depth >= 2 and isinstance(schema, dict) and _allows_null(schema) and (not required or self._deep(2 * depth)):
            return None
        return self._value(self._resolve(schema), name, depth + 1)

    def _array(self, schema: Schema, name: str, depth: int) -> list[Any]:
        leading = [self._value(self._resolve(item), name, depth + 1) for item in schema.get("prefixItems") or ()]
        least = _small(schema.get("minItems", 0), _MOST_ITEMS)
        usual = 0 if self._deep(depth) else 2 if self._everything else 1
        length = max(least, min(usual, int(schema.get("maxItems", usual)))) if "items" in schema else least
        item = self._resolve(schema.get("items"))
        if schema.get("uniqueItems") and item.get("enum"):
            return list(item["enum"][: max(length, 1)])
        items = [self._value(item, _singular(name), depth + 1) for _ in range(length - len(leading))]
        return leading + (_distinct(items, least) if schema.get("uniqueItems") else items)

    def _called(self, name: str, pattern: str) -> str | None:
        """What the text gives under the property's name, each once; nothing else gets it then."""
        for match in re.finditer(pattern.format(name=_spelt(name)), self._text):
            if match.start() not in self._taken:
                self._taken.add(match.start())
                value = next(group for group in match.groups() if group is not None).strip()
                self._phrases = [phrase for phrase in self._phrases if phrase not in value]
                self._numbers = [one for one in self._numbers if not match.start() <= one[0] < match.end()]
                return value
        return None

    def _number(self, schema: Schema, name: str, *, whole: bool) -> float | int:
        low, high = _bounds(schema, whole=whole)
        step = schema.get("multipleOf")
        if (called := self._called(name, _COUNTED)) is not None:
            value = _number(called)
        else:
            value = self._numbers.pop(0)[1] if self._numbers else 1.0 if whole else 1.5
        value = min(max(value, low), high)
        if step and math.isfinite(value / step) and math.isfinite(low / step):
            value = -(-low // step) * step if (value // step) * step < low else (value // step) * step
        return int(value) if whole else value

    def _string(self, schema: Schema, name: str) -> str:
        if (fixed := _FORMATS.get(kind := str(schema.get("format")))) is not None:
            return self._written[kind].pop(0) if self._written.get(kind) else fixed
        if pattern := schema.get("pattern"):
            return self._matching(str(pattern))
        text = self._called(name, _CALLED) or self._pointed_at(name)
        text = text or self._text_for_strings or f"simulated {name}"
        padded = text.ljust(_small(schema.get("minLength", 0), _MOST_CHARS), ".")
        return padded[: _small(schema.get("maxLength", len(padded)), len(padded))]

    def _pointed_at(self, name: str) -> str | None:
        if self._spare and _IDENTIFIER.search(name):
            return self._spare.pop(0)
        return self._phrases.pop(0) if self._phrases else None

    def _matching(self, pattern: str) -> str:
        candidates = [*phrases(self._text), *self._spare, *_USUAL, *_FORMATS.values()]
        return next((text for text in candidates if _meets(pattern, text)), candidates[0])


def _small(number: Any, most: int) -> int:
    """A bound of the schema's, which may be any number, as far as the simulated model goes along with it."""
    return int(min(max(number, 0), most)) if isinstance(number, int | float) else 0


def _meets(pattern: str, text: str) -> bool:
    """By JSON Schema's rules for patterns, and without searching for ever."""
    try:
        return jsonschema_rs.is_valid({"pattern": pattern}, text, pattern_options=_PATTERNS, offline=True)
    except ValueError:
        return False


def _is_object(schema: Schema) -> bool:
    return _type(schema) == "object"


def _type(schema: Schema) -> str:
    """The schema's type; of several the first that is not null; guessed from its keywords where none is named."""
    named = schema.get("type")
    if isinstance(named, list):
        named = next((kind for kind in named if kind != "null"), "null")
    if isinstance(named, str):
        return named
    if "properties" in schema or "additionalProperties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _allows_null(schema: Schema) -> bool:
    named = schema.get("type")
    if isinstance(named, list) and "null" in named:
        return True
    union = schema.get("anyOf") or schema.get("oneOf") or ()
    return any(isinstance(branch, dict) and branch.get("type") == "null" for branch in union)


def _target(root: Schema, reference: str) -> Schema:
    """The part of ``root`` that a local reference such as ``#/$defs/Item`` points at; ``{}`` when there is none."""
    found: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _merged(parts: list[Schema], rest: Schema) -> Schema:
    merged: Schema = {}
    for part in [*parts, rest]:
        properties = {**merged.get("properties", {}), **part.get("properties", {})}
        required = [*merged.get("required", []), *part.get("required", [])]
        merged |= part
        if properties:
            merged["properties"] = properties
        if required:
            merged["required"] = required
    return merged


def _without(schema: Schema, *keys: str) -> Schema:
    return {key: value for key, value in schema.items() if key not in keys}


def _bounds(schema: Schema, *, whole: bool) -> tuple[float, float]:
    low, above = schema.get("minimum", -_FAR), schema.get("exclusiveMinimum", -_FAR)
    high, below = schema.get("maximum", _FAR), schema.get("exclusiveMaximum", _FAR)
    if whole:
        return max(math.ceil(low), math.floor(above) + 1), min(math.floor(high), math.ceil(below) - 1)
    return max(low, above + 1e-6), min(high, below - 1e-6)


def _distinct(items: list[Any], least: int) -> list[Any]:
    """The items that differ; where too few do, texts and numbers are told apart by a counter."""
    kept: list[Any] = []
    for at, item in enumerate(items):
        fresh = item
        if item in kept and len(kept) < least:
            fresh = f"{item} {at + 1}" if isinstance(item, str) else item + at
        if fresh not in kept:
            kept.append(fresh)
    return kept


def _singular(name: str) -> str:
    return name[:-1] if name.endswith("s") and not name.endswith("ss") else name
