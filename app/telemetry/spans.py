"""Spans of runs, for whatever speaks OTLP: a run, and below it its model calls and its tools.

By OpenTelemetry's conventions for generative AI, which are still in development: ``invoke_agent``, ``chat`` and
``execute_tool``, the attributes ``gen_ai.*``, and what they have no word for as ``millrace.*``. They are written when a
run has ended, with the times at which things happened, so nothing is measured twice and a live run costs nothing.

A collector that is slow or away harms nothing: spans wait in a bounded queue, a thread sends them, and what does not
fit is dropped. The packages are an extra (``millrace[otel]``), imported only by whoever makes a ``Spans``.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from threading import Thread
from typing import TYPE_CHECKING

from app.telemetry.records import FinishedRun, ModelCall, ToolCall

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SERVICE = "millrace"

CLOSE_S = 5.0
"""How long the last spans may take to be sent."""

MAX_TEXT_CHARS = 8192
"""So much of a prompt and of an answer is in a span: a batch of 512 then stays under the exporter's 64 MiB."""

PROVIDERS = {
    "amazon_bedrock": "aws.bedrock",
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "ibm": "ibm.watsonx.ai",
    "mistralai": "mistral_ai",
    "xai": "x_ai",
}
"""LangChain's names of providers, where the conventions have others."""

FINISH_REASONS = {"completed": "stop", "failed": "error", "timed_out": "error"}

Attributes = dict[str, str | int | float]


class SpansUnavailable(ImportError):
    """Spans were asked for, and OpenTelemetry is not installed."""

    def __init__(self) -> None:
        super().__init__("Spans need OpenTelemetry, which is not installed: pip install 'millrace[otel]'")


