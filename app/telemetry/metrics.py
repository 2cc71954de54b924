"""What ``/metrics`` tells Prometheus: every metric of the house, with its unit and its bounds.

One ``Metrics`` an application, with a registry of its own: the library's global one would be shared by every
application of a process. Times are in seconds, money in dollars, and a label has a bounded number of values whatever
users and their graphs send: statuses and codes are closed, agents and models are the first so many names, and the rest
is ``other``. Nothing of a user's, of a thread or of a prompt becomes a label.

May be called from any thread. Nothing here awaits, and nothing raises for a value that is odd.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from app.telemetry.records import FinishedRun, ModelCall, RunStatus

MAX_MODELS = 50
"""Names of models told apart: a graph may call any, and each has some twenty series an agent."""

MAX_AGENTS = 200

MAX_NAME_CHARS = 100

OTHER = "other"

CODES = ("too_many_streams", "rate_limited", "budget_exhausted", "too_many_readers", "upstream_busy")

RECOVERIES = ("provider.retry", "tool.repaired", "tool.refused", "object.repaired", "object.refused")
"""The custom events by which the graphs and models of the house say that something was put right, or tried anew."""

PROBLEMS = ("not_json", "schema", "unknown_tool", "no_id", "repeated_id")

STATES = ("running", "queued", "paused")

ENDED_EARLY = ("cancelled", "timed_out")

FIRST_TOKEN_S = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
"""From a local model's to that of one that thinks first. People tell 0.2 s from 0.5 s, so it is finest there.
Silence is cut after 60 s by default, and the wait at the gate may come before it."""

INTER_TOKEN_S = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Models send 10 to 200 tokens a second, 5 to 100 ms apart: half of the bounds are there. Below it are tokens that came
in one packet; above 250 ms a reader sees a stall, and 30 s is where a stall ends its run by default."""

QUEUE_WAIT_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
"""The first is "no wait". A place comes free when some answer ends, so a wait is rarely under 50 ms and often whole
seconds; 30 s is where waiting ends by default."""

CANCEL_LATENCY_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Two aims are bounds: 5 ms on an idle server, 100 ms on a full one. Above are blocked loops, and work that
cannot be stopped."""

RUN_DURATION_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""From a short answer to an agent at work; 300 s is where a run ends by default."""


class _Sight(NamedTuple):
    """Where to look for what is so now."""

    runs: Callable[[], Mapping[str, int]]
    readers: Callable[[], int]
    gate: Callable[[], tuple[int, int, int]]


