"""No page leads nowhere: every link of the documents and notebooks has a file, and every anchor a heading.

Nothing is fetched: of an address elsewhere only its form is looked at.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def tokens(page: Path) -> list[Token]:
    """A page's Markdown, taken apart; of a notebook its cells with text, one below the other."""
    text = page.read_text("utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return MarkdownIt("commonmark").enable("table").parse(text)


def links(page: Path) -> Iterator[str]:
    """Where a page's links and pictures lead."""
    for token in tokens(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target is not None:
                yield str(target)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    found = []
    for before, token in pairwise(tokens(page)):
        if before.type == "heading_open":
            words = "".join(child.content for child in token.children or () if child.type in ("text", "code_inline"))
            found.append(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    seen: Counter[str] = Counter()
    named = set()
    for anchor in found:
        named.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return named


def problem(page: Path, link: str) -> str | None:
    """What is wrong with a link, if anything is."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        sound = parts.scheme in ("http", "https") and parts.hostname and not re.search(r"\s", link)
        return None if sound else "is no address"
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_relative_to(ROOT):
        return "leads out of the project"
    if not target.exists():
        return "leads to no file"
    if parts.fragment and (target.suffix != ".md" or unquote(parts.fragment) not in anchors(target)):
        return "leads to no heading"
    return None


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = {link: what for link in links(page) if (what := problem(page, link)) is not None}
    assert not wrong


@every_page
def test_every_reference_is_one(page: Path) -> None:
    """``[words][name]`` without a ``[name]: …`` is left standing as text."""
    left = [
        child.content
        for token in tokens(page)
        for child in token.children or ()
        if child.type == "text" and re.search(r"\]\[[^\]]*\]|\]\(", child.content)
    ]
    assert not left


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    named = {(index.parent / urlsplit(link).path).resolve() for link in links(index)}
    assert {page for page in ROOT.glob("docs/*.md") if page != index} <= named


def test_the_anchors_are_as_github_makes_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b_c`, d!\n\n## 10,000 readers\n\n## It's [a link](x.md) – so\n\n### Twice\n\n### Twice\n", "utf-8"
    )
    assert anchors(page) == {"a-b_c-d", "10000-readers", "its-a-link--so", "twice", "twice-1"}


def test_a_link_that_leads_nowhere_is_noticed(tmp_path: Path) -> None:
    page = ROOT / "docs" / "index.md"
    assert problem(page, "no-such-page.md") == "leads to no file"
    assert problem(page, "http.md#no-such-heading") == "leads to no heading"
    assert problem(page, "../../elsewhere.md") == "leads out of the project"
    assert problem(page, "http://") == "is no address"
    assert problem(page, "http.md#coming-back") is None
