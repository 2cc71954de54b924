"""The documents say of the code what is so: docs/reference.md is made from it, and the other pages name all of it."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.events.event import TYPES, Event
from app.main import create_app
from app.settings import Settings
from app.transports.websocket import CloseCode

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted((*ROOT.glob("*.md"), *DOCS.glob("*.md")))

OF_COMMANDS = {"MILLRACE_URL", "MILLRACE_API_KEY"}
"""What commands read from the environment and the server does not."""


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    """What stands in docs/reference.py."""
    return runpy.run_path(str(DOCS / "reference.py"))


@pytest.fixture(scope="module")
def made(generator: dict[str, Any]) -> str:
    """The page as the code makes it now."""
    page = generator["page"]()
    assert isinstance(page, str)
    return page


def read(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of every table, without heads and rules."""
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        for line in table.splitlines()[2:]:
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def codes(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def listed(page: str) -> set[tuple[str, str]]:
    """The routes of a page's tables: ``GET /a/b``, ``/a/c``, ``d`` in one cell are three, each as the one before."""
    found = set()
    for first, *_ in rows(page):
        method = path = ""
        for code in codes(first):
            told, slash, rest = code.rpartition(" ")
            if slash and rest.startswith("/"):
                method, path = told, rest
            elif code.startswith("/"):
                path = code
            elif path:
                path = f"{path.rpartition('/')[0]}/{code}"
            if path:
                found.add((method, path))
    return found


def served(routes: Any) -> Iterator[tuple[str, str]]:
    """Every route of an application, an agent's own under ``{agent}``, without LangServe's links to share."""
    for route in routes:
        within = getattr(route, "original_router", None)  # what FastAPI keeps of a router that was included
        if within is not None:
            yield from served(within.routes)
        elif "{config_hash}" not in route.path:
            path = re.sub(r"^/agents/[^/]+/", "/agents/{agent}/", route.path).replace("{file_path:path}", "")
            path = path.replace(":path}", "}")
            for method in (getattr(route, "methods", None) or {"GET"}) - {"HEAD"}:
                yield method, path


def test_the_reference_is_what_the_code_makes(made: str) -> None:
    assert read("reference.md") == made, "run: python docs/reference.py"


def test_everything_in_it_has_a_meaning(made: str) -> None:
    named = {"meaning", "when"}
    for table in re.findall(r"(?:^\|.*\|\n)+", made, re.MULTILINE):
        if table.splitlines()[0].split("|")[-2].strip() in named:
            assert [row for row in rows(table) if not row[-1]] == []
    assert not re.search(r"^### `.*`\n\n(?!\w)", made, re.MULTILINE)


def test_it_has_every_route_that_is_served(made: str) -> None:
    app = create_app(Settings(model="openai:none", openai_base_url="http://127.0.0.1:9"))
    helpers = {("GET", "/docs/oauth2-redirect")}
    assert set(served(app.routes)) - helpers <= listed(made)


def test_the_page_of_routes_has_them_all(made: str) -> None:
    assert listed(made[: made.index("## The run request")]) <= listed(read("http.md"))


def test_the_page_of_events_has_them_all_with_all_their_fields() -> None:
    told: dict[str, str] = {}
    for names, meaning in (row for row in rows(read("events.md")) if len(row) == 2):
        told |= dict.fromkeys(codes(names), meaning)
    assert told.keys() == TYPES.keys()
    for name, event in TYPES.items():
        own = set(event.__struct_encode_fields__) - set(Event.__struct_encode_fields__)
        assert own <= set(re.findall(r"\w+", " ".join(codes(told[name])))), name


def test_the_page_of_the_socket_has_every_close_code_and_every_code_of_its_own(generator: dict[str, Any]) -> None:
    page = read("websocket.md")
    assert {str(code.value) for code in CloseCode} <= {first for first, *_ in rows(page)}
    own = {code for code, words in generator["CODES"].items() if words.startswith("On a WebSocket")}
    assert own <= set(codes(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_setting_or_a_metric_that_there_is_not(page: Path, made: str) -> None:
    text = page.read_text("utf-8")
    settings = {f"MILLRACE_{name.upper()}" for name in Settings.model_fields} | OF_COMMANDS
    assert set(re.findall(r"\bMILLRACE_[A-Z0-9_]+[A-Z0-9]", text)) <= settings
    metrics = {code for code in codes(made) if code.startswith("millrace_")}
    named = set(re.findall(r"`(millrace_\w+)[`{]", text)) - {"millrace_session"}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= metrics
