"""What the simulated provider calls a token: a deterministic cut of text into pieces, with no table to load.

A word keeps the space before it; a word of more than six characters falls into several pieces; punctuation stands
alone; Chinese, Japanese, Korean and emoji go character by character. The pieces, joined, are always the text.
"""

import re

_WIDE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U0001f000-\U0010ffff"

_PIECE = re.compile(
    rf"[{_WIDE}]"
    rf"| ?[^\W_{_WIDE}]{{1,6}}"
    rf"| ?[^\w\s{_WIDE}]"
    r"| ?_"
    r"|[^\S\n]+(?= \S)"  # an indentation is one piece, and leaves the last space to its word
    r"|\n+"
    r"|\s"
)


def pieces(text: str) -> list[str]:
    """The tokens of ``text``, in order; ``"".join(pieces(text)) == text``."""
    return _PIECE.findall(text)


def count(text: str) -> int:
    """How many tokens ``text`` has."""
    return len(pieces(text))
