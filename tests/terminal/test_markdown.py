"""Markdown that grows: whatever comes when, what is printed is the whole, once."""

import random

import pytest
from rich.console import Console

from app.simulator import prose
from app.terminal.markdown import Formatted, Growing, Line, Piece

CONSOLE = Console(width=80, color_system=None, force_terminal=True)

MOST = 8

TEXTS = {
    "a paragraph longer than the screen": prose.exactly(400),
    "paragraphs": prose.exactly(200, 5),
    "code": prose.code(),
    "long code": "Look:\n\n```python\n"
    + "\n".join(f"x{at} = {at}" if at % 7 else "" for at in range(1, 50))
    + "\n```\n.",
    "a list": "Items:\n\n" + "\n".join(f"- item {at} is **bold** and `code`" for at in range(30)) + "\n\nend",
    "a numbered list": "\n".join(f"{at}. item {at}" for at in range(1, 30)) + "\n\nend",
    "a list numbered by ones": "\n".join(f"1. item {at}" for at in range(1, 25)) + "\n\nend",
    "a table": "|a|b|\n|-|-|\n" + "\n".join(f"|{at}|{at * at}|" for at in range(20)) + "\n\nafter",
    "headings and quotes": "# One\n\ntext\n\n## Two\ntext\n\nIII\n---\n> q\n> r\n\n- a\n  - b\n    - c\n\n***\nend",
    "what begins like something else": "foo\n#1 is that\n* *x* y\n1986. It was\n**bold over "
    + "many words " * 80
    + "**!",
}


def render(text: str) -> list[Line]:
    return CONSOLE.render_lines(Formatted(text), CONSOLE.options, pad=False)


def plain(lines: list[Line]) -> list[str]:
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def whole(text: str) -> list[str]:
    return "\n".join(plain(render(text))).strip("\n").split("\n")


def grown(text: str, chance: random.Random) -> list[str]:
    printed: list[str] = []

    def keep(piece: Piece) -> None:
        if piece.lines:
            printed.extend([""] if printed and not piece.joined else [])
            printed.extend(plain(piece.lines))

    growing, at = Growing(), 0
    while at < len(text):
        size = chance.choice((1, 3, 20, 150))
        growing.add(text[at : at + size])
        at += size
        if chance.random() < 0.3:
            for piece in growing.settle(render, MOST):
                keep(piece)
    keep(growing.finish(render))
    return printed


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("seed", range(2))
def test_what_is_printed_bit_by_bit_is_what_the_whole_text_looks_like(name: str, seed: int) -> None:
    assert grown(TEXTS[name], random.Random(seed)) == whole(TEXTS[name])


@pytest.mark.parametrize("name", ["a paragraph longer than the screen", "long code", "a list", "paragraphs"])
def test_what_may_still_change_stays_small(name: str) -> None:
    growing = Growing()
    for letter in range(0, len(TEXTS[name]), 25):
        growing.add(TEXTS[name][letter : letter + 25])
        list(growing.settle(render, MOST))
        assert len(growing.tail(render).lines) <= MOST + 1


def test_what_is_settled_is_not_looked_at_again() -> None:
    looked = 0

    def counting(text: str) -> list[Line]:
        nonlocal looked
        looked += len(text)
        return render(text)

    def cost(tokens: int) -> int:
        nonlocal looked
        looked, growing, text = 0, Growing(), prose.exactly(tokens)
        for at in range(0, len(text), 100):
            growing.add(text[at : at + 100])
            list(growing.settle(counting, MOST))
        return looked

    assert cost(2000) < 3 * cost(1000)


def test_html_is_shown_as_it_stands_and_a_picture_by_its_address() -> None:
    shown = plain(render("a <b>c</b>\n\n<div>\nd\n</div>\n\n![p](http://x/y.png)"))
    assert shown == ["a <b>c</b>", "", "<div>", "d", "</div>", "", "p (http://x/y.png)"]


def test_a_link_shows_where_it_leads_and_an_address_is_shown_once() -> None:
    assert plain(render("[bank](http://evil.example) <http://here.example>")) == [
        "bank (http://evil.example) http://here.example"
    ]


def test_no_entity_brings_in_what_drives_a_terminal() -> None:
    shown = "\n".join(plain(render("a&#x202e;b&#27;[2J `&#x202e;` [l](http://x/&#x9b;)")))
    assert not any(letter in shown for letter in "\x1b\x9b\u202e")
