"""What the simulated model says: a function of the conversation and the tools offered, and of nothing else.

- A question whose parts fit tools that were offered: ask for them, all at once unless the client wants one at a time.
- Their results are there: make those calls again that an error asks to make again, and no other.
- Then answer from them, in the order of the calls, and name the failures.
- A document is wanted (``response_format``): one that is valid for its schema; in JSON mode that stands in the words.
- An answer of this turn was refused ("Your answer is not valid: …"): the same turn, once more.
- Else a text: of the length asked for, from what the conversation says, or a plain word that all this is simulated.
- The conversation ends with words of the answer itself: the same answer as without them, from there on.

Pure: the same request gets the same reply, down to the ids of its calls.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from app.simulator import prose, tokens
from app.simulator.known_tools import KNOWN
from app.simulator.questions import Wanted, arguments, parts, wanted
from app.simulator.request import ChatRequest, Function, Message, ToolCall
from app.simulator.schema import Filler


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of the reply; ``arguments`` is JSON text. ``id`` is None only where a fault withholds it."""

    id: str | None
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole answer: a text, which may be a JSON ``document``, or tool calls."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    document: bool = False


def digest(request: ChatRequest) -> str:
    """32 hex digits that name the conversation: equal for an equal model and equal messages."""
    text = msgspec.json.encode([request.model, request.messages])
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def turn(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """The last user message's text and the messages after it; with no user message, an empty text and all of them.

    One that sends an answer back to be corrected begins no turn of its own.
    """
    users = [at for at, message in enumerate(messages) if message.role == "user"]
    last = max((at for at in users if not _CORRECTING.match(messages[at].text)), default=users[-1] if users else None)
    return ("", messages) if last is None else (messages[last].text, messages[last + 1 :])


def call_number(messages: Sequence[Message]) -> int:
    """Which model call of the turn this is: 1 plus the answers since the last user message."""
    return 1 + sum(message.role == "assistant" for message in turn(messages)[1])


def prefilled(request: ChatRequest) -> tuple[ChatRequest, str]:
    """The request without the assistant's words at its end, which the answer is to go on with, and those words."""
    *before, last = request.messages
    if last.role != "assistant" or not last.text:
        return request, ""
    return _with_messages(request, before), last.text


def resumed(whole: Reply, said: str, overlap: int) -> Reply:
    """The reply from the end of ``said`` on; all of it when it does not begin so.

    ``overlap``: so many tokens of ``said`` once more before it, as models do that have no prefill.
    """
    if whole.calls:
        return whole
    again = tokens.pieces(said)[-overlap:] if overlap else []
    return Reply("".join(again) + whole.text.removeprefix(said))


def reply(request: ChatRequest) -> Reply:
    """The answer to ``request``."""
    question, since = turn(request.messages)
    if calls := _calls(request, question, since):
        return Reply(calls=_numbered(calls, digest(request)))
    if (document := _document(request)) is not None:
        return Reply(text=document, document=True)
    asked = [call for message in since for call in message.tool_calls or ()]
    if asked:
        return Reply(text=_from_results(asked, [message for message in since if message.role == "tool"]))
    return Reply(text=_rest(request) or _text(question, request))


def interrupted(request: ChatRequest) -> str:
    """The answer that the last user message, "continue" in words, asks to go on with; empty when it asks for none."""
    question, since = turn(request.messages)
    before = request.messages[: len(request.messages) - len(since) - 1]
    return before[-1].text if before and before[-1].role == "assistant" and _CONTINUE.match(question) else ""


# -- asking for tools -------------------------------------------------------------------------------------------------

_AGAIN = re.compile(r"(?is)\s*error\b.*\bcall\b.{1,80}\bagain\b")


def _calls(request: ChatRequest, question: str, since: Sequence[Message]) -> list[Wanted]:
    if request.named_tool is not None:
        tool = next(tool for tool in request.functions if tool.name == request.named_tool)
        return [_insisted(tool, request)]
    if not request.tools or request.tool_choice == "none":
        return []
    asked = Counter(call.function.name for message in since for call in message.tool_calls or ())
    one_at_a_time = request.parallel_tool_calls is False
    earlier = [message.text for message in request.messages if message.role == "user"][-2:-1]
    if calls := _due(wanted(question, request.functions, earlier="".join(earlier)), since, one_at_a_time=one_at_a_time):
        return calls[:1] if one_at_a_time else calls
    return [_insisted(_fresh(request.functions, asked), request)] if request.tool_choice == "required" else []


def _due(calls: list[Wanted], since: Sequence[Message], *, one_at_a_time: bool) -> list[Wanted]:
    """The calls that are still to be made: not made yet, or made in vain.

    Known by their arguments, or where those have come back broken by their names and order.
    """
    results = {message.tool_call_id: message.text for message in since if message.role == "tool"}
    for message in since:
        again, left = [], list(calls)
        for made in message.tool_calls or ():
            meant = _meant(made, left)
            if meant is not None:
                left.remove(meant)
                again += [meant] if _AGAIN.match(results.get(made.id, "")) else []
        if message.tool_calls:
            calls = again + left if one_at_a_time else again
    return calls


def _meant(made: ToolCall, calls: Sequence[Wanted]) -> Wanted | None:
    alike = [call for call in calls if call.name == made.function.name]
    exact = [call for call in alike if orjson.dumps(call.arguments) == _compact(made.function.arguments)]
    return next(iter(exact or alike), None)


def _compact(arguments: str) -> bytes:
    try:
        return orjson.dumps(orjson.loads(arguments))
    except orjson.JSONDecodeError:
        return b""


def _fresh(tools: Sequence[Function], asked: Counter[str]) -> Function:
    return next((tool for tool in tools if not asked[tool.name]), tools[-1])


def _insisted(tool: Function, request: ChatRequest) -> Wanted:
    """A call that the client insists on; a tool of one's own is taken for a form, and all of it is filled."""
    known = wanted(turn(request.messages)[0], [tool]) if tool.name in KNOWN else []
    return known[0] if known else Wanted(tool.name, arguments(tool, _material(request), everything=True))


def _numbered(calls: Sequence[Wanted], conversation: str) -> tuple[Call, ...]:
    """Ids from the conversation so far: a later turn has a longer one, so no id comes twice in it."""
    seeds = [f"{conversation}:{at}".encode() for at in range(len(calls))]
    ids = [f"call_{hashlib.blake2b(seed, digest_size=12).hexdigest()}" for seed in seeds]
    texts = [orjson.dumps(call.arguments).decode() for call in calls]
    return tuple(Call(call_id, call.name, text) for call_id, call, text in zip(ids, calls, texts, strict=True))


# -- documents --------------------------------------------------------------------------------------------------------


def _document(request: ChatRequest) -> str | None:
    match request.response_format:
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return orjson.dumps(_filled(schema, request)).decode()
        case {"type": "json_object"}:
            if (schema := _told_schema(request.messages)) is not None:
                return orjson.dumps(_filled(schema, request)).decode()
            question, _ = turn(request.messages)
            return orjson.dumps({"simulated": True, "question": question, "answer": prose.words(12)}).decode()
    return None


def _filled(schema: dict[str, object], request: ChatRequest) -> object:
    """A document of the schema; a plan, whose ``questions`` are asked for, has those that the question consists of."""
    properties = schema.get("properties")
    plan = properties.get("questions") if isinstance(properties, dict) else None
    given: dict[str, Any] | None = None
    if isinstance(plan, dict) and plan.get("items") == {"type": "string"}:
        asked, _ = turn(request.messages)
        given = {"questions": parts(asked)[: plan.get("maxItems", 5)]}
    return Filler(_material(request)).fill(schema, given)


def _told_schema(messages: Sequence[Message]) -> dict[str, object] | None:
    """The JSON schema that stands in the words of the instructions: JSON mode knows no other way to tell one."""
    text = next((one.text for one in messages if one.role in ("system", "developer")), "")
    for match in _OBJECT.finditer(text):
        try:
            found, _ = _JSON.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) and "properties" in found else None
    return None