class Spans:
    """Writes to ``provider``, and owns it. ``give_up`` has its exporter stop trying, when ``close`` took long."""

    def __init__(self, provider: "TracerProvider", *, give_up: Callable[[], None] = lambda: None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE)
        self._give_up = give_up

    def run(self, run: FinishedRun) -> None:
        """A run has ended. Takes some tens of microseconds a span, and never waits."""
        root = self._begin(f"invoke_agent {run.agent}", _run_attributes(run), run.created_at)
        for call in run.calls:
            chat = self._begin(f"chat {call.model}".rstrip(), _call_attributes(call, run), call.started_at, root)
            _end(chat, call.started_at, call.ended_at)
        for tool in run.tools:
            span = self._begin(f"execute_tool {tool.name}", _tool_attributes(tool, run), tool.started_at, root)
            _end(span, tool.started_at, tool.ended_at)
        _end(root, run.created_at, run.finished_at)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Send what waits, for so long at the most; the rest is lost. Blocks: not for an event loop's thread."""
        closing = Thread(target=self._provider.shutdown, name="millrace-spans-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive():
            self._give_up()

    def _begin(self, name: str, attributes: Attributes, started_at: float, parent: "Span | None" = None) -> "Span":
        from opentelemetry.context import Context  # noqa: PLC0415 - an extra
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context  # noqa: PLC0415

        none = Context()  # else the span of whoever happens to be running would be its parent
        span = self._tracer.start_span(
            _sound(name),
            none if parent is None else set_span_in_context(parent, none),
            SpanKind.CLIENT if attributes["gen_ai.operation.name"] == "chat" else SpanKind.INTERNAL,
            {key: _sound(value) if isinstance(value, str) else value for key, value in attributes.items()},
            start_time=_ns(started_at),
        )
        if "error.type" in attributes:
            span.set_status(StatusCode.ERROR)
        return span


def open_spans(*, endpoint: str | None = None) -> Spans:
    """Spans that are sent by OTLP over HTTP, to ``endpoint`` or where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says.

    All of OpenTelemetry's variables hold. Raises ``SpansUnavailable`` where it is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise SpansUnavailable from None
    told = OTELResourceDetector().detect().attributes
    resource = Resource.create({"service.name": told.get("service.name", SERVICE)})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # that would wait for 30 s
    exporter = OTLPSpanExporter(endpoint=endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Spans(provider, give_up=exporter.shutdown)


def _run_attributes(run: FinishedRun) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": run.agent,
        **_conversation(run),
        **_only("gen_ai.provider.name", {_provider(call) for call in run.calls}),
        **_only("gen_ai.request.model", {call.model for call in run.calls}),
        **_usage(run),
        **_error(run.status, run.reason),
        "enduser.id": run.user,
        "millrace.run.id": run.run_id,
        "millrace.run.status": run.status,
        "millrace.run.events": run.events,
        "millrace.queue_wait_s": run.queue_s,
        "millrace.saved_tokens": run.saved_tokens,
    }
    if run.reason is not None:
        attributes["millrace.run.reason"] = run.reason
    if run.ttft_s is not None:
        attributes["millrace.time_to_first_token_s"] = run.ttft_s
    if run.cancel_s is not None:
        attributes["millrace.cancel_latency_s"] = run.cancel_s
    if run.saved_usd is not None:
        attributes["millrace.saved_cost_usd"] = run.saved_usd
    if run.asked is not None:
        attributes["gen_ai.input.messages"] = _messages("user", run.asked)
    if run.answered is not None:
        reason = FINISH_REASONS.get(run.status, run.status)
        attributes["gen_ai.output.messages"] = _messages("assistant", run.answered, finish_reason=reason)
    return attributes


def _call_attributes(call: ModelCall, run: FinishedRun) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _provider(call),
        "gen_ai.agent.name": run.agent,
        **_conversation(run),
        **_usage(call),
        **_error(call.status, run.reason if run.status == call.status else None),
        "millrace.call.status": call.status,
        "millrace.queue_wait_s": call.queue_s,
    }
    if call.model:
        attributes["gen_ai.request.model"] = call.model
    if call.ttft_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = call.ttft_s
    return attributes


def _tool_attributes(tool: ToolCall, run: FinishedRun) -> Attributes:
    return {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": tool.name,
        "gen_ai.tool.call.id": tool.call_id,
        "gen_ai.tool.type": "function",
        "gen_ai.agent.name": run.agent,
        **_conversation(run),
        **({"error.type": "tool_error"} if tool.status == "error" else {}),
    }


def _usage(one: FinishedRun | ModelCall) -> Attributes:
    attributes: Attributes = {
        "gen_ai.usage.input_tokens": one.input_tokens,
        "gen_ai.usage.output_tokens": one.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": one.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": one.reasoning_tokens,
        "millrace.usage.estimated": one.estimated,
    }
    if one.cost_usd is not None:
        attributes["millrace.cost_usd"] = one.cost_usd
    return attributes


def _conversation(run: FinishedRun) -> Mapping[str, str]:
    return {} if run.thread_id is None else {"gen_ai.conversation.id": run.thread_id}


def _only(name: str, values: Iterable[str]) -> Mapping[str, str]:
    """The attribute, where all calls agree on it."""
    found = list(values)
    return {name: found[0]} if len(found) == 1 and found[0] else {}


def _provider(call: ModelCall) -> str:
    return PROVIDERS.get(call.provider, call.provider) or "unknown"


def _messages(role: str, text: str, **more: str) -> str:
    """A list of one message of one part, as JSON. A longer text is cut before, so that this stays JSON."""
    message = {"role": role, "parts": [{"type": "text", "content": text[:MAX_TEXT_CHARS]}], **more}
    return json.dumps([message], ensure_ascii=False)


def _error(status: str, reason: str | None) -> Mapping[str, str]:
    """The code of an ``error`` event, else the conventions' word. Ending early, as was wanted, is no error."""
    if status not in ("failed", "timed_out"):
        return {}
    return {"error.type": reason or ("timeout" if status == "timed_out" else "_OTHER")}


def _end(span: "Span", started_at: float, ended_at: float) -> None:
    span.end(_ns(max(started_at, ended_at)))


def _ns(seconds: float) -> int:
    return round(seconds * 1e6) * 1000


def _sound(text: str) -> str:
    """Without lone surrogates, for which the whole batch of spans would be thrown away."""
    return text.encode("utf-8", "replace").decode()
