"""A bound on the time that LangChain takes to read the arguments of a tool call that is not JSON.

When a streamed answer is complete, LangChain sums its chunks and reads each call's arguments by its own
``parse_partial_json``. Of a text that is no JSON this takes away one character after another and reads the rest each
time: 23 KB that end with a comma too many are nine seconds in which the event loop stands still, for every run there is
(langchain-core 1.7). Models do write such texts, and the sum is made before any code of ours, or of a graph, has the
answer. So the server replaces that one function, for long texts that are no JSON, by a parse that reads them once.

What is sound JSON, and what is short, is read as ever.
"""

import json
from collections.abc import Callable
from typing import Any

from langchain_core.messages import ai
from pydantic_core import from_json

SHORT = 1024
"""Characters that LangChain may read in its own way, some milliseconds at the most."""

Parse = Callable[..., Any]


def bound_parsing() -> None:
    """Have this process read long broken arguments in linear time. Doing so twice changes nothing."""
    parse: Parse = vars(ai)["parse_partial_json"]
    if not isinstance(parse, Bounded):
        vars(ai)["parse_partial_json"] = Bounded(parse)


class Bounded:
    """``parse`` for short texts. Of long ones the JSON, or what there is of it; ``ValueError`` where it is broken."""

    def __init__(self, parse: Parse) -> None:
        self._parse = parse

    def __call__(self, text: str, *, strict: bool = False) -> Any:
        """As LangChain calls it."""
        if len(text) <= SHORT:
            return self._parse(text, strict=strict)
        try:
            return json.loads(text, strict=strict)
        except json.JSONDecodeError:
            return from_json(text, allow_partial="trailing-strings")