class Metrics:
    """``agents`` are those that are served: their series exist from the start, and ``rate()`` sees the first event."""

    def __init__(self, agents: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        known = tuple(agents)
        self._agents = _Names(max(MAX_AGENTS, len(known)), known)
        self._models = _Names(MAX_MODELS)
        self._sight: _Sight | None = None
        self._define()
        self._begin(known)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _define(self) -> None:
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From a run's admission to its first token.", FIRST_TOKEN_S, "agent"
        )
        self._model_first_token = self._histogram(
            "model_time_to_first_token_seconds", "From a model call's start to its first token.", FIRST_TOKEN_S, "model"
        )
        self._inter_token = _Tally("inter_token_seconds", "Between two tokens of one run.", INTER_TOKEN_S)
        self.registry.register(self._inter_token)
        self._queue_wait = self._histogram(
            "queue_wait_seconds", "What model calls waited at the upstream gate.", QUEUE_WAIT_S
        )
        self._cancel_latency = self._histogram(
            "cancel_latency_seconds",
            "From the decision to end a run early until its work stood still.",
            CANCEL_LATENCY_S,
            "status",
        )
        self._run_duration = self._histogram(
            "run_duration_seconds", "How long runs took, pauses apart.", RUN_DURATION_S, "agent"
        )
        self._runs = self._counter("runs", "Runs that have ended.", "agent", "status")
        self._calls = self._counter("model_calls", "Model calls that have ended.", "agent", "model", "status")
        self._estimated = self._counter(
            "model_calls_estimated",
            "Model calls whose tokens were counted here, not by the provider.",
            "agent",
            "model",
        )
        self._unpriced = self._counter(
            "model_calls_unpriced",
            "Model calls without a known price: their cost is counted nowhere.",
            "agent",
            "model",
        )
        self._tokens = self._counter(
            "tokens",
            "Tokens of model calls; reasoning is a part of output, and cached of input.",
            "agent",
            "model",
            "status",
            "kind",
        )
        self._cost = self._counter("cost_usd", "What model calls with a known price cost.", "agent", "model", "status")
        self._saved_tokens = self._counter(
            "saved_tokens", "Tokens that cancelled runs would likely have generated yet.", "agent"
        )
        self._saved_usd = self._counter("saved_cost_usd", "What those would have cost.", "agent")
        self._refusals = self._counter("refusals", "Requests and model calls that a limit refused.", "code")
        self._gaps = self._counter("gaps", "Times that a reader fell behind and lost events.")
        self._dropped = self._counter("dropped_events", "Events that readers lost so.")
        self._recoveries = self._counter(
            "recoveries",
            "Calls repeated, and what models wrote wrongly that was mended or sent back.",
            "kind",
            "problem",
        )
        self._provider_429 = self._counter("provider_rate_limited", "Answers of providers with HTTP status 429.")

    def _begin(self, agents: Iterable[str]) -> None:
        for agent in map(self._agents.of, agents):
            for status in get_args(RunStatus):
                self._runs.labels(agent, status)
            for metric in (self._first_token, self._run_duration, self._saved_tokens, self._saved_usd):
                metric.labels(agent)
        for status in ENDED_EARLY:
            self._cancel_latency.labels(status)
        for code in CODES:
            self._refusals.labels(code)
        for kind in RECOVERIES:
            for problem in (
                PROBLEMS if kind.startswith("tool.") else ("not_json",) if kind == "object.repaired" else ("",)
            ):
                self._recoveries.labels(kind, problem)

    def call(self, call: ModelCall) -> None:
        """A model call has ended."""
        agent, model, status = self._agents.of(call.agent), self._models.of(call.model), call.status
        self._calls.labels(agent, model, status).inc()
        for kind, tokens in (
            ("input", call.input_tokens),
            ("output", call.output_tokens),
            ("reasoning", call.reasoning_tokens),
            ("cached", call.cached_tokens),
        ):
            self._tokens.labels(agent, model, status, kind).inc(_amount(tokens))
        if call.cost_usd is None:
            self._unpriced.labels(agent, model).inc()
        else:
            self._cost.labels(agent, model, status).inc(_amount(call.cost_usd))
        if call.estimated:
            self._estimated.labels(agent, model).inc()
        self._queue_wait.observe(_amount(call.queue_s))
        if call.ttft_s is not None:
            self._model_first_token.labels(model).observe(_amount(call.ttft_s))

    def run(self, run: FinishedRun) -> None:
        """A run has ended. Its model calls and its first token have been told of by themselves."""
        agent = self._agents.of(run.agent)
        self._runs.labels(agent, run.status).inc()
        self._run_duration.labels(agent).observe(_amount(run.duration_s))
        if run.cancel_s is not None:
            self._cancel_latency.labels(run.status).observe(_amount(run.cancel_s))
        if run.saved_tokens:
            self._saved_tokens.labels(agent).inc(_amount(run.saved_tokens))
        if run.saved_usd:
            self._saved_usd.labels(agent).inc(_amount(run.saved_usd))

    def token_gap(self, seconds: float) -> None:
        """So much time was between two tokens of one run. For every token, and from the event loop's thread alone."""
        self._inter_token.add(max(0.0, seconds))

    def first_token(self, agent: str, seconds: float) -> None:
        """A run's first token has come, so long after the run was admitted."""
        self._first_token.labels(self._agents.of(agent)).observe(_amount(seconds))

    def refused(self, code: str) -> None:
        """A limit has refused something, with that code."""
        self._refusals.labels(code if code in CODES else OTHER).inc()

    def gap(self, dropped: int) -> None:
        """A reader was told of a gap, of so many events."""
        self._gaps.inc()
        self._dropped.inc(_amount(dropped))

    def recovered(self, kind: str, problem: str) -> None:
        """Something was put right: one of ``RECOVERIES``, and of ``PROBLEMS`` where it is a tool call's."""
        self._recoveries.labels(kind, problem if problem in PROBLEMS else "").inc()

    def provider_refused(self) -> None:
        """A provider has answered with 429."""
        self._provider_429.inc()

    def watch(
        self,
        *,
        runs: Callable[[], Mapping[str, int]],
        readers: Callable[[], int],
        gate: Callable[[], tuple[int, int, int]],
    ) -> None:
        """What is so now, asked at each scrape: live runs by state, open readers, the gate.

        ``runs`` has some of ``STATES``; ``gate`` is calls under way, calls waiting, and how many may be under way.
        They are called in the thread of ``render``.
        """
        if self._sight is None:
            self.registry.register(_Now(self))
        self._sight = _Sight(runs, readers, gate)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The body and its content type: OpenMetrics for who accepts it, else Prometheus's text."""
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # a version that is no number: the library compares it all the same
            encode, content_type = choose_encoder("")
        return encode(_Exposed(self.registry)), content_type

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"millrace_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"millrace_{name}", meaning, labels, buckets=buckets, registry=self.registry)


