"""How people ask for Millrace's tools: ``calculator``, ``clock``, ``weather``, ``search_documents``, ``send_email``.

Each recogniser takes one part of a question and the whole of it, and returns what the tool is to be asked, once a
call: expressions, places, queries. An empty list means that the part does not ask for the tool. An e-mail is asked for
with several arguments; it is recognised apart from the others.
"""

import re
from collections.abc import Callable

from app.simulator.schema import phrases

_WEATHER = re.compile(
    r"(?i)\b(?:weather|temperatures?|forecast|rain(?:ing|y|s)?|snow(?:ing|y|s)?|sunny|how (?:warm|cold|hot|windy))\b"
)
_CLOCK = re.compile(
    r"(?i)\btime is it\b|\bwhat(?:'s|’s| is)? (?:the )?(?:local |current |exact )?(?:time|date|day)\b"
    r"|\b(?:local|current|exact) time\b|\btime (?:now )?(?:in|at)\b|^(?:the )?time\b|\bclock\b"
    r"|\bo[’']clock\b|\btoday's date\b|\b(?:date|day) (?:is it )?today\b"
)
EXPLICIT_SEARCH = re.compile(
    r"(?i)\b(?:search(?: (?:in|through))?|look (?:up|for|in)|find)\b.*\b(?:docs?|documents?|documentation|manual)\b"
    r"|\bsearch(?:\s+for)?\b|\b(?:docs|documents|documentation|manual)\b"
)
_HOW = re.compile(r"(?i)\bhow (?:do|can|should) (?:i|we|you)\b|\bhow does\b")
_SEARCH_WORDS = re.compile(
    r"(?i)\b(?:please|can you|could you|search(?: in| through)?|look (?:up|for|in)|find"
    r"|(?:in )?(?:the |our |my |your |project's )*(?:docs?|documents?|documentation|manual)"
    r"|tell me|says? about|what (?:do|does|is|are)|how (?:do|can|should) (?:i|we|you)|how does)\b"
)

_WORDED = (
    (r"\bmultiplied by\b|\btimes\b|[×·]", "*"),
    (r"(?<=\d)\s*x\s*(?=\d)", "*"),
    (r"\bdivided by\b|÷", "/"),
    (r"\bplus\b", "+"),
    (r"\bminus\b|−", "-"),
    (r"\bto the power of\b|\^", "**"),
    (r"(?<=\d)\s*squared\b", " ** 2"),
    (r"(?<=\d)\s*(?:%|percent) of\b", " / 100 *"),
    (r"\b(?:the )?square root of (\d+(?:\.\d+)?)", r"sqrt(\1)"),
    (r"\b(?:the )?sum of (\d+(?:\.\d+)?) and (\d+(?:\.\d+)?)", r"\1 + \2"),
    (r"\b(?:the )?product of (\d+(?:\.\d+)?) and (\d+(?:\.\d+)?)", r"\1 * \2"),
)
_FUNCTION = r"(?:sqrt|abs|round|floor|ceil|min|max|exp|ln|log|sin|cos|tan)\("
_EXPRESSION = re.compile(
    rf"[-(]{{0,20}}(?:\d|{_FUNCTION})(?:[\d\s.()+*/%-]|,\s*(?=[\d-])|{_FUNCTION})*[\d)]", re.IGNORECASE
)
_ASKS_TO_COMPUTE = re.compile(r"(?i)\b(?:calculate|compute|evaluate|what(?:'s|’s| is| are)|how much|result)\b|=")
_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}/\d{1,2}/\d{2,4}\b")


def _expressions(part: str, _question: str) -> list[str]:
    """Arithmetic in the part; "3-5" and "24/7" count only where something is to be computed."""
    text = _DATE.sub(" ", part)
    for worded, sign in _WORDED:
        text = re.sub(rf"(?i){worded}", sign, text)
    if not re.search(_FUNCTION, text):
        text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)  # thousands; in a function, a comma is between arguments
    found = [match.group().strip() for match in _EXPRESSION.finditer(text)]
    asked = bool(_ASKS_TO_COMPUTE.search(part)) or text.strip() in found
    return [expression for expression in found if _is_arithmetic(expression, asked=asked)]


