import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from app.telemetry.records import FinishedRun, ModelCall, ToolCall
from app.telemetry.spans import MAX_TEXT_CHARS, Spans, open_spans

FIRST = ModelCall(
    run_id="1a2b",
    agent="assistant",
    user="alice",
    model="gpt-5-mini",
    provider="openai",
    status="completed",
    started_at=1700000000.5,
    ended_at=1700000001.5,
    queue_s=0.5,
    ttft_s=0.25,
    input_tokens=100,
    output_tokens=20,
    reasoning_tokens=8,
    cached_tokens=64,
    cost_usd=0.0004,
)

SECOND = FIRST._replace(started_at=1700000002.0, ended_at=1700000003.0, queue_s=0.0, cost_usd=None, estimated=True)

TOOL = ToolCall("call_7", "weather", "ok", 1700000001.5, 1700000002.0)

RUN = FinishedRun(
    run_id="1a2b",
    agent="assistant",
    user="alice",
    thread_id="tea-time",
    status="completed",
    reason=None,
    created_at=1700000000.0,
    finished_at=1700000003.25,
    duration_s=3.25,
    ttft_s=0.75,
    queue_s=0.5,
    input_tokens=200,
    output_tokens=40,
    reasoning_tokens=16,
    cached_tokens=128,
    cost_usd=0.0004,
    events=99,
    calls=(FIRST, SECOND),
    tools=(TOOL,),
)

WAIT_S = 10.0


def written(*runs: FinishedRun) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = Spans(provider)
    for run in runs:
        spans.run(run)
    return exporter.get_finished_spans()


def root(run: FinishedRun) -> ReadableSpan:
    return written(run)[-1]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_run_is_a_trace_of_its_calls_and_tools_at_the_times_they_had() -> None:
    first, second, tool, run = written(RUN)
    assert [span.name for span in (run, first, second, tool)] == [
        "invoke_agent assistant",
        "chat gpt-5-mini",
        "chat gpt-5-mini",
        "execute_tool weather",
    ]
    assert run.parent is None
    assert run.context is not None
    for child in (first, second, tool):
        assert child.parent is not None
        assert child.parent.span_id == run.context.span_id
        assert child.context is not None
        assert child.context.trace_id == run.context.trace_id
    assert [span.kind for span in (run, first, tool)] == [SpanKind.INTERNAL, SpanKind.CLIENT, SpanKind.INTERNAL]
    assert (run.start_time, run.end_time) == (1700000000_000_000_000, 1700000003_250_000_000)
    assert (first.start_time, first.end_time) == (1700000000_500_000_000, 1700000001_500_000_000)
    assert (tool.start_time, tool.end_time) == (1700000001_500_000_000, 1700000002_000_000_000)
    assert {span.status.status_code for span in (run, first, second, tool)} == {StatusCode.UNSET}


def test_the_attributes_are_those_of_the_conventions() -> None:
    first, second, tool, run = written(RUN)
    assert attributes(run) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "assistant",
        "gen_ai.conversation.id": "tea-time",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.usage.input_tokens": 200,
        "gen_ai.usage.output_tokens": 40,
        "gen_ai.usage.cache_read.input_tokens": 128,
        "gen_ai.usage.reasoning.output_tokens": 16,
        "enduser.id": "alice",
        "millrace.usage.estimated": False,
        "millrace.cost_usd": 0.0004,
        "millrace.run.id": "1a2b",
        "millrace.run.status": "completed",
        "millrace.run.events": 99,
        "millrace.queue_wait_s": 0.5,
        "millrace.saved_tokens": 0,
        "millrace.time_to_first_token_s": 0.75,
    }
    assert attributes(first) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.agent.name": "assistant",
        "gen_ai.conversation.id": "tea-time",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 64,
        "gen_ai.usage.reasoning.output_tokens": 8,
        "millrace.usage.estimated": False,
        "millrace.cost_usd": 0.0004,
        "millrace.call.status": "completed",
        "millrace.queue_wait_s": 0.5,
    }
    assert attributes(second)["millrace.usage.estimated"] is True
    assert "millrace.cost_usd" not in attributes(second)
    assert attributes(tool) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "weather",
        "gen_ai.tool.call.id": "call_7",
        "gen_ai.tool.type": "function",
        "gen_ai.agent.name": "assistant",
        "gen_ai.conversation.id": "tea-time",
    }


