"""The commands that speak to a running server: ``millrace runs`` and ``millrace cancel``, and how every such one does.

They use the routes that everybody may use, and see what their caller may see. The key is read from the environment
alone: a command line is there for all to read. What goes wrong is one line that says what to do, and exit code 1.
Nothing that a server says can drive the terminal.
"""

import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, NoReturn, TypedDict, TypeVar, cast
from urllib.parse import quote

import httpx
import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Usage(TypedDict):
    """What of a run's usage is shown."""

    input_tokens: int
    output_tokens: int


class Row(TypedDict):
    """What of a run's row is shown; times are in seconds since the epoch."""

    run_id: str
    agent: str
    thread_id: str | None
    status: str
    started_at: float | None
    finished_at: float | None
    usage: Usage


class Rows(TypedDict):
    """The answer of ``GET /runs``."""

    runs: list[Row]


T = TypeVar("T")

LATEST = 10
"""How many of the runs that are over are shown, where not all are wanted."""

TIMEOUT_S = 10.0

UNAUTHORIZED, KEY_HINT = 401, " (here: put the key into the environment as MILLRACE_API_KEY)"

WHOLE, SHORT, WIDE = 36, 8, 120
"""Characters of a run's id, those shown in a narrow terminal, and the columns from which all of it is shown."""

STYLES = {"running": "green", "paused": "yellow", "failed": "red", "timed_out": "red", "cancelled": "yellow"}

_DRIVING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, C1 among them, what turns the direction of writing, and halves of characters, which cannot be written."""

Url = Annotated[str, typer.Option(envvar="MILLRACE_URL", help="Where the server is.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for scripts.")]


class Refusal(Exception):
    """What was asked for cannot be had; the words say why, and what to do."""


def runs(
    url: Url = "http://127.0.0.1:8000",
    everything: Annotated[bool, typer.Option("--all", help="Also those that were over long ago.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is running, and what was of late. The key is MILLRACE_API_KEY, where the server wants one."""
    with asking(url) as server:
        rows = list_runs(server)
    over = [row for row in rows if _over(row)]
    shown = rows if everything else [row for row in rows if not _over(row)] + over[:LATEST]
    if as_json:
        typer.echo(json.dumps(shown))
    elif not shown:
        typer.echo("No runs.")
    else:
        console = Console(highlight=False)
        console.print(_table(shown, whole_ids=console.width >= WIDE))
        if len(shown) < len(rows):
            console.print(f"… and {len(rows) - len(shown)} more: --all", style="dim")


def cancel(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or as much of it as names one run.")],
    url: Url = "http://127.0.0.1:8000",
    as_json: AsJson = False,
) -> None:
    """End a run now, whoever reads it. The key is MILLRACE_API_KEY, where the server wants one."""
    with asking(url) as server:
        found = find_run(server, run)
        row = answer(server.post(f"/runs/{found['run_id']}/cancel"), Row)
    if as_json:
        typer.echo(json.dumps(row))
    elif _over(found):
        typer.echo(f"run {row['run_id']} was over already: {row['status']}")
    elif not _over(row):
        typer.echo(f"run {row['run_id']} has been told to end, and has not yet: {row['status']}")
    else:
        typer.echo(f"run {row['run_id']}: {row['status']}, after {row['usage']['output_tokens']} tokens")


# The server


