"""Which tools a question asks for: cuts it into its parts and finds, for each part, the tools offered that fit.

``calculator``, ``clock``, ``weather``, ``search_documents`` and ``send_email`` are known by name and by the way people
ask for them; any other tool fits a part that uses words of its name or description, and gets its arguments from its
JSON schema. One part may want several tools, and one tool may be wanted by several parts.

Pure and deterministic. Never guesses a place that the question does not name.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.simulator.known_tools import EXPLICIT_SEARCH, KNOWN, email
from app.simulator.request import Function
from app.simulator.schema import Filler
from app.simulator.zones import zone_of

_LONGEST = 4000  # characters of a question that are looked at; a pasted document is no question


@dataclass(frozen=True, slots=True)
class Wanted:
    """One tool call that the question asks for."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Part:
    text: str
    start: int
    end: int


def wanted(question: str, tools: Sequence[Function], *, earlier: str = "") -> list[Wanted]:
    """The calls that answer ``question`` with ``tools``, in the order of its parts; none twice.

    ``earlier`` is the question before this one: "and in Rome?" repeats it for another place.
    """
    question = _normal(question)
    found: list[Wanted] = []
    head = _last_head(_normal(earlier), tools)  # the last part that wanted something
    for part in _parts(question):
        calls = _fitting(part.text, question, tools)
        if calls:
            head = part
        elif head is not None and (carried := _carried(part.text, head.text)):
            calls = _fitting(carried, carried, tools)
        elif head is not None and found:
            head, calls = _longer(head, part, question, tools, found)
            found = found[: len(found) - len(calls)]
        found += calls
    return _without_repeats(found)


def parts(question: str) -> list[str]:
    """The questions that a question consists of, each as one of its own; two at least, for whoever makes a plan."""
    found = [part.text[:1].upper() + part.text[1:] for part in _parts(_normal(question))]
    if len(found) == 1:
        found.append(f"What do the docs say about {found[0].rstrip('?.')}")
    return [one if one[-1:] in "?!." else f"{one}?" for one in found]


def _normal(question: str) -> str:
    return re.sub(r"[^\S\n]+", " ", question[:_LONGEST])


def _last_head(earlier: str, tools: Sequence[Function]) -> _Part | None:
    heads = [part for part in _parts(earlier) if _fitting(part.text, earlier, tools)]
    return heads[-1] if heads else None


def _longer(
    head: _Part, part: _Part, question: str, tools: Sequence[Function], found: Sequence[Wanted]
) -> tuple[_Part, list[Wanted]]:
    """A part that says nothing alone may belong to the one before; if so, the calls that replace its last ones."""
    last = found[-1]
    if last.name == "search_documents":  # "the docs on streams and cancellation" is one search
        head = _Part(question[head.start : part.end], head.start, part.end)
        return head, _fitting(head.text, question, tools)
    if last.name == "weather" and part.text.lower() in _COUNTRIES:  # "Paris, France" is one place
        key = next(key for key, value in last.arguments.items() if isinstance(value, str))
        return head, [Wanted(last.name, {**last.arguments, key: f"{last.arguments[key]}, {part.text}"})]
    return head, []