def test_a_run_without_a_thread_or_with_several_models_does_not_make_one_up() -> None:
    run = root(RUN._replace(thread_id=None, calls=(FIRST, FIRST._replace(model="claude", provider="anthropic"))))
    assert not {"gen_ai.conversation.id", "gen_ai.request.model", "gen_ai.provider.name"} & attributes(run).keys()
    assert root(RUN._replace(calls=(), tools=())).name == "invoke_agent assistant"


@pytest.mark.parametrize(
    ("provider", "called"), [("azure", "azure.ai.openai"), ("xai", "x_ai"), ("simulated", "simulated"), ("", "unknown")]
)
def test_providers_have_the_conventions_names(provider: str, called: str) -> None:
    call, _ = written(RUN._replace(calls=(FIRST._replace(provider=provider),), tools=()))
    assert attributes(call)["gen_ai.provider.name"] == called


def test_what_failed_is_an_error_of_its_code_and_what_was_before_is_not() -> None:
    calls = (FIRST, SECOND._replace(status="failed"))
    first, second, run = written(RUN._replace(status="failed", reason="provider_dropped", calls=calls, tools=()))
    assert first.status.status_code is StatusCode.UNSET
    for span in (second, run):
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)["error.type"] == "provider_dropped"
    assert attributes(run)["millrace.run.reason"] == "provider_dropped"


def test_a_failure_without_a_code_and_one_that_the_run_survived_are_errors_too() -> None:
    calls = (FIRST._replace(status="failed"), SECOND._replace(status="timed_out"))
    tools = (TOOL._replace(status="error"),)
    failed, late, tool, run = written(RUN._replace(calls=calls, tools=tools))
    assert [attributes(span).get("error.type") for span in (failed, late, tool, run)] == [
        "_OTHER",
        "timeout",
        "tool_error",
        None,
    ]
    assert [span.status.status_code is StatusCode.ERROR for span in (failed, late, tool, run)] == [
        True,
        True,
        True,
        False,
    ]


def test_a_cancelled_run_is_no_error_and_says_what_it_saved() -> None:
    run = root(
        RUN._replace(status="cancelled", reason="disconnected", cancel_s=0.004, saved_tokens=410, saved_usd=0.0008)
    )
    assert run.status.status_code is StatusCode.UNSET
    found = attributes(run)
    assert "error.type" not in found
    assert found["millrace.run.status"] == "cancelled"
    assert found["millrace.run.reason"] == "disconnected"
    assert found["millrace.cancel_latency_s"] == 0.004
    assert found["millrace.saved_tokens"] == 410
    assert found["millrace.saved_cost_usd"] == 0.0008


def test_words_of_prompts_are_there_only_when_the_record_has_them() -> None:
    assert not {"gen_ai.input.messages", "gen_ai.output.messages"} & attributes(root(RUN)).keys()
    found = attributes(root(RUN._replace(asked='Was "ist" das?', answered="Ein Tee — 茶.")))
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": 'Was "ist" das?'}]}
    ]
    assert json.loads(found["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Ein Tee — 茶."}], "finish_reason": "stop"}
    ]


def test_a_long_text_is_cut_and_stays_json() -> None:
    run = root(RUN._replace(status="cancelled", answered='"' * 100_000))
    (message,) = json.loads(attributes(run)["gen_ai.output.messages"])
    assert message["parts"][0]["content"] == '"' * MAX_TEXT_CHARS
    assert message["finish_reason"] == "cancelled"


def test_a_clock_that_jumps_back_makes_no_span_end_before_it_begins() -> None:
    for span in written(RUN._replace(finished_at=5.0, calls=(FIRST._replace(ended_at=5.0),))):
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.end_time >= span.start_time