@contextmanager
def asking(url: str) -> Iterator[httpx.Client]:
    """A client of the server, with the key of the environment. What goes wrong inside ends the command, in words."""
    key = os.environ.get("MILLRACE_API_KEY", "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        fail("MILLRACE_API_KEY is no key: one is printable ASCII without spaces")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with refusing(url), httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
            yield client
    except Refusal as refusal:
        fail(str(refusal))


@contextmanager
def refusing(url: str) -> Iterator[None]:
    """Raises ``Refusal`` where the server at ``url`` cannot be reached."""
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise Refusal(f"{url!r} is no address of a server; it looks like http://127.0.0.1:8000") from None
    except httpx.TimeoutException:
        raise Refusal(f"the server at {url} does not answer within {TIMEOUT_S:g} s") from None
    except httpx.TransportError as error:
        start = "start one with `millrace serve`, or name it by --url"
        raise Refusal(f"no server answers at {url} ({error}): {start}") from None


def answer(response: httpx.Response, kind: type[T]) -> T:
    """The body as it is, once it is known to be what Millrace would say. Raises ``Refusal``, in the server's words."""
    try:
        body = response.json()
        if response.is_error:
            raise Refusal(_refusal(response, body["error"]))
        msgspec.convert(body, kind)
        return cast("T", body)
    except (ValueError, LookupError, TypeError):
        origin = response.url.copy_with(path="/", query=None)
        raise Refusal(f"what answers at {origin} is no Millrace server (status {response.status_code})") from None


def _refusal(response: httpx.Response, error: dict[str, Any]) -> str:
    said = msgspec.convert(error["message"], str)
    if response.status_code == UNAUTHORIZED and "authorization" not in response.request.headers:
        return said + KEY_HINT
    wait_ms = error.get("retry_after_ms")
    return said if wait_ms is None else f"{said} (try again in {math.ceil(wait_ms / 1000)} s)"


def list_runs(server: httpx.Client) -> list[Row]:
    """The caller's runs, newest first. Raises ``Refusal``."""
    return answer(server.get("/runs"), Rows)["runs"]


def find_run(server: httpx.Client, wanted: str) -> Row:
    """The run whose id is, or begins with, ``wanted``. Raises ``Refusal``."""
    if len(wanted) == WHOLE:  # it may be older than what the server lists
        return answer(server.get(f"/runs/{quote(wanted, safe='')}"), Row)
    found = [row for row in list_runs(server) if wanted and row["run_id"].startswith(wanted)]
    if not found:
        raise Refusal(f"there is no run {wanted!r}; `millrace runs --all` lists those that are known")
    if len(found) > 1:
        raise Refusal(f"{len(found)} runs begin with {wanted!r}: {', '.join(row['run_id'] for row in found[:5])}")
    return found[0]


def fail(message: str) -> NoReturn:
    """Say it on stderr, and end with exit code 1."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"millrace: {harmless(message)}", markup=False)
    raise typer.Exit(1)


def harmless(text: str) -> str:
    """The text without what drives a terminal: a sign stands for each such character. Lines and tabs stay."""
    return _DRIVING.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", "")) if _DRIVING.search(text) else text


# The table


def _table(rows: Sequence[Row], *, whole_ids: bool) -> Table:
    table = Table("run", "agent", "status", "started", "for", "tokens in + out", "thread", box=None)
    for row in rows:
        table.add_row(
            row["run_id"] if whole_ids else _short(row["run_id"], rows),
            Text(harmless(row["agent"])),
            Text(harmless(row["status"]), STYLES.get(row["status"], "")),
            _started(row),
            _lasted(row),
            _tokens(row),
            Text(harmless(row["thread_id"] or "–")),
        )
    for column in table.columns[:-1]:
        column.no_wrap = True
    return table


def _short(run_id: str, rows: Sequence[Row]) -> str:
    """As much of the id as is not another's too."""
    others = [row["run_id"] for row in rows if row["run_id"] != run_id]
    length = SHORT
    while any(other.startswith(run_id[:length]) for other in others):
        length += 1
    return run_id[:length]


def _over(row: Row) -> bool:
    return row["finished_at"] is not None


def _started(row: Row) -> str:
    if row["started_at"] is None:
        return "–"
    moment = datetime.fromtimestamp(row["started_at"]).astimezone()
    today = moment.date() == datetime.now().astimezone().date()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M")


def _lasted(row: Row) -> str:
    if row["started_at"] is None:
        return "–"
    seconds = max(0.0, (row["finished_at"] or time.time()) - row["started_at"])
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{seconds:.1f} s"


def _tokens(row: Row) -> str:
    """Of a model call that still goes on nothing is counted yet."""
    sent, received = row["usage"]["input_tokens"], row["usage"]["output_tokens"]
    return f"{sent} + {received}" if sent or received or _over(row) else "–"