def arguments(tool: Function, text: str, *, everything: bool, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments that are valid for the tool's schema, taken from ``text`` where it has something to offer.

    ``everything``: optional ones too. ``given`` decides some beforehand.
    """
    schema = tool.parameters or {"type": "object"}
    speaks = not everything or len(schema.get("properties") or ()) == 1
    filler = Filler(text, text_for_strings=text.strip()[:500] if speaks else None, everything=everything)
    filled: dict[str, Any] = filler.fill(schema, given or {})
    return filled


def _without_repeats(calls: list[Wanted]) -> list[Wanted]:
    kept: list[Wanted] = []
    for call in calls:
        if call not in kept:
            kept.append(call)
    return kept


# -- the parts of a question ------------------------------------------------------------------------------------------

# Quoted text is skipped over. No cut inside 1,000 or 2.5, nor at the "and" of "the sum of 3 and 4".
_CUT = re.compile(
    r"\"[^\"]*\"|“[^”]*”"
    r"|(?P<cut>[?;!\n]+|\.(?=\s|$)|,(?!\d)"
    r"|(?<!\d)\s+(?:and|then|also|plus)\s+|\s+(?:and|then|also)\s+(?!\d))",
    re.IGNORECASE,
)
_EDGES = re.compile(
    r"^(?:(?:and|then|also|so|please|hi|hello|hey|ok|okay|(?:what|how) about)\b[\s,]*)+"
    r"|(?:[\s,]*\b(?:please|thanks|thank you|too))+$",
    re.IGNORECASE,
)


def _parts(question: str) -> Iterator[_Part]:
    start = 0
    for match in [*_CUT.finditer(question), None]:
        if match is not None and match["cut"] is None:
            continue
        end = match.start() if match else len(question)
        if text := _EDGES.sub("", question[start:end].strip()).strip():
            yield _Part(text, start, end)
        start = match.end() if match else end


def _carried(part: str, head: str) -> str | None:
    """The question that a bare place repeats: "in Rome" after "the weather in Paris" asks for the weather in Rome."""
    place = re.fullmatch(r"(?i:(?:in|for|at|of)\s+)?(\S+(?:\s+\S+){0,3})", part)
    if place is None or place[1].lower() in _COUNTRIES:
        return None
    if place[1] == part and not all(word[0].isupper() or word[0].isdigit() for word in part.split()):
        return None
    before = re.match(r"(?i)(.*)\b(in|for|at|of)\s+\S", head)
    return f"{before[1]}{before[2]} {place[1]}" if before else f"{head} in {place[1]}"


_COUNTRY_WORDS = (
    "argentina australia austria belgium brazil canada chile china colombia denmark egypt england finland france"
    " germany greece hungary iceland india indonesia ireland italy japan kenya mexico netherlands nigeria norway"
    " peru poland portugal romania scotland spain sweden switzerland texas turkey ukraine uk usa us wales"
)
_COUNTRIES = {*_COUNTRY_WORDS.split(), "new zealand", "south africa", "south korea", "united kingdom", "united states"}


def _fitting(part: str, question: str, tools: Sequence[Function]) -> list[Wanted]:
    mail = next((tool for tool in tools if tool.name == "send_email"), None)
    if mail is not None and (given := email(part)):  # "e-mail ada@example.com that it rains" does not want the weather
        return [Wanted(mail.name, arguments(mail, part, everything=False, given=given))]
    known = [tool for tool in tools if tool.name in KNOWN]
    if searches := [tool for tool in known if tool.name == "search_documents" and EXPLICIT_SEARCH.search(part)]:
        known = searches  # "search the docs for weather" does not want the weather
    found = [call for tool in known for call in _known_calls(tool, part, question)]
    own = [tool for tool in tools if tool.name not in KNOWN and tool is not mail]
    return found or [Wanted(tool.name, arguments(tool, part, everything=False)) for tool in _best(part, own)]


def _known_calls(tool: Function, part: str, question: str) -> Iterator[Wanted]:
    key = _principal(tool)
    for text in KNOWN[tool.name](part, question):
        value = zone_of(text) if key and re.search(r"(?i)zone|tz", key) else text
        given = {key: value or "UTC"} if key and (value or _is_required(tool, key)) else {}
        yield Wanted(tool.name, arguments(tool, part, everything=False, given=given))


def _principal(tool: Function) -> str | None:
    """The parameter that takes the expression, the place or the query: a required text before an optional one."""
    properties: dict[str, Any] = (tool.parameters or {}).get("properties") or {}
    order = sorted(properties, key=lambda key: not _is_required(tool, key))
    texts = [key for key in order if isinstance(properties[key], dict) and _takes_text(properties[key])]
    return next(iter(texts or order), None)


def _takes_text(schema: dict[str, Any]) -> bool:
    branches = [schema, *(schema.get("anyOf") or ())]
    return any(branch.get("type") == "string" for branch in branches if isinstance(branch, dict))


def _is_required(tool: Function, key: str) -> bool:
    return key in ((tool.parameters or {}).get("required") or ())


# -- the user's own tools ---------------------------------------------------------------------------------------------

_STOP_WORDS = (
    "about above across after again also another around because been before being below between both call called"
    " calls check come could does doing each else ever every find from function gets give given gives have having"
    " help here input into just know like list look made make many more most much must name need number only other"
    " output over please return returns same show shows should some string such take tell text than that their"
    " them then there these they thing this those through tool under until user uses using value very want wants"
    " well were what when where which while whose will with would your"
)
_STOP = frozenset(_STOP_WORDS.split())


def _best(part: str, tools: Sequence[Function]) -> list[Function]:
    """The tools whose full name stands in the part, else the one that shares most words with it."""
    spoken = _spoken(part)
    named = [tool for tool in tools if f" {_spoken(tool.name).strip()} " in spoken]
    if named:
        return sorted(named, key=lambda tool: spoken.index(_spoken(tool.name).strip()))
    stems = _stems(part)
    scores = {
        tool.name: 3 * len(stems & _stems(tool.name)) + len(stems & _stems(tool.description or "")) for tool in tools
    }
    best = max(tools, key=lambda tool: scores[tool.name], default=None)
    return [best] if best is not None and scores[best.name] > 0 else []


def _spoken(text: str) -> str:
    """Lower case, words only: ``get_order`` and "Get order" are the same."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    words = " ".join(re.findall(r"[^\W_]+", apart.lower()))
    return f" {words} "


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in _spoken(text).split() if len(word) >= 4 and word not in _STOP}


def _stem(word: str) -> str:
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    for ending in ("ing", "es", "ed", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