def _material(request: ChatRequest) -> str:
    """What a document is filled from: what the tools found, then the question."""
    question, since = turn(request.messages)
    found = [message.text for message in since if message.role == "tool"]
    results = "\n".join(text for text in found if not _FAILED.match(text))
    return f"{results[:20_000]}\n{question[:20_000]}".strip()


_OBJECT = re.compile(r"\{(?=\s*\")")
_JSON = json.JSONDecoder()
_CORRECTING = re.compile(r"(?i)\s*your (?:last |previous )?(?:answer|reply|output) (?:is|was) (?:not valid|invalid)\b")

# -- answering from results -------------------------------------------------------------------------------------------

_FAILED = re.compile(
    r"(?i)\s*(?:error\b|traceback\b|exception\b|\w*(?:error|exception):|(?:the )?\w+ (?:tool )?(?:failed|timed out)\b)"
)
_LABEL = re.compile(r"(?i)^error:\s*")
_SHOWN = 400  # characters of one result


def _from_results(asked: Sequence[ToolCall], results: Sequence[Message]) -> str:
    waiting: defaultdict[str | None, list[str]] = defaultdict(list)
    for result in results:
        waiting[result.tool_call_id].append(result.text)
    told = [(call, waiting[call.id].pop(0)) for call in asked if waiting[call.id]]
    made = [(call, result) for call, result in told if not _AGAIN.match(result)]  # the others were made again
    sentences = [_sentence(call, result) for call, result in made or told]
    if len(sentences) == 1:
        return sentences[0]
    return "Here is what I found:\n\n" + "\n".join(f"- {sentence}" for sentence in sentences)


