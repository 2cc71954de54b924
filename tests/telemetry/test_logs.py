import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.telemetry.logs import CHATTY, HOUSE, configure, log_run
from app.telemetry.records import FinishedRun, ModelCall, ToolCall

DOCS = Path(__file__).resolve().parents[2] / "docs" / "logs.md"

CALL = ModelCall("1a2b3c4d5e6f", "assistant", "alice", "gpt-5-mini", "openai", "completed", 1700000000.0, 1700000003.0)

RUN = FinishedRun(
    run_id="1a2b3c4d5e6f",
    agent="assistant",
    user="alice",
    thread_id="tea-time",
    status="completed",
    reason=None,
    created_at=1700000000.0,
    finished_at=1700000003.2,
    duration_s=3.2,
    ttft_s=0.21,
    input_tokens=120,
    output_tokens=345,
    cost_usd=0.0012,
    events=400,
    calls=(CALL, CALL),
    tools=(ToolCall("c1", "weather", "ok", 1700000001.0, 1700000002.0),),
)

LINE = "run 1a2b3c4d… of assistant for alice completed in 3.2 s: 120 + 345 tokens, $0.0012, first token 0.21 s"

HEAD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [\w.]+: ")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """The loggers of the process, put back."""
    root = logging.getLogger()
    names = ("", HOUSE, *CHATTY)
    handlers, levels = list(root.handlers), [logging.getLogger(name).level for name in names]
    yield
    root.handlers[:] = handlers
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().split("\n")[:-1]


def only(stream: io.StringIO) -> str:
    (line,) = lines(stream)
    return line


def only_object(stream: io.StringIO) -> dict[str, Any]:
    found = json.loads(only(stream))
    assert isinstance(found, dict)
    return found


def test_a_run_is_one_line_for_people(stream: io.StringIO) -> None:
    configure("info", "console", stream=stream)
    log_run(RUN)
    assert HEAD.match(only(stream))
    assert only(stream).endswith(f" INFO millrace.runs: {LINE}")


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"status": "cancelled", "reason": "disconnected"}, "for alice cancelled (disconnected) in 3.2 s: "),
        ({"duration_s": 0.031}, " in 0.03 s: "),
        ({"estimated": True}, ": about 120 + 345 tokens, "),
        ({"cost_usd": None}, " tokens, cost unknown, "),
        ({"cost_usd": None, "calls": (), "ttft_s": None}, " + 345 tokens"),
        ({"cost_usd": 0.00000012}, " tokens, under $0.0001, "),
        ({"cost_usd": 0.0}, " tokens, $0.0000, "),
        ({"saved_tokens": 410, "saved_usd": 0.0008}, ", saved about 410 tokens ($0.0008)"),
        ({"saved_tokens": 410}, ", saved about 410 tokens"),
        ({"user": "u" * 1000}, f"for {'u' * 64}… completed"),
    ],
)
def test_the_line_says_what_there_is_to_say(stream: io.StringIO, changed: dict[str, Any], part: str) -> None:
    configure("info", "console", stream=stream)
    log_run(RUN._replace(**changed))
    assert part in only(stream)
    assert not part.endswith("tokens") or only(stream).endswith(part)


def test_a_run_has_its_fields_with_their_types_in_json(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)
    log_run(RUN)
    found = only_object(stream)
    assert next(iter(found)) == "ts"
    written = datetime.fromisoformat(found.pop("ts"))
    assert written.tzinfo == UTC
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60
    assert found == {
        "level": "info",
        "logger": "millrace.runs",
        "message": LINE,
        "run_id": "1a2b3c4d5e6f",
        "agent": "assistant",
        "user": "alice",
        "thread_id": "tea-time",
        "status": "completed",
        "reason": None,
        "created_at": "2023-11-14T22:13:20.000Z",
        "finished_at": "2023-11-14T22:13:23.200Z",
        "duration_s": 3.2,
        "ttft_s": 0.21,
        "queue_s": 0.0,
        "cancel_s": None,
        "input_tokens": 120,
        "output_tokens": 345,
        "reasoning_tokens": 0,
        "cached_tokens": 0,
        "cost_usd": 0.0012,
        "saved_tokens": 0,
        "saved_usd": None,
        "estimated": False,
        "events": 400,
        "calls": 2,
        "tools": 1,
        "models": ["gpt-5-mini"],
    }


def test_every_field_of_a_run_is_documented(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)
    log_run(RUN._replace(asked="a", answered="b"))
    told = set(re.findall(r"`(\w+)`", DOCS.read_text("utf-8")))
    assert only_object(stream).keys() <= told


@pytest.mark.parametrize("status", ["failed", "timed_out"])
def test_a_run_that_went_wrong_is_a_warning(stream: io.StringIO, status: Any) -> None:
    configure("warning", "json", stream=stream)
    log_run(RUN)
    log_run(RUN._replace(status="cancelled"))
    log_run(RUN._replace(status=status, reason="provider_error"))
    assert only_object(stream)["level"] == "warning"


def test_words_of_prompts_are_there_only_when_the_record_has_them(stream: io.StringIO) -> None:
    configure("info", "console", stream=stream)
    log_run(RUN)
    log_run(RUN._replace(asked="What is\nlove?", answered="a" * 5000))
    without, with_texts = lines(stream)
    assert "asked" not in without
    assert "answered" not in without
    assert with_texts.endswith(rf"{LINE} | asked: What is\nlove? | answered: {'a' * 2000}…")


def test_in_json_the_words_are_fields_and_whole(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)
    log_run(RUN._replace(asked="What is\nlove?", answered="a" * 5000))
    found = only_object(stream)
    assert found["asked"] == "What is\nlove?"
    assert found["answered"] == "a" * 5000
    assert "love" not in found["message"]


def test_at_debug_only_the_house_says_more(stream: io.StringIO) -> None:
    configure("debug", "console", stream=stream)
    for name in ("openai._base_client", "aiosqlite", "uvicorn.error", "httpx", "httpx2"):
        logging.getLogger(name).debug("Request options: the prompt")
    logging.getLogger("httpx").info("HTTP Request: POST …")
    logging.getLogger("httpx2").info("HTTP Request: POST …")
    logging.getLogger("opentelemetry.exporter.otlp").warning("Transient error")
    assert lines(stream) == []
    logging.getLogger("millrace.ledger").debug("ours")
    logging.getLogger("httpx").warning("odd")
    logging.getLogger("uvicorn.error").info("Started server process")
    assert [line.split(" ", 2)[2] for line in lines(stream)] == [
        "DEBUG millrace.ledger: ours",
        "WARNING httpx: odd",
        "INFO uvicorn.error: Started server process",
    ]


def test_a_collector_that_is_away_is_told_of_once_a_minute(stream: io.StringIO) -> None:
    configure("info", "console", stream=stream)
    exporter = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    (handler,) = (one for one in logging.getLogger().handlers if getattr(one, "stream", None) is stream)
    for second in (0, 7, 59, 61, 70):
        record = exporter.makeRecord(exporter.name, logging.ERROR, "", 0, "failed at %d", (second,), None)
        record.created = 1700000000.0 + second
        handler.handle(record)
    exporter.critical("worse")
    assert [line.rsplit(": ", 1)[1] for line in lines(stream)] == ["failed at 0", "failed at 61", "worse"]


def test_below_the_level_nothing_is_written(stream: io.StringIO) -> None:
    configure("error", "console", stream=stream)
    logging.getLogger("millrace").warning("no")
    logging.getLogger("somebody").warning("no")
    logging.getLogger("httpx").warning("no")
    logging.getLogger("somebody").error("yes")
    assert only(stream).endswith("ERROR somebody: yes")


def test_configured_twice_is_configured_once(stream: io.StringIO) -> None:
    theirs = logging.NullHandler()
    logging.getLogger().addHandler(theirs)
    configure("info", "console", stream=io.StringIO())
    configure("info", "json", stream=stream)
    logging.getLogger("millrace").info("once")
    assert only_object(stream)["message"] == "once"
    assert theirs in logging.getLogger().handlers


NASTY = "x\n2026-01-01 00:00:00,000 INFO millrace: forged\r\x1b[2K\x85\u2028\u202e\x00end"


@pytest.mark.parametrize("field", ["user", "agent", "thread_id", "reason"])
def test_no_name_of_a_client_forges_a_line(stream: io.StringIO, field: str) -> None:
    configure("info", "console", stream=stream)
    odd: dict[str, Any] = {field: NASTY}
    log_run(RUN._replace(**odd))
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u202e]", only(stream))


def test_no_message_of_anybody_forges_a_line(stream: io.StringIO) -> None:
    configure("info", "console", stream=stream)
    logging.getLogger("somebody").warning("no such thread: %s", NASTY)
    line = only(stream)
    assert len(line.splitlines()) == 1
    assert r"x\n2026-01-01 00:00:00,000 INFO millrace: forged\r\x1b[2K\x85\u2028\u202e\x00end" in line


def test_in_json_it_is_the_text_itself_in_one_line(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)
    log_run(RUN._replace(user=NASTY, thread_id="half \ud800"))
    assert len(only(stream).splitlines()) == 1
    assert only(stream).isascii()
    assert only_object(stream)["user"] == NASTY
    assert only_object(stream)["thread_id"] == "half \ud800"


def test_a_traceback_is_set_in_so_that_its_text_passes_for_no_record(stream: io.StringIO) -> None:
    configure("info", "console", stream=stream)
    try:
        raise ValueError(NASTY)
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    head, *below = lines(stream)
    assert head.endswith("ERROR uvicorn.error: Exception in ASGI application")
    assert "  Traceback (most recent call last):" in below
    assert all(line.startswith("  ") for line in below)
    assert [line for line in stream.getvalue().splitlines() if HEAD.match(line)] == [head]


def test_a_traceback_is_a_field_in_json(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("millrace").exception("it failed\n")
    found = only_object(stream)
    assert found["message"] == "it failed"
    assert found["exception"].endswith("ValueError: odd")
    assert found["level"] == "error"


def test_what_libraries_hang_on_their_records_is_no_field(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)
    extra = {"color_message": "\x1b[36mUvicorn\x1b[0m running", "websocket": object(), "port": 8000}
    logging.getLogger("uvicorn.error").info("Uvicorn running on %s", "http://127.0.0.1:8000", extra=extra)
    assert only_object(stream).keys() == {"ts", "level", "logger", "message", "port"}


class _Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_record_that_is_wrong_in_itself_harms_nobody(stream: io.StringIO, form: Any) -> None:
    logging.getLogger().handlers.clear()  # pytest's own raise what they cannot format
    configure("info", form, stream=stream)
    logger = logging.getLogger("somebody")
    logger.warning("%d apples", "no")
    logger.warning("%s and %s", *["one"])
    logger.warning("%s", _Unspeakable())
    logger.warning("odd field", extra={"odd": object()})
    logger.warning("next")
    found = lines(stream)
    assert "'%d apples' with ('no',)" in found[0]
    assert "'%s and %s' with ('one',)" in found[1]
    assert "next" in found[-1]


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_closed_pipe_harms_nobody(form: Any) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    pipe = os.fdopen(writing, "w", buffering=1)
    configure("info", form, stream=pipe)
    for _ in range(3):
        log_run(RUN)
    with pytest.raises(BrokenPipeError):
        pipe.close()
    log_run(RUN)  # closed for good: a ValueError


def test_lines_of_many_threads_stay_whole(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)

    def work(number: int) -> None:
        for _ in range(50):
            log_run(RUN._replace(user=f"user-{number}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    users = [json.loads(line)["user"] for line in lines(stream)]
    assert len(users) == 400
    assert all(users.count(f"user-{number}") == 50 for number in range(8))


def test_it_goes_to_stderr_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "console")
    logging.getLogger("millrace").info("hello")
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.endswith("INFO millrace: hello\n")
    assert sys.stderr is not None
