"""The command ``millrace doctor``: a table of the layers, and a line for each fault with what cures it below."""

import json
from collections.abc import Sequence
from statistics import median
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.doctor.asking import Examination
from app.doctor.measurement import Layer, Stream, between, bursts, held
from app.doctor.verdict import Finding, findings, name, notes
from app.remote import AsJson, asking, harmless


def doctor(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server itself, or what is nearest to it.")],
    via: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="The same server through a proxy; repeat it, nearest first.")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="Which agent is asked; by default chat.")] = None,
    given: Annotated[str | None, typer.Option("--input", help="What it is asked: a text, or a JSON object.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find where a stream is held, cut or changed on its way, and what cures it. Exit code 1 where something is.

    It starts two short runs for each address, and one more. The key is MILLRACE_API_KEY, where one is wanted.
    """
    urls = [_address(one) for one in (url, *(via or ()))]
    screen = Console(stderr=True, highlight=False)
    with asking(urls[0]) as server, screen.status("") as status:
        say = (lambda text: status.update(Text(text))) if screen.is_terminal else (lambda _: None)
        examination = Examination(server, say, agent=agent, value=_input(given))
        layers = examination.layers(urls)
    found, unjudged = findings(layers), [*examination.notes, *notes(layers)]
    if as_json:
        typer.echo(json.dumps(_report(layers, found, unjudged)))
    else:
        _print(Console(highlight=False), layers, found, unjudged)
    raise typer.Exit(1 if found else 0)


def _address(text: str) -> str:
    if not _is_address(text):
        raise typer.BadParameter(f"{text!r} is no address of a server; one looks like http://127.0.0.1:8000")
    return text


def _is_address(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    named = bool(url.host) and "%" not in url.host and (url.port or 0) < 65536
    return named and url.scheme in ("http", "https") and not (url.query or url.fragment or url.userinfo)


def _input(given: str | None) -> Any:
    try:
        value = json.loads(given or "")
    except ValueError:
        return given
    return value if isinstance(value, dict) else given


# The table


def _print(console: Console, layers: Sequence[Layer], found: Sequence[Finding], unjudged: Sequence[str]) -> None:
    if any(layer.stream for layer in layers):
        console.print(_table(layers))
        console.print()
    for finding in found:
        _say(console, Text(harmless(finding.says), "bold"))
        for line in finding.cure.splitlines():
            _say(console, Text(f"    {harmless(line)}"), whole=finding.is_configuration)
        console.print()
    for note in unjudged:
        _say(console, Text(harmless(note), "dim"))
    if not found:
        console.print("healthy", style="green")


def _say(console: Console, text: Text, *, whole: bool = False) -> None:
    """Sentences are broken where a terminal ends; what is to be copied, or read by a program, is not."""
    console.print(text, soft_wrap=whole or not console.is_terminal)


def _table(layers: Sequence[Layer]) -> Table:
    table = Table("layer", "headers", "first", "p50", "p99", "late", "events", "encoding", box=None)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for at, layer in enumerate(layers):
        stream = layer.stream or Stream()
        table.add_row(
            Text(name(layers, at).removeprefix("the ")),
            _ms(stream.headers_s),
            _ms(stream.first_event_s),
            _ms(between(stream.events, 0.5)),
            _ms(between(stream.events, 0.99)),
            _ms(median(held(stream.events)) if stream.events else None),
            f"{len(stream.events)} in {bursts(stream.events)}" if stream.events else "–",
            harmless(stream.headers.get("content-encoding", "–")[:20]),
        )
    return table


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


# For scripts


def _report(layers: Sequence[Layer], found: Sequence[Finding], unjudged: Sequence[str]) -> dict[str, Any]:
    return {
        "healthy": not found,
        "layers": [{"url": layer.url, "name": name(layers, at), **_measured(layer)} for at, layer in enumerate(layers)],
        "findings": [
            {"url": layers[one.layer].url, "fault": one.fault, "says": one.says, "cure": one.cure} for one in found
        ],
        "notes": list(unjudged),
    }


def _measured(layer: Layer) -> dict[str, Any]:
    stream = layer.stream or Stream()
    return {
        "headers_ms": _rounded(stream.headers_s),
        "first_event_ms": _rounded(stream.first_event_s),
        "between_p50_ms": _rounded(between(stream.events, 0.5)),
        "between_p99_ms": _rounded(between(stream.events, 0.99)),
        "late_p50_ms": _rounded(median(held(stream.events)) if stream.events else None),
        "events": len(stream.events),
        "bursts": bursts(stream.events),
        "encoding": stream.headers.get("content-encoding"),
        "left_ms": _rounded(layer.left_s),
        "heartbeats": layer.silence.heartbeats if layer.silence else None,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