def _sentence(call: ToolCall, result: str) -> str:
    name, text = call.function.name, _plain(result)
    if _FAILED.match(result) or _error_in(result):
        return f"The {_spoken(name)} tool failed: {_error_in(result) or _LABEL.sub('', text)}"
    if not text:
        return f"The {_spoken(name)} tool had nothing to say."
    if name == "calculator" and re.fullmatch(r"[-+\d.,eE]+", text):
        return f"{_subject(call)} = {text}."
    if re.search(r"[.!?…]$", text) and " " in text:
        return text
    return f"{_spoken(name).capitalize()} ({subject}): {text}." if (subject := _subject(call)) else f"{text}."


def _spoken(name: str) -> str:
    return name.replace("_", " ").strip()


def _subject(call: ToolCall) -> str:
    """The values the tool was asked with, as far as they can be read."""
    try:
        values = orjson.loads(call.function.arguments)
    except orjson.JSONDecodeError:
        return ""
    if not isinstance(values, dict):
        return ""
    return ", ".join(str(value) for value in values.values() if isinstance(value, str | int | float))[:80]


def _plain(result: str) -> str:
    """A result on one line: JSON as "key: value", long texts cut with a dash of honesty."""
    found = _json(result)
    text = result if found is None else _flat(found)
    text = re.sub(r"\s+", " ", text[: 4 * _SHOWN]).strip()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN].rsplit(' ', 1)[0]} … (cut)"


