"""What the user names on the command line, turned into runnables.

Two sources: ``NAME=MODULE:ATTR`` (or ``NAME=./file.py:ATTR``) and an existing project's ``langgraph.json``. Each gives
a compiled LangGraph graph, any other Runnable, an uncompiled ``StateGraph``, or a function that returns one of these.

A bad target is one line of a :class:`TargetError`, whatever the user's code did (``sys.exit`` at import, a syntax
error, a factory that raises); the first cause stays in ``__cause__``.

The user's folder may hold its own ``app/``, ``chains/`` or ``tools.py``. Then Millrace's package of that name is *set
aside*: taken out of ``sys.modules``, so that the name is the user's from there on. Millrace runs on, because its
modules hold references to each other; but **no module of Millrace may look another one up by name once a target is
loaded**: not by an import in a function, not by pickle, not by ``importlib.resources``.

Loading changes ``sys.path``, ``sys.modules`` and (a project's ``env``) ``os.environ`` for the whole process: it is for
start-up, one target after the other. Nothing here renames, copies or runs a graph.
"""

import asyncio
import difflib
import importlib
import inspect
import json
import os
import re
import sys
import sysconfig
import textwrap
import traceback
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec
from dotenv import dotenv_values
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import StateGraph

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SERVABLE: Final = "a compiled LangGraph graph, a Runnable, or a zero-argument function that returns one"
_OWN: Final = ("app", "chains", "tools")
_HOME: Final = Path(__file__).resolve().parents[1]
_STDLIB: Final = Path(sysconfig.get_path("stdlib")).resolve()

# Keys of langgraph.json that change how LangGraph's own server behaves, and what takes their place here.
_IGNORED: Final = {
    "auth": "Millrace decides who may call it",
    "checkpointer": "threads are kept by Millrace",
    "encryption": "nothing is encrypted at rest",
    "http": "routes and CORS are Millrace's own",
    "store": "graphs run with the store they were compiled with",
    "webhooks": "none are sent",
}


class TargetError(Exception):
    """A target that cannot be served; ``str(error)`` is one line that says which, where and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something to serve: ``name`` is a URL path segment, ``origin`` the MODULE:ATTR or file:ATTR it came from."""

    name: str
    runnable: Runnable[Any, Any]
    origin: str
    description: str = ""


def load_target(spec: str, *, root: Path) -> Target:
    """Load ``NAME=MODULE:ATTR`` or ``NAME=path/to/file.py:ATTR``; ``root`` is the folder both start from.

    The root is importable, and so is the folder of a file. Two names that are alike are the caller's to refuse.
    """
    name, equals, origin = spec.partition("=")
    with _about(spec):
        if not equals:
            raise TargetError("it has no name; write NAME=MODULE:ATTR, as in support=my_agents:graph")
        root = root.resolve()
        return Target(_checked(name), _load(origin, root, [root], script=True), origin)


def load_config(path: Path) -> tuple[list[Target], list[str]]:
    """Load every Python graph of a ``langgraph.json`` (https://docs.langchain.com/langsmith/cli#configuration-file).

    Returns the targets in the file's order, and notes: one line for each thing in the file that is not honoured.
    A factory is called once, with an empty config where it asks for one; LangGraph's server calls it for each run.
    """
    with _about(_shown(path)):
        config, notes = _read(path)
        base = path.resolve().parent
        notes += _apply(config.env, base)
        roots = _importable(base, config.dependencies)
        targets = []
        for name, graph in config.graphs.items():
            origin = graph if isinstance(graph, str) else graph.path
            if re.search(r"\.[mc]?[jt]sx?:", origin):
                notes.append(f"graph {name} is left out: {origin} is JavaScript, and Millrace serves Python")
                continue
            with _about(f"graphs.{name}"), _missing(config.dependencies, base):
                runnable = _load(origin, base, roots, script=False)
                description = "" if isinstance(graph, str) else graph.description or ""
                targets.append(Target(_checked(name), runnable, origin, description))
    return targets, notes


# The file


class _Graph(msgspec.Struct):
    path: str
    description: str | None = None


class _Config(msgspec.Struct):
    graphs: dict[str, str | _Graph]
    dependencies: list[str] = []
    env: str | dict[str, str | int | float] = ""


