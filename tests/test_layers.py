"""The import law of CONTRIBUTING.md, read off the source: lazy and TYPE_CHECKING imports count."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

HOUSE: dict[str, set[str]] = {
    "app.errors": set(),
    "app.telemetry": set(),
    "app.settings": set(),
    "app.memory": set(),
    "app.simulator": set(),
    "app.targets": {"app.errors"},
    "app.tomlfile": set(),
    "app.remote": set(),
    "app.terminal": {"app.remote"},
    "app.doctor": {"app.remote"},
    "app.events": {"app.errors"},
    "app.eventlog": {"app.events", "app.errors", "app.telemetry"},
    "app.limits": {"app.events", "app.errors", "app.telemetry", "app.tomlfile"},
    "app.runs": {"app.events", "app.eventlog", "app.limits", "app.errors", "app.telemetry", "app.tomlfile"},
    "app.protocols": {"app.events", "app.errors"},
    "app.transports": {"app.protocols", "app.errors", "app.telemetry"},
    "app.routes": {
        "app.events", "app.runs", "app.protocols", "app.transports", "app.errors", "app.telemetry",
        "app.eventlog.subscriber",
    },
    "chains": {"tools"},
    "tools": set(),
}  # fmt: skip
"""What each room may import of the house, itself apart. ``main``, ``serve`` and ``cli`` may import anything."""

NEVER: dict[str, set[str]] = {
    "app.errors": {"fastapi", "starlette", "langchain_core", "langgraph"},
    "app.events": {"asyncio", "anyio", "langchain", "langchain_core", "langgraph", "fastapi", "starlette"},
    "app.eventlog": {"langchain", "langchain_core", "langgraph", "fastapi", "starlette"},
    "app.limits": {"fastapi", "starlette", "langchain_core", "langgraph"},
    "app.runs": {"fastapi", "starlette", "langserve", "langchain_openai"},
    "app.protocols": {"asyncio", "anyio", "fastapi", "starlette", "langchain_core", "langgraph"},
    "app.transports": {"fastapi", "langchain_core", "langgraph"},
    "app.routes": {"redis", "langchain_core", "langgraph", "langchain"},
    "chains": {"fastapi", "starlette"},
    "tools": {"fastapi", "starlette", "langgraph", "langchain"},
}
"""What each room may not import of the world."""


def sources() -> Iterator[Path]:
    for top in ("app", "chains", "tools"):
        yield from sorted((ROOT / top).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "app" else parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports in the house are absolute"
            yield node.lineno, node.module or ""


def allowed(room: str, name: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in {room, *HOUSE[room]})


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_the_law_allows(path: Path) -> None:
    room = room_of(module_of(path))
    if room in ("app", "app.main", "app.serve", "app.cli"):
        return
    assert room in HOUSE, f"{room} is a new room: give it a line in the law"
    for line, name in imports(path):
        if name.split(".")[0] in ("app", "chains", "tools"):
            assert allowed(room, name), f"{path.name}:{line}: {room} may not import {name}"
        assert name.split(".")[0] not in NEVER.get(room, set()), f"{path.name}:{line}: {room} may not import {name}"


def test_only_main_and_serve_read_the_settings() -> None:
    readers = {module_of(path) for path in sources() for _, name in imports(path) if name == "app.settings"}
    assert readers == {"app.main", "app.serve"}


def test_only_main_joins_the_agents_to_the_server() -> None:
    readers = {
        module_of(path)
        for path in (ROOT / "app").rglob("*.py")
        for _, name in imports(path)
        if name.split(".")[0] in ("chains", "tools")
    }
    assert readers == {"app.main"}


def test_only_telemetry_knows_what_it_is_written_with() -> None:
    tools = {"prometheus_client", "opentelemetry", "pythonjsonlogger"}
    users = {room_of(module_of(path)) for path in sources() for _, name in imports(path) if name.split(".")[0] in tools}
    assert users == {"app.telemetry"}


def test_every_module_says_what_it_is_for() -> None:
    for path in sources():
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), f"{path} has no docstring"
