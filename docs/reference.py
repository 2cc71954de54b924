"""Writes docs/reference.md: routes, events, settings, metrics, errors and commands, as the code has them.

``python docs/reference.py`` after a change of any of these; the tests compare the file with what this makes. The same
code gives the same page on every machine: nothing of the environment is in it, and no server is started.

What a thing means is said where it is defined: in the docstring of a route, an event or an error, in the description of
a setting or a metric. LangServe's routes and the codes have no such place, and get their words here; one that is
missing is a ``KeyError``.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import typer
from prometheus_client.metrics_core import Metric

from app import errors
from app.cli import cli
from app.events.event import TYPES, Event, Totals
from app.events.request import RunRequest
from app.main import create_app
from app.protocols import websocket
from app.routes import errors as http
from app.runs import failure
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.telemetry.records import FinishedRun, ModelCall
from app.transports.websocket import CloseCode

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference.md"

HEAD = """\
# Reference

Everything that has a name: [routes](#routes), [the run request](#the-run-request), [events](#events),
[WebSocket frames](#websocket-frames), [settings](#settings), [metrics](#metrics), [errors](#errors),
[commands](#commands). Written by `python docs/reference.py` from the code, which tests hold it to. What it is all for
is told in the pages that [the index](index.md) names.
"""

LANGSERVE = {
    "invoke": "Run to the end, and answer with the whole output.",
    "batch": "The same for each of several inputs.",
    "stream": "The output in pieces, as they come.",
    "stream_log": "What LangChain's tracer writes, as patches of one document.",
    "stream_events": "LangChain's events, as `astream_events` has them.",
    "input_schema": "What the agent takes, as JSON Schema.",
    "output_schema": "What it gives.",
    "config_schema": "What of its `config` a client may set.",
    "playground/": "LangServe's page for the agent.",
}
"""The routes below ``/agents/{agent}`` that LangServe serves for ``RemoteRunnable``, in our words."""

UNDESCRIBED = {
    ("GET", "/"): "The page: see [page.md](page.md).",
    ("GET", "/agents/{agent}/playground/"): LANGSERVE["playground/"],
    ("GET", "/docs"): "These routes, to be tried in the browser.",
    ("GET", "/openapi.json"): "These routes, as OpenAPI.",
    ("GET", "/web/{path}"): "The files of the page.",
    ("WS", "/ws"): "Many runs over one socket: see [websocket.md](websocket.md).",
}
"""Routes that OpenAPI leaves out."""

CODES = {
    # what a request is refused with, where its class says less
    "bad_event_id": "What should be an event's id is no whole number, or lies in the run's future.",
    "bad_frame": "On a WebSocket: the frame is not understood.",
    "body_timeout": "The body did not arrive in time.",
    "body_too_large": "The body is over `MILLRACE_MAX_BODY_BYTES`.",
    "duplicate_stream": "On a WebSocket: a stream of that id is open, and goes on.",
    "internal_error": "The server failed on this request; its log has the details.",
    "invalid_json": "The body is no JSON.",
    "method_not_allowed": "The route is there, and knows other methods.",
    "not_acceptable": "The route has nothing that the client accepts.",
    "not_found": "There is no such route.",
    "socket_full": "On a WebSocket: as many streams are open as may be.",
    "thread_busy": "Another run is on the thread, or too many wait for it.",
    "thread_interrupted": "The thread waits for a person's answer: send `resume`.",
    "thread_not_interrupted": "The thread waits for no answer.",
    "thread_of_another_agent": "The thread is a conversation with another agent.",
    "too_many_commands": "On a WebSocket: as many commands are being carried out as may be.",
    "unknown_agent": "There is no such agent.",
    "unknown_run": "There is no such run, or it is another user's.",
    "unknown_stream": "On a WebSocket: no stream of that id is open.",
    "unknown_thread": "There is no such thread, or it is another user's.",
    # what a run fails with
    "agent_error": "The graph itself failed; the server's log has the details.",
    "answer_cut": "An answer that had to be whole reached its token limit.",
    "content_filtered": "The provider withheld the answer.",
    "first_token_timeout": "The provider was silent for too long before its answer.",
    "invalid_object": "The model's object did not fit its schema, twice: see [structured.md](structured.md).",
    "invalid_schema": "The schema of the request cannot be used: see [structured.md](structured.md).",
    "invalid_tool_args": "The model went on calling tools wrongly: see [tools.md](tools.md#broken-arguments).",
    "log_full": "The run put out more than `MILLRACE_RUN_MAX_BYTES`.",
    "provider_dropped": "The provider broke off in mid-answer.",
    "provider_error": "The provider cannot be reached, refused, or reported an error.",
    "provider_rate_limited": "The provider's rate limit is reached; with `retry_after_ms` where it said so.",
    "recursion_limit": "The graph took more steps than it may.",
    "run_timeout": "The run took longer than it may.",
    "token_timeout": "The provider fell silent for too long in mid-answer.",
    "unsupported_method": "The provider cannot be asked for an object in this way: see [structured.md](structured.md).",
    "upstream_busy": "A model call waited too long for its turn, or gave way in a full line.",
}


def page() -> str:
    """The whole file."""
    parts = (HEAD, *routes(), *request(), *events(), *frames(), *settings(), *metrics(), *refusals(), *commands())
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


# ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def routes() -> Iterator[str]:
    """Every route, an agent's own under ``{agent}``."""
    found = {route: ("", words) for route, words in UNDESCRIBED.items()}
    for path, operations in openapi()["paths"].items():
        agent, _, rest = path.removeprefix("/agents/").partition("/")
        own = "{" in agent or not path.startswith("/agents/")
        for method, operation in operations.items():
            query = (f"`{one['name']}`" for one in operation.get("parameters", ()) if one["in"] == "query")
            described = (", ".join(query), operation["description"]) if own else ("", LANGSERVE[rest])
            found[method.upper(), path if own else f"/agents/{{agent}}/{rest}"] = described
    by_path = sorted(found.items(), key=lambda one: one[0][::-1])
    rows = ((f"`{method} {path}`", *rest) for (method, path), rest in by_path)
    yield "## Routes\n"
    yield "What they answer, and with which headers, is in [http.md](http.md).\n"
    yield table(("route", "query", "meaning"), rows)


def openapi() -> dict[str, Any]:
    """The description of a server with the built-in agents. ``model_construct`` reads no environment."""
    told = {"model": "openai:none", "openai_base_url": "http://127.0.0.1:9", "database_url": "sqlite://"}
    return create_app(Settings.model_construct(None, **told)).openapi()


def request() -> Iterator[str]:
    """The body that starts a run."""
    yield "## The run request\n"
    yield prose(RunRequest.__doc__) + " A WebSocket's `start` takes the same. More is in [http.md](http.md#agents).\n"
    yield fields(RunRequest)


# ── events and frames ────────────────────────────────────────────────────────────────────────────────────────────


def events() -> Iterator[str]:
    """Every event, and the sums that some of them bring."""
    yield "## Events\n"
    yield (
        "Each has `ts`, milliseconds since the epoch, and, where it comes from inside a graph, `node` and `namespace`. "
        "A field with a default is left out while it holds it. *May be dropped*: for a reader that lags, into a `gap`. "
        "The order, and what a client does with them, is in [events.md](events.md).\n"
    )
    for name, event in TYPES.items():
        yield f"### `{name}`\n"
        yield prose(event.__doc__) + (" *May be dropped.*" if event.droppable else "") + "\n"
        if own := fields(event, besides=Event):
            yield own
    yield "### `Totals`\n"
    yield prose(Totals.__doc__) + "\n"
    yield fields(Totals)


def frames() -> Iterator[str]:
    """What a client may say on a WebSocket, and why the server closes one."""
    yield "## WebSocket frames\n"
    yield "What a client may say; what it hears, and how streams end, is in [websocket.md](websocket.md).\n"
    said = (websocket.Start, websocket.Attach, websocket.Cancel, websocket.Pause)
    rows = (
        (
            f"`{frame.__struct_config__.tag}`",
            ", ".join(f"`{name}`" for name in frame.__struct_fields__ if name not in RunRequest.__struct_fields__),
            prose(frame.__doc__),
        )
        for frame in (*said, websocket.Continue, websocket.Detach, websocket.Ping)
    )
    yield table(("type", "fields", "meaning"), rows)
    yield "### Close codes\n"
    yield "The server's own; all of them, and whether to come back, are [there](websocket.md#close-codes).\n"
    yield table(("code", "name"), ((f"`{code.value}`", code.name.lower()) for code in CloseCode))


def fields(struct: type[msgspec.Struct], *, besides: type[msgspec.Struct] | None = None) -> str:
    """A structure's fields as they are on the wire, without those of another; nothing, where it has none of its own."""
    known = set(besides.__struct_fields__) if besides is not None else set()
    names = dict(zip(struct.__struct_encode_fields__, struct.__struct_fields__, strict=True))
    schema = msgspec.json.schema_components([struct])[1][struct.__name__]
    rows = [
        (f"`{name}`", kind(one), "always" if name in schema["required"] else f"`{shown(one.get('default'))}`")
        for name, one in schema.get("properties", {}).items()
        if name in names and names[name] not in known
    ]
    return table(("field", "type", "default"), rows) if rows else ""


def kind(schema: Mapping[str, Any]) -> str:
    """A JSON Schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(map(kind, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{shown(one)}`" for one in schema["enum"])
    of = schema.get("type", "any")
    words = f"list of {kind(schema['items'])}" if "items" in schema else str(of)
    bounds = [f"{sign} {schema[name]:,}" for name, sign in BOUNDS.items() if name in schema]
    if "maxLength" in schema:
        bounds.append(f"{schema['minLength']} to {schema['maxLength']} characters")
    return f"{words} ({', '.join(bounds)})" if bounds else words


BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}


# ── settings, metrics ────────────────────────────────────────────────────────────────────────────────────────────


def settings() -> Iterator[str]:
    """Every setting."""
    yield "## Settings\n"
    yield (
        "Read from the environment and from `.env`. Times are in seconds, sizes in bytes; a list has spaces or commas "
        "between its entries. `millrace settings` shows your own.\n"
    )
    described = Settings.model_json_schema(by_alias=False)["properties"]
    rows = (
        (
            f"`{name.upper()}`" if name.startswith("openai_") else f"`MILLRACE_{name.upper()}`",
            kind(described[name]).removesuffix(" or null"),
            "–" if field.default in (None, []) else f"`{shown(described[name]['default'])}`",
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    )
    yield table(("setting", "type", "default", "meaning"), rows)


def metrics() -> Iterator[str]:
    """Every metric of the house; those of the process are the library's."""
    yield "## Metrics\n"
    yield "Those of the process, and what to ask of all of them, are in [metrics.md](metrics.md).\n"
    rows = []
    for metric in sorted(collected(), key=lambda one: one.name):
        if metric.name.startswith("millrace_"):
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            labels = sorted({f"`{label}`" for one in metric.samples for label in one.labels if label != "le"})
            rows.append((f"`{name}`", metric.type, ", ".join(labels), metric.documentation))
    yield table(("metric", "type", "labels", "meaning"), rows)
    yield "The upper bounds of the histograms' buckets:\n"
    yield table(("histogram", "bounds, s"), buckets())


def buckets() -> Iterator[tuple[str, str]]:
    """Of every histogram the bounds, in seconds."""
    for metric in sorted(collected(), key=lambda one: one.name):
        bounds = dict.fromkeys(one.labels["le"] for one in metric.samples if "le" in one.labels)
        if bounds:
            yield f"`{metric.name}`", ", ".join(bounds)


def collected() -> Iterable[Metric]:
    """The registry after one of everything, without which a metric would show no labels."""
    metrics = Metrics(["chat"])
    call = ModelCall("", "chat", "", "model", "", "completed", 0, 0, ttft_s=1)
    metrics.call(call._replace(cost_usd=1, estimated=True))
    metrics.call(call)
    metrics.run(FinishedRun("", "chat", "", None, "cancelled", None, 0, 0, 0, cancel_s=1))
    metrics.watch(runs=dict, readers=int, gate=lambda: (0, 0, 0))
    return metrics.registry.collect()


# ── errors, commands ─────────────────────────────────────────────────────────────────────────────────────────────


def refusals() -> Iterator[str]:
    """Every code that a request may be refused with, and every one that a run may fail with."""
    yield "## Errors\n"
    yield (
        '`{"error": {"code", "message", "retry_after_ms"?, "detail"?}}`, on a WebSocket an `error` frame with these. '
        "*Retry*: the same request may do later.\n"
    )
    known = {cls.__name__: cls for cls in tree(errors.MillraceError)}
    told = {cls.code: row(cls, prose(cls.__doc__)) for cls in known.values()}
    told |= {code: (str(status), "", CODES[code]) for status, code in vars(http)["_CODES"].items()}
    told |= {code: row(known[name], CODES[code]) for name, code in refused()}
    told["internal_error"] = row(errors.MillraceError, CODES["internal_error"])
    by_status = sorted((status, code, *rest) for code, (status, *rest) in told.items())
    rows = ((status, f"`{code}`", *rest) for status, code, *rest in by_status)
    yield table(("status", "code", "retry", "when"), rows)
    yield "### Codes of a run's `error` event\n"
    yield (
        "A graph may name others, by an exception with a `failure_code`. Where LangServe's `invoke` or `batch` waits "
        "for such a run, the answer is 502 with its code.\n"
    )
    yield table(("code", "when"), ((f"`{code}`", CODES[code]) for code in sorted(failed())))


def tree(cls: type[errors.MillraceError]) -> Iterator[type[errors.MillraceError]]:
    """The class and all of the house that derive from it."""
    if cls.__module__.startswith("app."):
        yield cls
        for one in cls.__subclasses__():
            yield from tree(one)


def row(cls: type[errors.MillraceError], when: str) -> tuple[str, str, str]:
    """What the table says of a code beside it."""
    return str(cls.status), "yes" if cls.retryable else "", when


def refused() -> Iterator[tuple[str, str]]:
    """The class and the code of every error that is raised with a code of its own: ``NotFound(…, code="…")``."""
    for call in calls("app"):
        name = ast.unparse(call.func)
        for keyword in call.keywords:
            if keyword.arg == "code" and isinstance(keyword.value, ast.Constant) and name in vars(errors):
                yield name, str(keyword.value.value)


def failed() -> set[str]:
    """Every code of an ``error`` event: ``Failure("…", …)``, ``failure_code = "…"``, the deadlines', and the gate's."""
    found = {*vars(failure)["_TIMED_OUT"], errors.UpstreamBusy.code}
    for call in calls("app/runs"):
        if ast.unparse(call.func) == "Failure" and isinstance(call.args[0], ast.Constant):
            found.add(str(call.args[0].value))
    for node in source("chains"):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "failure_code":
            found.add(ast.literal_eval(node.value))
    return found


def calls(room: str) -> Iterator[ast.Call]:
    """Every call in a room's code."""
    return (node for node in source(room) if isinstance(node, ast.Call))


def source(room: str) -> Iterator[ast.AST]:
    """Every node of a room's code, but for the simulated provider's, whose errors are OpenAI's."""
    for path in sorted((ROOT / room).rglob("*.py")):
        if "simulator" not in path.parts:
            yield from ast.walk(ast.parse(path.read_text("utf-8")))


def commands() -> Iterator[str]:
    """Every command of ``millrace``, with what it takes."""
    yield "## Commands\n"
    group: Any = typer.main.get_command(cli)
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        yield f"### `millrace {name}`\n"
        yield prose(command.help) + "\n"
        if rows := [parameter(one) for one in command.params]:
            yield table(("argument or option", "default", "meaning"), rows)


def parameter(one: Any) -> tuple[str, str, str]:
    """An argument or an option: how it is written, its default, what it does."""
    named = one.metavar or one.name.upper()
    flags = ", ".join(f"`{flag}`" for flag in (*one.opts, *one.secondary_opts) if flag.startswith("-"))
    default = "required" if one.required else "–" if one.default in (None, (), []) else f"`{shown(one.default)}`"
    variable = f" Also `{one.envvar}`." if one.envvar else ""
    return flags or f"`{named}`", default, (getattr(one, "help", None) or "") + variable


# ── Markdown ─────────────────────────────────────────────────────────────────────────────────────────────────────


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; what stands in a cell cannot end it."""
    titles = tuple(head)
    lines = [titles, ("---",) * len(titles), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(' '.join(cell.split()) for cell in line)} |\n" for line in lines)


def prose(text: str | None) -> str:
    """A docstring as a paragraph of Markdown."""
    return " ".join((text or "").replace("``", "`").split())


def shown(value: object) -> str:
    """A value as JSON has it, a text without its quotes."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
