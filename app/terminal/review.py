"""Asks a person what a run that waits for one wants to know, and makes the answer that it takes.

The question of tools that need approval has the shape of LangChain's human-in-the-loop middleware: requests, and for
each what may be decided. Any other question, a graph's own, is shown as it is and answered with a text or JSON.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.text import Text

from app.terminal.answer import json_text
from app.terminal.screen import Screen

Ask = Callable[[str, str], str]
"""A prompt, and what stands in the line already; the line."""

DECISIONS = ("approve", "edit", "reject")


def review(interrupts: Sequence[Mapping[str, Any]], ask: Ask, screen: Screen) -> Any:
    """The ``resume`` of the next run. Raises what ``ask`` does where nobody answers."""
    answers = {one["id"]: _answer(one["value"], ask, screen) for one in interrupts}
    return answers if len(answers) > 1 else next(iter(answers.values()))


def _answer(question: Any, ask: Ask, screen: Screen) -> Any:
    if not isinstance(question, dict) or not isinstance(question.get("action_requests"), list):
        screen.show(Text(question if isinstance(question, str) else json_text(question)))
        screen.rest()
        return _value(ask("answer> ", ""))
    if problem := question.get("problem"):
        screen.note(Text(str(problem), "yellow"))
    configs = question.get("review_configs")
    allowed = [one.get("allowed_decisions", DECISIONS) for one in configs] if isinstance(configs, list) else []
    requests = question["action_requests"]
    allowed += [DECISIONS] * (len(requests) - len(allowed))
    return {"decisions": [_decide(one, may, ask, screen) for one, may in zip(requests, allowed, strict=False)]}


def _decide(request: dict[str, Any], allowed: Sequence[str], ask: Ask, screen: Screen) -> dict[str, Any]:
    shown = Text(f"{request['name']} waits for your word:")
    for name, value in request["args"].items():
        shown.append(f"\n  {name}: ", "bold").append(value if isinstance(value, str) else json_text(value))
    screen.show(shown)
    screen.rest()
    while True:
        match decision(ask(f"{', '.join(allowed)}? ", ""), allowed):
            case "edit":
                args = {name: _edited(name, value, ask) for name, value in request["args"].items()}
                return {"type": "edit", "edited_action": {"name": request["name"], "args": args}}
            case "reject":
                return {"type": "reject", "message": ask("why (may be left empty)> ", "")}
            case str(other):
                return {"type": other}


def decision(said: str, allowed: Sequence[str]) -> str | None:
    """The decision that was meant: a beginning of its name is enough, and nothing is not."""
    meant = [one for one in allowed if said.strip() and one.startswith(said.strip().lower())]
    return meant[0] if len(meant) == 1 else None


def _edited(name: str, value: Any, ask: Ask) -> Any:
    """The argument as it is to be: a text as it is typed, all else as JSON."""
    while True:
        line = ask(f"{name}> ", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        if isinstance(value, str):
            return line
        try:
            return json.loads(line)
        except ValueError:
            continue


def _value(line: str) -> Any:
    """What was typed: JSON where it is, else a text."""
    try:
        return json.loads(line)
    except ValueError:
        return line
