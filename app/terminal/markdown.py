"""Markdown that grows: what of it will not change any more, and what still may.

A block (a paragraph, a list, a table) is settled when the next one has begun; settled text is handed out once, to be
printed into the scrollback, and never looked at again. So an answer costs its length and not its square. A block that
outgrows the screen is cut, where it can be: between words, lines of code or items of a list, and only where the two
parts look as the whole does. What cannot be cut (a table) waits for its end.

A model writes this text, so nothing in it is obeyed: HTML is shown as it stands, a link with its address beside it,
and characters that drive terminals do not come in by an entity either.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown
from rich.segment import Segment
from rich.syntax import Syntax

from app.remote import harmless

Line = list[Segment]
Render = Callable[[str], list[Line]]

KEPT = 2
"""Lines of a block that are not settled by a cut: the last one grows, and a word may still join the one before."""

TRIES = 4
"""Places at which a cut is tried before the block is left whole for now."""


class _Title(Heading):
    """A heading at the left, where a chat has everything."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Code(CodeBlock):
    """Code as it can be copied: without a frame, and in the terminal's own colours."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(code, self.lexer_name, theme="ansi_dark", word_wrap=True, background_color="default")


class Formatted(Markdown):
    """What a model wrote, as something that rich can show."""

    elements: ClassVar = {**Markdown.elements, "heading_open": _Title, "fence": _Code, "code_block": _Code}

    def __init__(self, text: str) -> None:
        super().__init__(text, hyperlinks=False)
        for token in self.parsed:
            _tame(token)


def _tame(token: Any) -> None:
    token.content = harmless(token.content)
    if token.type == "html_block":
        token.type, token.info = "fence", "html"
    elif token.type == "html_inline":
        token.type = "text"
    elif token.type == "image":
        token.type, token.tag, token.content = "text", "", f"{token.content} ({token.attrs.get('src', '')})"
        token.children = None
    for name, value in token.attrs.items():
        token.attrs[name] = harmless(value) if isinstance(value, str) else value
    if token.children:  # an address that is a link to itself need not be shown twice
        token.children = [child for child in token.children if child.markup != "autolink"]
    for child in token.children or ():
        _tame(child)


@dataclass(frozen=True, slots=True)
class Piece:
    """Lines that will not change. ``joined``: they go on with the block before, without an empty line between."""

    lines: list[Line]
    joined: bool


class Growing:
    """A text that comes piece by piece. ``render`` makes lines of Markdown, for the width that the screen has now."""

    def __init__(self) -> None:
        self._text = ""
        self._joined = False

    def add(self, text: str) -> None:
        """More of it."""
        self._text += text

    def tail(self, render: Render) -> Piece:
        """What is not settled, as it looks now."""
        return Piece(_shown(render, self._text), self._joined)

    def settle(self, render: Render, most: int) -> Iterator[Piece]:
        """What will not change any more, so that no more than ``most`` lines are left, where that can be."""
        # A line that is not whole may yet turn out to be anything: "#" a heading or "#1".
        starts = [start for start, *_ in _blocks(self._text[: self._text.rfind("\n") + 1])]
        if len(starts) > 1:
            yield self._take(render, starts[-1])
        shown = _shown(render, self._text)
        while len(shown) > most and (cut := _cut(self._text, render, shown)) is not None:
            first, self._text = cut
            yield Piece(_shown(render, first), self._joined)
            self._joined = True
            shown = _shown(render, self._text)

    def finish(self, render: Render) -> Piece:
        """It is whole: what was not settled."""
        piece = self._take(render, len(self._text))
        self._joined = False
        return piece

    def _take(self, render: Render, end: int) -> Piece:
        piece = Piece(_shown(render, self._text[:end]), self._joined)
        self._text, self._joined = self._text[end:], False
        return piece


def _shown(render: Render, text: str) -> list[Line]:
    """Its lines, without the empty ones that rich has around some blocks."""
    lines = render(text) if text.strip() else []
    told = [at for at, line in enumerate(lines) if _plain(line)]
    return lines[told[0] : told[-1] + 1] if told else []


def _plain(line: Line) -> str:
    return "".join(segment.text for segment in line).rstrip()


def _blocks(text: str) -> list[tuple[int, Any, list[Any]]]:
    """Where each block begins, its token, and what is in it."""
    starts = [0, *(found.end() for found in re.finditer("\n", text))]
    found: list[tuple[int, Any, list[Any]]] = []
    for token in Markdown(text).parsed:
        if token.level == 0 and token.map and token.nesting >= 0:
            found.append((starts[token.map[0]], token, []))
        elif found:
            found[-1][2].append(token)
    return found


# -- cuts -------------------------------------------------------------------------------------------------------------


def _cut(text: str, render: Render, shown: list[Line]) -> tuple[str, str] | None:
    """Two parts of the one block that this is, which look as the whole does."""
    whole = [_plain(line) for line in shown]
    for tried, (first, rest) in enumerate(_cuts(text, whole)):
        if tried == TRIES:
            break
        above, below = _shown(render, first), _shown(render, rest)
        if above and below and [_plain(line) for line in (*above, *below)] == whole:
            return first, rest
    return None


def _cuts(text: str, shown: list[str]) -> Iterator[tuple[str, str]]:
    blocks = _blocks(text)
    if len(blocks) != 1:
        return
    _, token, inside = blocks[0]
    if token.type == "paragraph_open":
        yield from _between_words(text, shown)
    elif token.type == "fence":
        yield from _between_lines_of_code(text, token)
    elif token.type in ("bullet_list_open", "ordered_list_open"):
        yield from _between_items(text, inside)


def _between_words(text: str, shown: list[str]) -> Iterator[tuple[str, str]]:
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    for kept in range(KEPT, len(shown)):
        words = sum(len(line.split()) for line in shown[:-kept])
        if 0 < words < len(ends):
            yield text[: ends[words - 1]], text[ends[words - 1] :].lstrip()


def _between_lines_of_code(text: str, token: Any) -> Iterator[tuple[str, str]]:
    opening, *code = text.splitlines(keepends=True)
    for at in range(len(code) - KEPT, 0, -1):
        yield f"{opening}{''.join(code[:at])}{token.markup}\n", opening + "".join(code[at:])


def _between_items(text: str, inside: list[Any]) -> Iterator[tuple[str, str]]:
    lines = text.splitlines(keepends=True)
    starts = [token.map[0] for token in inside if token.type == "list_item_open" and token.level == 1]
    for at in reversed(starts[1:]):
        yield "".join(lines[:at]), "".join(lines[at:])