def _read(path: Path) -> tuple[_Config, list[str]]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        config = msgspec.convert(raw, _Config)
    except OSError as error:
        raise TargetError(f"it cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise TargetError(f"line {error.lineno}, column {error.colno}: {error.msg}; it must be plain JSON") from error
    except UnicodeDecodeError as error:
        raise TargetError("it is not UTF-8 text") from error
    except msgspec.ValidationError as error:
        raise TargetError(str(error)) from error
    if not config.graphs:
        raise TargetError('"graphs" is empty; it maps a name to "./file.py:attribute"')
    return config, [f"{key} is ignored: {instead}" for key, instead in _IGNORED.items() if raw.get(key)]


def _apply(env: str | dict[str, Any], base: Path) -> list[str]:
    """Set what the process's own environment leaves unset; a missing file is a note, as it is kept out of git."""
    if isinstance(env, str):
        if env and not (base / env).is_file():
            return [f"env is ignored: there is no file {env}"]
        env = _parse_env(base / env) if env else {}
    for key, value in env.items():
        os.environ.setdefault(key, str(value))
    return []


def _parse_env(file: Path) -> dict[str, str]:
    try:
        return {key: value for key, value in dotenv_values(file).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"env: {file.name} cannot be read: {_line(error)}") from error


def _importable(base: Path, dependencies: list[str]) -> list[Path]:
    """The folders to import from: the project's own, then what installing each local dependency would expose."""
    roots = [base]
    for dependency in dependencies or ["."]:
        if _is_local(dependency, base):
            folder = (base / dependency).resolve()
            if not folder.is_dir():
                raise TargetError(f"dependencies: there is no folder {dependency}")
            roots += _exposed(folder)
    return list(dict.fromkeys(roots))


def _exposed(folder: Path) -> list[Path]:
    if any((folder / name).is_file() for name in ("pyproject.toml", "setup.py", "setup.cfg")):
        return [folder, folder / "src"] if (folder / "src").is_dir() else [folder]
    # LangGraph wraps a bare folder with an `__init__.py` as a package of the folder's name.
    return [folder, folder.parent] if (folder / "__init__.py").is_file() else [folder]


def _is_local(dependency: str, base: Path) -> bool:
    return dependency.startswith(".") or (base / dependency).is_dir()


@contextmanager
def _missing(dependencies: list[str], base: Path) -> Iterator[None]:
    """Add to a failed import which of the project's dependencies are not installed."""
    try:
        yield
    except TargetError as error:
        absent = [name for name in dependencies if not _is_local(name, base) and not _installed(name)]
        if not absent or not isinstance(error.__cause__, ImportError):
            raise
        raise TargetError(f"{error}; not installed: {', '.join(absent)} (pip install them)") from error.__cause__


def _installed(requirement: str) -> bool:
    name = re.match(r"[A-Za-z0-9][\w.-]*", requirement)
    if name is None or "://" in requirement:
        return True  # no name to ask for
    try:
        distribution(name[0])
    except PackageNotFoundError:
        return False
    return True


# From a name to a runnable


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise TargetError(
            f"{name!r} cannot be a name: it becomes part of the URL, so it is up to 64 letters, digits, _, - and ., "
            "and starts with a letter or digit"
        )
    return name


def _load(origin: str, base: Path, roots: list[Path], *, script: bool) -> Runnable[Any, Any]:
    place, colon, attribute = origin.rpartition(":")
    if not (colon and place and attribute):
        raise TargetError("it names no attribute; write MODULE:ATTR or path/to/file.py:ATTR, as in my_agents:graph")
    path = "/" in place or os.sep in place or place.endswith(".py")

    def load() -> Runnable[Any, Any]:
        module = _from_file(_file(base / place, place), roots, script=script) if path else _from_name(place, roots)
        return _runnable(_attribute(module, place, attribute), attribute)

    return _off_loop(load)


def _off_loop(load: Callable[[], Runnable[Any, Any]]) -> Runnable[Any, Any]:
    """The user's code may call ``asyncio.run``, which a running loop forbids: then it goes to a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return load()
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(load).result()


def _file(file: Path, place: str) -> Path:
    if file.is_dir():
        raise TargetError(f"{place} is a folder; name a file in it, as in {place.rstrip('/')}/agent.py:graph")
    if not file.is_file():
        siblings = {other.name: other for other in file.parent.glob("*.py")}
        raise TargetError(f"there is no file {place}{_near(file.name, siblings)}")
    return file.resolve()


def _from_name(name: str, roots: list[Path]) -> ModuleType:
    top = name.partition(".")[0]
    _make_room(roots, wanted=top)
    with _users_code():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not error.name or not f"{name}.".startswith(f"{error.name}."):
                raise
            here = [entry.stem for entry in roots[0].iterdir() if entry.suffix == ".py" or entry.is_dir()]
            raise TargetError(f"there is no module {name} in {roots[0].name}{_near(top, here)}") from error


def _from_file(file: Path, roots: list[Path], *, script: bool) -> ModuleType:
    """A file in a package goes by its dotted name, so that its relative imports work; any other by its place."""
    home, dotted = _package(file, roots)
    packaged = home != file.parent
    # A script finds its neighbours first, as under `python file.py`. LangGraph adds no folder of a graph's file.
    roots = [home, *roots] if script else [*roots, home] if packaged else roots
    _make_room(roots)
    with _users_code():
        if packaged and _leads_to(dotted.partition(".")[0], home, roots):
            return importlib.import_module(dotted)
        return _from_place(file)


def _leads_to(package: str, home: Path, roots: list[Path]) -> bool:
    """Whether the package is what its name gives: an ``openai/`` of the user's own is not, once the library is in."""
    init, held = home / package / "__init__.py", _held(package, roots)
    free = package not in sys.modules or _is_from(sys.modules[package], init)
    return free and held is not None and _place(held) == init


def _package(file: Path, roots: list[Path]) -> tuple[Path, str]:
    home, parts = file.parent, [file.stem]
    while home not in roots and (home / "__init__.py").is_file():
        home, parts = home.parent, [home.name, *parts]
    return home, ".".join(part for part in parts if part != "__init__" or len(parts) == 1)


def _from_place(file: Path) -> ModuleType:
    # The name must be one that nothing else can have, and the same after a restart: a checkpoint names the classes
    # of a thread's state by it.
    digest = zlib.crc32(_shown(file).encode())
    name = f"{re.sub(r'[^a-zA-Z0-9_]', '_', file.stem)}_{digest:08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise TargetError(f"{file.name} is no Python file")
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _attribute(module: ModuleType, place: str, dotted: str) -> Any:
    value: Any = module
    at = place
    for name in dotted.split("."):
        with _users_code():
            try:
                value, at = getattr(value, name), f"{at}.{name}"
            except AttributeError as error:
                raise TargetError(f"{at} has no attribute {name!r}{_offer(value, name)}") from error
    return value


def _offer(value: Any, name: str) -> str:
    names = [other for other in dir(value) if not other.startswith("_")]
    graphs = [n for n in names if isinstance(inspect.getattr_static(value, n, None), Runnable | StateGraph)]
    return _near(name, names) or (f"; it has {', '.join(graphs[:5])}" if graphs else "")


def _runnable(value: Any, name: str) -> Runnable[Any, Any]:
    verb = "is"
    if callable(value) and not isinstance(value, Runnable):
        value, name, verb = _made(value, name), f"{name}()", "returned"
    if isinstance(value, StateGraph):
        with _users_code(f"{name} does not compile: "):
            return value.compile()
    if isinstance(value, Runnable):
        return value
    if hasattr(value, "__aenter__") or hasattr(value, "__enter__"):
        raise TargetError(f"{name} is a context manager, and Millrace builds a graph once: return the graph itself")
    kind = type(value).__name__
    raise TargetError(f"{name} {verb} {'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}; it must be {_SERVABLE}")


def _made(factory: Callable[..., Any], name: str) -> Any:
    arguments = _arguments(factory, name)
    with _users_code(f"{name}() failed: "):
        value = factory(*arguments)
        return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


def _arguments(factory: Callable[..., Any], name: str) -> list[RunnableConfig]:
    """None, or the one config that LangGraph hands a factory which asks for it."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    asked = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if any("ServerRuntime" in str(p.annotation) for p in asked):
        raise TargetError(f"{name}() asks for a ServerRuntime, which only LangGraph's server has; it must take nothing")
    if len(asked) > 1 or any(p.kind is p.KEYWORD_ONLY for p in asked):
        wants = ", ".join(p.name for p in asked)
        raise TargetError(f"{name}() asks for {wants}; a factory takes nothing, or one RunnableConfig")
    return [{"configurable": {}} for _ in asked]


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


# Room for the user's modules


def _make_room(roots: Sequence[Path], *, wanted: str = "") -> None:
    """Put the roots first on ``sys.path``, set aside what they replace of Millrace, and refuse what cannot be had.

    Refused is a name that a root holds but that is loaded from elsewhere: two agents whose folders both have a
    ``prompts.py``, say. Python would silently give the second agent the first one's.
    """
    paths = [str(root) for root in roots]
    sys.path[:] = [*dict.fromkeys(paths), *(path for path in sys.path if path not in paths)]
    importlib.invalidate_caches()
    for name in _OWN:
        _set_aside(name, _held(name, roots))
    for name in {*_OWN, *_users_modules(), wanted}:
        held, loaded = _held(name, roots), sys.modules.get(name)
        if held and loaded and (held.origin or name in _OWN) and not _is_from(loaded, _place(held)):
            raise TargetError(
                f"its module {name!r} ({_shown(_place(held))}) collides with the {name!r} that is already loaded, "
                f"{_shown(_place(loaded))}; rename one, or serve them from two processes"
            )


def _set_aside(name: str, held: ModuleSpec | None) -> None:
    loaded = sys.modules.get(name)
    if held is None or (loaded and _is_from(loaded, _place(held))):
        return
    if loaded and _is_own(_place(loaded)):
        for module in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[module]
    if held.origin is None:
        # A folder without `__init__.py` loses against a package of that name anywhere on the path, and Millrace's
        # is there. Once it is in `sys.modules` the path is not asked.
        sys.modules.setdefault(name, module_from_spec(held))


def _held(name: str, roots: Sequence[Path]) -> ModuleSpec | None:
    """What ``import name`` would find in these folders alone; a folder without any Python in it does not count."""
    spec = PathFinder.find_spec(name, [str(root) for root in roots]) if name else None
    if spec and spec.origin is None:
        folders = spec.submodule_search_locations or []
        return spec if any(any(Path(folder).rglob("*.py")) for folder in folders) else None
    return spec


def _users_modules() -> list[str]:
    """The top-level modules that come from the folders of targets loaded before."""
    files = {name: getattr(module, "__dict__", {}).get("__file__") for name, module in sys.modules.items()}
    return [name for name, file in files.items() if file and "." not in name and name != "__main__" and _is_users(file)]


def _place(module: ModuleSpec | ModuleType) -> Path:
    """The file of a module, the folder of a namespace package, the bare name of what is built into Python."""
    if isinstance(module, ModuleSpec):
        return Path(module.origin or next(iter(module.submodule_search_locations or [module.name])))
    known = vars(module)
    return Path(known.get("__file__") or next(iter(known.get("__path__", [])), module.__name__))


def _is_from(module: ModuleType, place: Path) -> bool:
    return _place(module).resolve() == place.resolve()


def _is_own(file: Path) -> bool:
    return any(file.resolve().is_relative_to(_HOME / name) for name in _OWN)


def _is_users(file: str) -> bool:
    path = Path(file).resolve()
    library = {"site-packages", "dist-packages"}.intersection(path.parts) or path.is_relative_to(_STDLIB)
    return not (library or file.startswith("<") or _is_own(path))


# What went wrong, in one line


@contextmanager
def _about(what: str) -> Iterator[None]:
    try:
        yield
    except TargetError as error:
        raise TargetError(f"{what}: {error}") from error.__cause__


@contextmanager
def _users_code(doing: str = "") -> Iterator[None]:
    """The user's code may raise anything, and may leave by ``sys.exit``."""
    try:
        yield
    except TargetError:
        raise
    except (Exception, SystemExit) as error:
        raise TargetError(f"{doing}{_where(error)}{_line(error)}") from error


def _where(error: BaseException) -> str:
    """The last place in the user's own files: the line to look at when a library refuses what it was given."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(Path(error.filename))}:{error.lineno}: "
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{_shown(Path(frames[-1].filename))}:{frames[-1].lineno}: " if frames else ""


def _line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f'it called sys.exit({error.code!r}); keep that under `if __name__ == "__main__":`'
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return textwrap.shorten(f"{type(error).__name__}: {text}".rstrip(": "), 400, placeholder=" …")


def _near(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _shown(path: Path) -> str:
    """Relative to the folder the command was started in, where it lies below it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