def _is_arithmetic(expression: str, *, asked: bool) -> bool:
    if expression.count("(") != expression.count(")"):
        return False
    operators = re.findall(r"(?<=[\d)\s])\s*(\*\*|[-+*/%])\s*(?=[-\da-z(])", expression)
    plain = asked or bool(set(operators) - {"-", "/"}) or bool(re.search(r"\s[-/]\s", expression))
    return bool(re.search(_FUNCTION, expression)) or (bool(operators) and plain)


_PLACE_ENDS = re.compile(
    r"(?i)\b(?:today|tomorrow|tonight|now|right now|currently|at the moment|at present|this \w+|next \w+|on \w+day"
    r"|please|like|in (?:degrees|celsius|fahrenheit)|degrees|celsius|fahrenheit"
    r"|if|when|because|so|is it|right|local time)\b.*$"
)
_PRONOUNS = frozenset(
    {"there", "here", "it", "the", "general", "my", "me", "my city", "my town", "outside", "utc time"}
)


def _places(part: str, question: str) -> list[str]:
    """The places that the part names, else the one that the whole question names."""
    for text in (re.split(r"(?i)\b(?:if|when|because|so)\b", part)[0], question):
        for preposition in ("in", "at|near|around", "for|of"):
            if (match := re.search(rf"(?i).*\b(?:{preposition})\s+(?:the\s+)?(.+)", text)) and (
                found := _place_names(match[1])
            ):
                return found
        subject = _WEATHER.split(text)[0]
        if names := [name for name in phrases(subject) if not re.match(r"(?i)today|tomorrow|current", name)]:
            return names[-1:]
    return []


def _place_names(text: str) -> list[str]:
    text = re.split(r"[,?;!\n]|\.(?=\s|$)", text)[0]
    names = re.split(r"(?i)\s+(?:or|and|vs\.?|versus|compared (?:to|with))\s+(?:in\s+)?", text)
    cleaned = (re.sub(r"[^\w\s.'’/+-]", "", _PLACE_ENDS.sub("", name)).strip(" .") for name in names)
    return [name for name in cleaned if name and name.lower() not in _PRONOUNS and len(name.split()) <= 4]


def _weather(part: str, question: str) -> list[str]:
    return [_titled(place) for place in _places(part, question)] if _WEATHER.search(part) else []


def _clock(part: str, question: str) -> list[str]:
    """The places whose time is asked for; an empty one where the question names none."""
    if not _CLOCK.search(part):
        return []
    return [_titled(place) for place in _places(part, question)] or [""]


def _search(part: str, _question: str) -> list[str]:
    if not (EXPLICIT_SEARCH.search(part) or _HOW.search(part)):
        return []
    query = re.sub(
        r"^\W*(?:\b(?:for|about|on|how|to|that)\b\s*)+|[\s?.!,]+$", "", _SEARCH_WORDS.sub(" ", part).strip(" ,:")
    )
    return [re.sub(r"\s+", " ", query).strip(' "“”') or part]


_EMAIL = re.compile(
    r"(?i)(?:^|\b(?:please|and|then|can you|could you)\s+)(?:send\s+(?:an?\s+)?)?(?:e-?mail|mail|message|write)"
    r"(?:\s+(?:an?\s+)?(?:e-?mail|message))?(?:\s+to)?\s+(?P<to>[^\s@,;<>]{1,64}@[^\s@,;<>]{1,190}[^\s@,;<>.:])"
    r"(?:\s+(?:that|to say that|saying(?: that)?|about)\s+|\s*:\s*)(?P<said>\S.*)"
)


def email(part: str) -> dict[str, str]:
    """``{to, subject, body}`` of the e-mail that the part asks for: "e-mail ada@example.com that …"; empty for none."""
    match = _EMAIL.search(part)
    if match is None:
        return {}
    said = match["said"].strip(' "“”')
    said = said[:1].upper() + said[1:]
    subject = said if len(said) <= 60 else f"{said[:60].rsplit(' ', 1)[0]} …"
    return {"to": match["to"], "subject": subject, "body": said if said[-1:] in ".!?" else f"{said}."}


def _titled(place: str) -> str:
    return place.title() if place.islower() and len(place) > 3 else place.upper() if place.islower() else place


KNOWN: dict[str, Callable[[str, str], list[str]]] = {
    "calculator": _expressions,
    "clock": _clock,
    "weather": _weather,
    "search_documents": _search,
}