class _Tally(Collector):
    """A histogram that one thread alone adds to: without the locks that make the library's cost five times as much."""

    def __init__(self, name: str, meaning: str, bounds: tuple[float, ...]) -> None:
        self._name = f"millrace_{name}"
        self._meaning = meaning
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """One more."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """As Prometheus has it: each bucket holds what is in those below it."""
        bounds = (*map(str, self._bounds), "+Inf")
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._meaning, buckets=buckets, sum_value=self._sum)


class _Now(Collector):
    """Gauges that are read when they are asked for, so that nobody has to keep them right in between."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterator[Metric]:
        """None: the registry is not to read them before there is anything to see."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """What is so now."""
        sight = self._metrics._sight  # noqa: SLF001 - one thing in two halves
        if sight is None:
            return
        counts = sight.runs()
        live = GaugeMetricFamily("millrace_live_runs", "Runs that have not ended, by state.", labels=["state"])
        for state in STATES:
            live.add_metric([state], counts.get(state, 0))
        yield live
        yield GaugeMetricFamily("millrace_readers", "Open streams.", sight.readers())
        under_way, waiting, limit = sight.gate()
        yield GaugeMetricFamily("millrace_gate_calls_under_way", "Model calls under way.", under_way)
        yield GaugeMetricFamily("millrace_gate_calls_waiting", "Model calls that wait for their turn.", waiting)
        yield GaugeMetricFamily("millrace_gate_limit", "Model calls that may be under way at once now.", limit)


class _Exposed(Collector):
    """The registry without the ``_created`` series, which would be another for every counter and histogram."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """What is shown."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _Names:
    """The first ``most`` names of a label, cleaned; all others are ``other``. Two threads at once may add one more."""

    def __init__(self, most: int, known: Iterable[str] = ()) -> None:
        self._most = most
        self._names = {_clean(name) for name in known}

    def of(self, name: str) -> str:
        """What this name is called in a label."""
        name = _clean(name)
        if name not in self._names:
            if len(self._names) >= self._most:
                return OTHER
            self._names.add(name)
        return name


def _clean(name: str) -> str:
    """Printable, never empty, and of bounded length. A lone surrogate would break every scrape from then on."""
    name = name[:MAX_NAME_CHARS]
    return name if name.isprintable() and name else _printable(name)


def _printable(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name) or "unknown"


def _amount(value: float) -> float:
    """Counters refuse what is negative, as a clock that jumps makes it, and no sum survives a NaN (0.0 comes first)."""
    return max(0.0, value)