def _json(result: str) -> dict[str, object] | list[object] | None:
    if result.lstrip()[:1] not in {"{", "["} or len(result) > 100_000:
        return None
    try:
        found: dict[str, object] | list[object] = orjson.loads(result)
    except orjson.JSONDecodeError:
        return None
    return found


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_spoken(str(key))}: {_flat(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(_flat(item) for item in value)
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _error_in(result: str) -> str | None:
    found = _json(result)
    return _flat(found["error"]) if isinstance(found, dict) and found.get("error") else None


# -- texts ------------------------------------------------------------------------------------------------------------

_TOLD = re.compile(r"(?i)\bmy ([a-z][a-z ]{1,30}?) (?:is|are) (?!what\b)([^.,;!?\n]{1,80})")
_CALLED = re.compile(r"\b(?i:I am called|I'm called|call me)\s+([A-Z][\w'’-]*(?:\s[A-Z][\w'’-]*)*)")
_ASKED = re.compile(
    r"(?i)\b(?:what(?:'s|’s| is| are| was)|do you (?:know|remember)|tell me|who is) my"
    r" ([a-z][a-z ]{1,30}?)(?: again)?\s*(?:[?.!,]|$)"
)
_WHO_AM_I = re.compile(r"(?i)\bwho am i\b|\bwhat am i called\b")
_SAID = re.compile(r"(?i)\bwhat did i (?:just |first )?(?:say|ask|tell you|write)\b")
_CONTINUE = re.compile(r"(?i)\s*(?:please\s+)?(?:continue|go on|carry on|keep going)\b")
_COUNT = re.compile(r"(?i)\bcount(?:ing)?\b(?:.*?\bfrom\s+(\d{1,7}))?.*?\bto\s+(\d{1,7})")
_LENGTH = re.compile(r"(?i)\b(\d{1,3}(?:,\d{3})+|\d{1,7})[ -]?(words?|tokens?|paragraphs?|sentences?)\b")
_PARAGRAPHS = re.compile(r"(?i)\b(two|three|four|five|six|seven|eight|nine|ten|some|several|a few)?\s*paragraphs?\b")
_LONG = re.compile(r"(?i)\b(?:long|longer|detailed)\b.*\b(?:story|text|essay|poem|answer|article|tale|letter)\b")
_STORY = re.compile(r"(?i)\b(?:story|essay|poem|tale|fairy tale)\b")
_CODE = re.compile(r"(?i)\b(?:code|python|javascript|typescript|snippet|script|program)\b")
_GREETING = re.compile(r"(?i)\s*(?:hi|hello|hey|good (?:morning|evening|day|afternoon))\b[\s!.,]*(?:there)?[\s!.]*$")
_READ = 4000  # characters of one message that are understood
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}

_TRY = (
    'Things to try: "count to 50", "tell me a long story", "write three paragraphs", "show me some Python code", or '
    'tell me "my name is Ada" and ask for it later.'
)
_TRY_TOOLS = 'Try: "What time is it in Tokyo, what is 17*23, and what\'s the weather in Oslo?"'


def _rest(request: ChatRequest) -> str | None:
    """After "continue": the rest of the answer that was cut; None when there is none, or none was asked for."""
    if not (said := interrupted(request)):
        return None
    _, since = turn(request.messages)
    whole = reply(_with_messages(request, request.messages[: len(request.messages) - len(since) - 2])).text
    return whole[len(said) :] if whole.startswith(said) and len(whole) > len(said) else None


def _with_messages(request: ChatRequest, messages: Sequence[Message]) -> ChatRequest:
    return msgspec.structs.replace(request, messages=list(messages))


def _text(question: str, request: ChatRequest) -> str:
    question = question[:_READ]
    return (
        _from_findings(question)
        or _of_length(question)
        or _remembered(question, request.messages)
        or _plainly(question, request)
    )


_FINDING = re.compile(r"(?ms)^## \d+\. (.+?)\n\n(.*?)\s*(?=^## \d+\. |\Z)")


def _from_findings(text: str) -> str | None:
    """What others have found, "## 1. question" and so on, as one answer."""
    if not text.startswith("## 1. "):
        return None
    return "Here is what was found:\n\n" + "\n".join(
        f"- **{asked}** {_plain(found)}" for asked, found in _FINDING.findall(text)
    )


def _of_length(question: str) -> str | None:
    """The text of a certain kind or size that the question asks for."""
    if match := _COUNT.search(question):
        return prose.counting(int(match[1] or 1), int(match[2]))
    if match := _LENGTH.search(question):
        number, unit = int(match[1].replace(",", "")), match[2].lower()
        return _measured(number, unit)
    if match := _PARAGRAPHS.search(question):
        return prose.paragraphs(_NUMBERS.get((match[1] or "").lower(), 3))
    if _LONG.search(question):
        return prose.paragraphs(12)
    if _STORY.search(question):
        return prose.paragraphs(3)
    return prose.code() if _CODE.search(question) else None


def _measured(number: int, unit: str) -> str:
    if unit.startswith("token"):
        return prose.exactly(min(number, prose.LONGEST))
    if unit.startswith("word"):
        return prose.words(number)
    return prose.paragraphs(number) if unit.startswith("paragraph") else prose.words(8 * number)


def _remembered(question: str, messages: Sequence[Message]) -> str | None:
    """What the conversation itself can answer: facts the user told, and what was said before."""
    earlier = [message.text[:_READ] for message in messages if message.role == "user"][:-1]
    if (match := _ASKED.search(question)) or _WHO_AM_I.search(question):
        subject = match[1].strip().lower() if match else "name"
        fact = _facts([*earlier, question]).get(subject)
        return f"Your {subject} is {fact}; you told me so." if fact else f"You have not told me your {subject} yet."
    if _SAID.search(question):
        said = earlier[0] if re.search(r"(?i)\bfirst\b", question) and earlier else (earlier or [""])[-1]
        return f"You said: “{_short(said)}”" if said else "This is the first thing you have said."
    if told := _facts([question]):
        subject, fact = next(iter(told.items()))
        return f"Noted: your {subject} is {fact}. Ask me for it whenever you like; I keep it for this conversation."
    return None


def _facts(texts: Sequence[str]) -> dict[str, str]:
    """What users say of themselves, the latest word on each subject."""
    facts: dict[str, str] = {}
    for text in texts:
        facts |= {match[1].strip().lower(): _clause(match[2]) for match in _TOLD.finditer(text)}
        facts.update(("name", name.strip()) for name in _CALLED.findall(text))
    return facts


def _clause(text: str) -> str:
    return re.split(r"(?i)\s+(?:and|but|so)\s+(?:i|my|what|how|please|can|we)\b", text)[0].strip()


def _plainly(question: str, request: ChatRequest) -> str:
    """Who is speaking, what was understood, what to try."""
    who = "I am a simulated model: my answers are scripted, no real model is behind them."
    tools = ", ".join(_spoken(tool.name) for tool in request.functions)
    hint = f"I may use these tools here: {tools}. {_TRY_TOOLS}" if tools else _TRY
    if not question.strip():
        return f"{who} Ask me something. {hint}"
    if _GREETING.match(question):
        return f"Hello! {who} {hint}"
    return f"{who} I understood: “{_short(question)}”. {hint}"


def _short(text: str) -> str:
    line = re.sub(r"\s+", " ", text[:1000]).strip()
    return line if len(line) <= 200 else f"{line[:200].rsplit(' ', 1)[0]} …"
