"""The log: one line a record on stderr, for people (``console``) or for machines (``json``).

Promises that a line is a line: whatever a client sends as its thread, user or anything else, it cannot end the line and
begin one of its own. Tracebacks alone take several, and those are indented. A log that cannot be written (a closed
pipe, a full disk) harms nothing. Never has a word of a prompt or an answer, unless a record of a run brings it: so of
``debug`` only the house's own loggers make use, as libraries then log whole requests and rows of databases.
"""

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from app.telemetry.records import FinishedRun

HOUSE = "millrace"

CHATTY = {"httpx": logging.WARNING, "httpx2": logging.WARNING, "opentelemetry.exporter": logging.ERROR}
"""Of these, from that level on: a line for each request to the provider; four for each batch of spans that fails."""

SELDOM = "opentelemetry"
"""The loggers that say the same every few seconds while a collector is away."""

SELDOM_S = 60.0

NAMES = {"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"}
"""What fields of a log record are called in JSON, besides ``ts`` and ``message``."""

UNWANTED = ("color_message", "websocket")
"""Extras of uvicorn (the message in colour) and websockets (a connection): no fields."""

TEXTS = ("asked", "answered")
"""The fields with words of prompts and answers."""

SHOWN_CHARS = 64
"""So much of a name that somebody has chosen is in the line for people; JSON has all of it."""

SHOWN_TEXT_CHARS = 2000
"""So much of a prompt and of an answer, likewise."""

runs = logging.getLogger(f"{HOUSE}.runs")

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, what some readers take for the end of a line, what turns the direction of text, and lone surrogates."""


def configure(level: str, format: Literal["console", "json"], *, stream: TextIO | None = None) -> None:  # noqa: A002
    """Log to stderr (or ``stream``), from ``level`` on. Called again, it replaces what it did before.

    For every logger of the process, uvicorn's too if it was started with ``log_config=None``. Handlers of others stay.
    """
    handler = _Handler(stream or sys.stderr)
    handler.addFilter(_Seldom())
    handler.setFormatter(_Json() if format == "json" else _Console())
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    wanted = getattr(logging, level.upper())
    root.setLevel(max(wanted, logging.INFO))
    logging.getLogger(HOUSE).setLevel(wanted)
    for name, least in CHATTY.items():
        logging.getLogger(name).setLevel(max(wanted, least))


def log_run(run: FinishedRun) -> None:
    """One line on ``millrace.runs``: a warning if the run failed or timed out, else info."""
    level = logging.WARNING if run.status in ("failed", "timed_out") else logging.INFO
    if runs.isEnabledFor(level):
        runs.log(level, "%s", _sentence(run), extra=_fields(run))


def _sentence(run: FinishedRun) -> str:
    status = f"{run.status} ({run.reason})" if run.reason else run.status
    whose = f"run {run.run_id[:8]}… of {_shown(run.agent)} for {_shown(run.user)}"
    parts = [f"{whose} {status} in {_seconds(run.duration_s)}: {_tokens(run)}"]
    if run.cost_usd is not None:
        parts.append(_dollars(run.cost_usd))
    elif run.calls:
        parts.append("cost unknown")
    if run.ttft_s is not None:
        parts.append(f"first token {_seconds(run.ttft_s)}")
    if run.saved_tokens:
        saved = "" if run.saved_usd is None else f" ({_dollars(run.saved_usd)})"
        parts.append(f"saved about {run.saved_tokens} tokens{saved}")
    return ", ".join(parts)


def _tokens(run: FinishedRun) -> str:
    return f"{'about ' if run.estimated else ''}{run.input_tokens} + {run.output_tokens} tokens"


def _fields(run: FinishedRun) -> dict[str, Any]:
    """A run's fields in JSON: those of the record, but calls and tools are counted, and absent texts are absent."""
    fields: dict[str, Any] = {
        name: round(value, 6) if isinstance(value, float) and not name.endswith("_usd") else value
        for name, value in run._asdict().items()
    }
    fields["created_at"] = _time(run.created_at)
    fields["finished_at"] = _time(run.finished_at)
    fields["calls"] = len(run.calls)
    fields["tools"] = len(run.tools)
    fields["models"] = sorted({call.model for call in run.calls})
    return {name: value for name, value in fields.items() if value is not None or name not in TEXTS}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"


def _dollars(usd: float) -> str:
    return f"${usd:.4f}" if usd >= 0.0001 or not usd else "under $0.0001"


def _shown(text: str, most: int = SHOWN_CHARS) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _one_line(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _message(record: logging.LogRecord) -> str:
    """The record's message. A wrong format is a defect that shows, and no reason to lose the line."""
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return f"{record.msg!r} with {record.args!r}"


class _Handler(logging.StreamHandler[TextIO]):
    """Writes each record at once, whole, under its lock."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing: with stderr gone there is nobody to tell, and whoever logged has work to do."""


class _Seldom(logging.Filter):
    """Lets each logger of ``SELDOM`` say something of a level once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if not record.name.startswith(SELDOM):
            return True
        what = record.name, record.levelno
        if record.created - self._said.get(what, 0.0) < SELDOM_S:
            return False
        self._said[what] = record.created
        return True


class _Console(logging.Formatter):
    """``2026-11-22 12:00:00,123 INFO millrace.runs: message``, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, and its traceback behind it."""
        texts = ((name, getattr(record, name, None)) for name in TEXTS)
        shown = [f" | {name}: {_shown(str(text), SHOWN_TEXT_CHARS)}" for name, text in texts if text]
        message = _message(record).rstrip("\n")
        head = f"{self.formatTime(record)} {record.levelname} {record.name}: {message}{''.join(shown)}"
        return "\n".join([_one_line(head), *self._below(record)])

    def _below(self, record: logging.LogRecord) -> list[str]:
        """The traceback, set in, so that no line of an exception's text passes for a record."""
        texts = [self.formatException(record.exc_info)] if record.exc_info else [record.exc_text or ""]
        texts.append(record.stack_info or "")
        return [f"  {_one_line(line)}" for text in texts if text for line in text.split("\n")]


class _Json(JsonFormatter):
    """One object a line, ASCII only: ``ts``, ``level``, ``logger``, ``message``, and what the record brings."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"], rename_fields=NAMES, reserved_attrs=[*RESERVED_ATTRS, *UNWANTED]
        )

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Time first, as people read from the left."""
        log_data["ts"] = _time(record.created)
        super().add_fields(log_data, record, message_dict)
        log_data["level"] = record.levelname.lower()

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        if isinstance(record.msg, str):
            message = _message(record).rstrip("\n")
            record = logging.makeLogRecord({**record.__dict__, "msg": message, "args": None})
        return super().format(record)
