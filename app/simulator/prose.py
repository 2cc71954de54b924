"""Texts of any length for the simulated model to say: deterministic, readable, and plainly made up.

Everything here is a function of its arguments; nothing is random and nothing is remembered.
"""

from collections.abc import Iterator
from itertools import count, islice

from app.simulator import tokens

LONGEST = 200_000  # tokens; what a person can ask for in words ends here

_SUBJECTS = (
    "The stream",
    "A quiet wheel",
    "The miller",
    "Each bucket of water",
    "The old gate",
    "A heron on the weir",
    "The evening shift",
)
_DEEDS = (
    "turns without haste",
    "carries what it is given",
    "waits for the next push",
    "counts every drop",
    "keeps its own time",
)
_ENDINGS = (
    "and nothing is lost on the way",
    "while the stones hum below",
    "until somebody closes the sluice",
    "as long as the river allows",
    "because the grain will not wait",
    "and the flour comes out fine",
    "though nobody is watching",
    "before the light is gone",
    "one cupful after another",
    "with a sound like soft rain",
    "and then begins again",
)


def sentences() -> Iterator[str]:
    """Sentences without end; the wording repeats after 385 of them."""
    for at in count():
        yield f"{_SUBJECTS[at % 7]} {_DEEDS[at % 5]} {_ENDINGS[at % 11]}."


def words(number: int) -> str:
    """Exactly that many words."""
    found = (word for sentence in sentences() for word in sentence.split())
    return _ended(" ".join(islice(found, min(number, LONGEST))))


def exactly(number: int, paragraphs: int = 1) -> str:
    """A text of exactly that many tokens, in so many paragraphs as far as there are tokens for them."""
    source, found = sentences(), list[str]()
    parts = max(min(paragraphs, (number + 1) // 2), 1)
    for part in range(parts):
        if part:
            found.append("\n\n")
        found += _pieces(source, (number - parts + 1) * (part + 1) // parts - (len(found) - part))
    return "".join(found)


def _pieces(source: Iterator[str], number: int) -> list[str]:
    found: list[str] = []
    while len(found) < number:
        sentence = next(source)
        found += tokens.pieces(f" {sentence}" if found else sentence)
    return found[:number]


def paragraphs(number: int) -> str:
    """That many paragraphs of four sentences, with a blank line between two."""
    source = sentences()
    return "\n\n".join(" ".join(islice(source, 4)) for _ in range(min(number, LONGEST // 60)))


def counting(first: int, last: int) -> str:
    """The numbers from ``first`` to ``last``, both said, up or down."""
    step = 1 if last >= first else -1
    return ", ".join(map(str, islice(range(first, last + step, step), LONGEST // 2))) + "."


def code() -> str:
    """A short answer with a fenced code block."""
    return (
        "Here is a small example (simulated, so it is always the same one):\n\n"
        "```python\n"
        "def mill(grain: list[str]) -> str:\n"
        '    """Turn grains into flour, one after another."""\n'
        "    flour = []\n"
        "    for kernel in grain:\n"
        "        flour.append(kernel.lower())\n"
        '    return " ".join(flour)\n'
        "\n\n"
        'print(mill(["Wheat", "Rye", "Oats"]))\n'
        "```\n\n"
        "It walks over the list once and joins what it has ground."
    )


def _ended(text: str) -> str:
    return text if text.endswith(".") or not text else text + "."