def test_the_span_of_whoever_happens_to_be_running_is_no_parent() -> None:
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))):
        assert root(RUN).parent is None


class Collector(ThreadingHTTPServer):
    """What takes spans over HTTP, as far as this needs one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taker)
        self.taken: Queue[tuple[str, str | None, ExportTraceServiceRequest]] = Queue()
        self.hangs = threading.Event()
        self.hangs.set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class _Taker(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.hangs.wait(WAIT_S)
        self.server.taken.put((self.path, self.headers["content-type"], ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""


@contextmanager
def collecting() -> Iterator[Collector]:
    server = Collector()
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        yield server
    finally:
        server.hangs.set()
        server.shutdown()
        server.server_close()
        serving.join(WAIT_S)


def test_a_collector_gets_them_over_http_when_the_server_closes() -> None:
    with collecting() as collector:
        spans = open_spans(endpoint=collector.endpoint)
        spans.run(RUN._replace(thread_id="half \ud800", asked="also half \udfff"))
        spans.close()
        path, content_type, request = collector.taken.get(timeout=WAIT_S)
    assert (path, content_type) == ("/v1/traces", "application/x-protobuf")
    (resource,) = request.resource_spans
    assert {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"] == "millrace"
    (scope,) = resource.scope_spans
    assert scope.scope.name == "millrace"
    by_name = {span.name: span for span in scope.spans}
    assert len(scope.spans) == 4
    run, tool = by_name["invoke_agent assistant"], by_name["execute_tool weather"]
    assert tool.parent_span_id == run.span_id
    assert run.start_time_unix_nano == 1700000000_000_000_000
    told = {one.key: one.value for one in run.attributes}
    assert told["gen_ai.usage.output_tokens"].int_value == 40
    assert told["gen_ai.conversation.id"].string_value == "half ?"


SERVICE = """
from app.telemetry.spans import open_spans
print(open_spans()._provider.resource.attributes["service.name"])
"""


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "millrace"),
        ({"OTEL_SERVICE_NAME": "tea-shop"}, "tea-shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=tea-room,zone=b"}, "tea-room"),
    ],
)
def test_the_operator_may_name_the_service(variables: dict[str, str], name: str) -> None:
    assert in_a_process(SERVICE, **variables).stdout.split() == [name]


MISSING = """
import sys
sys.modules["opentelemetry"] = None
import app.telemetry.spans as spans
try:
    spans.open_spans()
except spans.SpansUnavailable as error:
    print(error)
"""


def test_without_the_extra_it_says_what_to_install() -> None:
    assert "pip install 'millrace[otel]'" in in_a_process(MISSING).stdout


def in_a_process(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)


def within(seconds: float, work: Callable[[], None]) -> bool:
    began = time.monotonic()
    work()
    return time.monotonic() - began < seconds


def test_a_collector_that_is_not_there_slows_and_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "opentelemetry")
    with collecting() as collector:
        endpoint = collector.endpoint
    spans = open_spans(endpoint=endpoint)
    for _ in range(1000):  # four spans each: more than may wait
        spans.run(RUN)
    assert within(5.0, lambda: spans.close(0.2))
    spans.run(RUN)  # too late, and harmless
    spans.close(0.2)


def test_a_collector_that_does_not_answer_is_not_waited_for() -> None:
    with collecting() as collector:
        collector.hangs.clear()
        spans = open_spans(endpoint=collector.endpoint)
        spans.run(RUN)
        assert within(5.0, lambda: spans.close(0.2))


class _Slow(SpanExporter):
    def __init__(self) -> None:
        self.may = threading.Event()
        self.sent = 0

    def export(self, spans: Any) -> SpanExportResult:
        self.may.wait(WAIT_S)
        self.sent += len(spans)
        return SpanExportResult.SUCCESS


def test_what_does_not_fit_is_dropped_and_whoever_writes_does_not_wait() -> None:
    exporter = _Slow()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=64, max_export_batch_size=32))
    spans = Spans(provider)
    for _ in range(100):
        spans.run(RUN)
    exporter.may.set()
    spans.close()
    assert 64 <= exporter.sent <= 128
