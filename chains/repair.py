"""The arguments of a tool call, from the text that a model wrote: read where it is JSON, mended where that is certain.

Certain means that nothing but what stands between the values was touched: a comma too many, or too few before a key, a
closing bracket of the wrong kind, Python's quotes and literals, a Markdown fence. json_repair mends; what it came to is
believed only where every string, number and literal, and every level of nesting, is what was written. Where a text was
cut nobody knows what is missing: it is never mended.

Pure. Never raises for any text; ``None`` says that the text has no certain meaning.
"""

import json
import re
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any

import json_repair

MAX_CHARS = 64 * 1024
"""Longer texts are not mended: what they cost to read grows faster than they do."""

MAX_DEPTH = 100
"""Levels of nesting: what keeps, sends and shows a conversation gives up somewhere past 200."""

Arguments = dict[str, Any]

Token = tuple[str, object]
"""``(kind, value)``; kinds are ``{ [ , : scalar``, and ``close`` for either bracket that closes."""

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"\\]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*")
    | (?P<single>'[^'"\\]*')
    | (?P<number>-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.+-])
    | (?P<literal>true|false|null|True|False|None)(?!\w)
    | (?P<open>[{\[])
    | (?P<close>[}\]])
    | (?P<mark>[,:])
    )""",
    re.VERBOSE,
)
_LITERALS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


def strict(text: str) -> Arguments | None:
    """The object that ``text`` is, by the letter of JSON; a blank text is none at all, ``{}``.

    A key that comes twice, a number of more than 64 bits and half a pair of surrogates have no meaning that all readers
    share; such a text, and one that is nested deeper than ``MAX_DEPTH``, cannot be kept with the conversation either.
    """
    if not text.strip():
        return {}
    try:
        found = _loads(text)
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and _is_shallow(found, MAX_DEPTH) else None


def repaired(text: str) -> Arguments | None:
    """The object that ``text`` was meant to be, where that is certain."""
    if len(text) > MAX_CHARS:
        return None
    text = _unfenced(text)
    if (found := strict(text)) is not None:
        return found
    try:
        written = list(_tokens(text))
        _check_nesting(written)
        mended = json_repair.loads(text, skip_json_loads=True)
        dumped = json.dumps(mended, ensure_ascii=False, allow_nan=False)
        same = _skeleton(list(_tokens(dumped))) == _skeleton(written)
    except (ValueError, RecursionError, TypeError):
        return None
    return strict(dumped) if same else None


def _loads(text: str) -> Any:
    return json.loads(
        text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite, parse_int=_whole_number
    )


def _is_shallow(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is None or (levels > 0 and all(_is_shallow(one, levels - 1) for one in inner))


def _unique(pairs: list[tuple[str, Any]]) -> Arguments:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError("a number out of range")
    return number


def _unfenced(text: str) -> str:
    inner = text.strip()
    if len(inner) < 6 or not (inner.startswith("```") and inner.endswith("```")):
        return text
    inner = inner[3:-3]
    return inner[4:] if inner[:4].lower() == "json" else inner


def _check_nesting(tokens: Sequence[Token]) -> None:
    """Raise ``ValueError`` where what was opened and what was closed differ: something is missing."""
    kinds = [kind for kind, _ in tokens]
    if kinds.count("{") + kinds.count("[") != kinds.count("close"):
        raise ValueError("cut")


def _whole_number(text: str) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**64:
        raise ValueError("a number out of range")
    return number


def _tokens(text: str) -> Iterator[Token]:
    """What the text consists of; raises ``ValueError`` at the first that is none of JSON's or Python's."""
    text, at = text.rstrip(), 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError("not a token")
        yield _token(str(match.lastgroup), match[str(match.lastgroup)])
        at = match.end()


def _token(kind: str, text: str) -> Token:
    match kind:
        case "string":
            return "scalar", ("str", json.loads(text, strict=False))
        case "single":
            return "scalar", ("str", text[1:-1])
        case "number":
            number = json.loads(text, parse_float=_finite)
            return "scalar", (type(number).__name__, number)
        case "literal":
            return "scalar", ("literal", _LITERALS[text])
        case "close":
            return "close", None
    return text, None


def _skeleton(tokens: Sequence[Token]) -> list[Token]:
    """The tokens without what may be mended: the comma before a bracket that closes, and the one before a key."""
    kinds = ["{", *(kind for kind, _ in tokens), "close", "close"]
    return [token for at, token in enumerate(tokens, start=1) if kinds[at] != "," or not _may_go(kinds, at)]


def _may_go(kinds: Sequence[str], at: int) -> bool:
    """Whether the comma there stands behind a value, and before the end of its container or a key."""
    behind_value = kinds[at - 1] in ("scalar", "close")
    return behind_value and (kinds[at + 1] == "close" or kinds[at + 1 : at + 3] == ["scalar", ":"])
