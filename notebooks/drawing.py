"""The pictures that notebooks share: a graph as it was built, a run as it went, and the sheet that others are drawn on.

``draw_graph`` lays out what LangGraph knows of a compiled graph, and needs no network for it, unlike LangGraph's own
``draw_mermaid_png``. ``draw_lanes`` puts the events of one run on a clock, whatever graph made them: they are taken
as ``docs/events.md`` has them, each a dict of its data with its type as ``"event"``. ``sheet`` and ``note`` are for
what only one notebook has to show.

All figures are ones that nothing else holds: shown where they are the last line of a cell, and nowhere twice.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

INK, PAPER = "#334155", "#ffffff"
NODE, TOKEN = "#d8e0ea", "#2f6fde"
WRITING, PIECE, RUNNING, FAILED = "#fde0b5", "#f0a04b", "#0f766e", "#be123c"

Event: TypeAlias = Mapping[str, Any]
Point: TypeAlias = tuple[float, float]


class Drawable(Protocol):
    """What LangGraph's compiled graphs have: a description of their nodes and edges."""

    def get_graph(self) -> Any:
        """A ``langchain_core.runnables.graph.Graph``."""


# -- a sheet ----------------------------------------------------------------------------------------------------------


def sheet(title: str, xlabel: str, height: float) -> tuple[Figure, Axes]:
    """An empty picture, as wide as all of them and ``height`` inches high."""
    figure, axes = plt.subplots(figsize=(11, height), layout="constrained", facecolor=PAPER)
    plt.close(figure)
    axes.set_title(title, loc="left", weight="bold", color=INK, pad=10)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def note(axes: Axes, text: str, x: float, y: float, shift: tuple[int, int] = (6, 0), **style: Any) -> None:
    """A word beside a place in a picture, ``shift`` points away from it, on paper of its own."""
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
    style = {"va": "center", "color": INK, "size": "small", "zorder": 4, "bbox": box, **style}
    axes.annotate(text, (x, y), shift, textcoords="offset points", **style)


# -- a graph ----------------------------------------------------------------------------------------------------------

ENDS = {"__start__": "START", "__end__": "END"}
COLUMN, ROW = 2.1, 1.0  # inches from one node's middle to the next


def draw_graph(graph: Drawable, title: str = "") -> Figure:
    """The nodes from left to right, as far from START as the graph's shortest way to them; a choice is dashed."""
    drawn = graph.get_graph()
    edges = [(edge.source, edge.target, edge.conditional) for edge in drawn.edges]
    places = _places(list(drawn.nodes), edges)
    bows = [_bow(places[source], places[target], places.values()) for source, target, _ in edges]
    highest, lowest = _reach(places, edges, bows)
    width = max(x for x, _ in places.values()) + 1.4
    figure, axes = plt.subplots(figsize=(width, highest - lowest + (0.4 if title else 0)), layout="constrained")
    plt.close(figure)
    boxes = {name: _box(axes, ENDS.get(name, name), place, end=name in ENDS) for name, place in places.items()}
    for (source, target, choice), bow in zip(edges, bows, strict=True):
        _arrow(axes, boxes[source], boxes[target], (places[source], places[target]), bow, dashed=choice)
    axes.set(xlim=(-0.7, width - 0.7), ylim=(lowest, highest), aspect="equal")
    axes.axis("off")
    axes.set_title(title, loc="left", weight="bold", color=INK)
    return figure


def _places(nodes: Sequence[str], edges: Sequence[tuple[str, str, bool]]) -> dict[str, Point]:
    """Where the middle of each node is."""
    depth = {"__start__": 0}
    for name in (queue := ["__start__"]):
        for source, target, _ in edges:
            if source == name and target not in depth:
                depth[target] = depth[name] + 1
                queue.append(target)
    last = 1 + max((deep for name, deep in depth.items() if name != "__end__"), default=0)
    depth["__end__"] = last
    returning = {source for source, target, _ in edges if depth.get(target, last) <= depth.get(source, 0)}
    columns = defaultdict(list)
    for name in sorted(nodes, key=lambda name: name not in returning):  # their edges go back above the others
        columns[depth.get(name, last)].append(name)
    return {
        name: (COLUMN * deep, ROW * ((len(column) - 1) / 2 - at))
        for deep, column in columns.items()
        for at, name in enumerate(column)
    }


def _bow(start: Point, end: Point, others: Iterable[Point]) -> float:
    """How far an edge leaves the straight line, as a part of its length: back above the nodes, past others below."""
    if end[0] <= start[0]:
        return 0.42
    return 0.38 if any(start[0] < x < end[0] for x, _ in others) else 0.0


def _reach(
    places: Mapping[str, Point], edges: Sequence[tuple[str, str, bool]], bows: Sequence[float]
) -> tuple[float, float]:
    """The top and the bottom of the picture, its bowed edges included."""
    heights = [y for _, y in places.values()]
    for (source, target, _), bow in zip(edges, bows, strict=True):
        run = places[target][0] - places[source][0]
        heights.append((places[source][1] + places[target][1]) / 2 - bow * run / 2)
    return max(heights) + 0.35, min(heights) - 0.35


def _box(axes: Axes, text: str, place: Point, *, end: bool) -> FancyBboxPatch:
    width, height = max(0.9, 0.11 * len(text) + 0.3), 0.46
    corner = (place[0] - width / 2, place[1] - height / 2)
    style = "round,pad=0,rounding_size=0.22" if end else "round,pad=0,rounding_size=0.08"
    box = FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=PAPER if end else NODE, edgecolor=INK)
    axes.add_patch(box)
    axes.text(*place, text, ha="center", va="center", color=INK, weight="normal" if end else "bold")
    return box


def _arrow(
    axes: Axes, start: FancyBboxPatch, end: FancyBboxPatch, line: tuple[Point, Point], bow: float, *, dashed: bool
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            *line,
            patchA=start,
            patchB=end,
            shrinkA=3,
            shrinkB=3,
            arrowstyle="-|>",
            mutation_scale=12,
            connectionstyle=f"arc3,rad={bow}",
            linestyle=(0, (4, 3)) if dashed else "-",
            color=INK,
        )
    )


# -- a run ------------------------------------------------------------------------------------------------------------

PUT_RIGHT = {"tool.refused", "tool.repaired", "object.refused"}


class Lane(NamedTuple):
    """A node of the graph, or one tool call. ``name``: the node's name, the call's id."""

    namespace: tuple[str, ...]
    is_call: bool
    name: str


def draw_lanes(events: Sequence[Event], title: str = "") -> Figure:
    """One lane for each node and each tool call of a run, over its seconds; subgraphs below what holds them."""
    run = _Run(events)
    lanes = run.lanes()
    figure, axes = sheet(title, "seconds since the run began", height=0.46 * len(lanes) + 1.9)
    for at, lane in enumerate(lanes):
        (_draw_call if lane.is_call else _draw_node)(axes, at, lane, run)
    if tokens := [run.second(event) for event in events if event["event"] == "token"]:
        axes.axvline(tokens[0], color=INK, linestyle="--", linewidth=1, zorder=1)
        note(axes, f"first token after {tokens[0]:.2f} s", tokens[0], -0.5, shift=(6, 4), va="bottom")
    axes.set_yticks(range(len(lanes)), [run.label(lane) for lane in lanes])
    for lane, label in zip(lanes, axes.get_yticklabels(), strict=True):
        label.set(color=INK, weight="normal" if lane.is_call else "bold")
    axes.set(xlim=(0, 1.02 * run.end), ylim=(len(lanes) - 0.5, -0.9))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(handles=list(_legend(run)), loc="outside lower center", ncols=4, frameon=False)
    return figure


class _Run:
    """The events of a run, found by what they are about."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._origin = events[0]["ts"]
        self.events = events
        self.end = self.second(events[-1])
        self._of: defaultdict[tuple[Lane, str], list[float]] = defaultdict(list)
        self.calls: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        asked: dict[str, Lane] = {}
        for event in events:
            call_id = event.get("call_id")
            if call_id is not None:
                lane = asked.setdefault(call_id, Lane(_namespace(event), True, call_id))
                self.calls[call_id] |= event
            else:
                lane = Lane(_namespace(event), False, event.get("node") or "answer")
            kind = event["name"] if event["event"] == "custom" else event["event"]
            self._of[lane, kind].append(self.second(event))

    def second(self, event: Event) -> float:
        """When it happened, in seconds since the run began."""
        return float(event["ts"] - self._origin) / 1000

    def times(self, lane: Lane, kind: str) -> list[float]:
        """When events of that kind happened in the lane."""
        return self._of.get((lane, kind), [])

    def lanes(self) -> list[Lane]:
        """The nodes in the order in which they came up, each with its subgraphs; below them the calls."""
        kinds = {"node.started", "token", "tool.pending", "tool.started"}
        found = list(dict.fromkeys(lane for lane, kind in self._of if kind in kinds))
        return list(_nested(found, ()))

    def label(self, lane: Lane) -> str:
        """What stands at the lane: a call with its arguments, and of a subgraph which one it is."""
        path = " › ".join(self._short(one) for one in lane.namespace)
        name = _called(self.calls[lane.name]) if lane.is_call else lane.name
        return f"{path} › {name}" if path else name

    def _short(self, space: str) -> str:
        """``investigate 2`` for the second subgraph of that name: LangGraph tells them apart by long ids."""
        node, _, _ = space.partition(":")
        alike = dict.fromkeys(
            one for lane, _ in self._of for one in lane.namespace if one == space or one.startswith(f"{node}:")
        )
        return f"{node} {list(alike).index(space) + 1}" if len(alike) > 1 else node


def _nested(lanes: Sequence[Lane], space: tuple[str, ...]) -> Iterator[Lane]:
    here = [lane for lane in lanes if lane.namespace == space]
    within = dict.fromkeys(one.namespace[: len(space) + 1] for one in lanes if len(one.namespace) > len(space))
    for lane in sorted(here, key=lambda lane: lane.is_call):
        yield lane
        for inner in within:
            if not lane.is_call and inner[:-1] == space and inner[-1].partition(":")[0] == lane.name:
                yield from _nested(lanes, inner)


def _namespace(event: Event) -> tuple[str, ...]:
    return tuple(event.get("namespace") or ())


def _called(call: Event) -> str:
    values = ", ".join(str(value) for value in (call.get("args") or {}).values())
    text = f"{call.get('name', 'tool')}({values})"
    return text if len(text) <= 40 else f"{text[:38]}…)"


def _draw_node(axes: Axes, at: int, lane: Lane, run: _Run) -> None:
    started, finished = run.times(lane, "node.started"), run.times(lane, "node.finished")
    for begun, ended in zip(started, [*finished, *[run.end] * len(started)], strict=False):
        axes.barh(at, max(ended - begun, run.end / 400), left=begun, height=0.6, color=NODE, zorder=2)
    axes.vlines(run.times(lane, "token"), at - 0.3, at + 0.3, color=TOKEN, linewidth=1, zorder=3)
    for kind in PUT_RIGHT:
        for second in run.times(lane, kind):
            axes.plot(second, at, "X", color=FAILED, markersize=9, markeredgecolor=PAPER, zorder=5)


def _draw_call(axes: Axes, at: int, lane: Lane, run: _Run) -> None:
    call = run.calls[lane.name]
    pending, started, finished = (run.times(lane, f"tool.{step}")[:1] for step in ("pending", "started", "finished"))
    ended = (finished or [run.end])[0]
    begun = (started or [ended])[0]
    failed = call.get("status") == "error"
    color = FAILED if failed else RUNNING
    if pending:
        axes.barh(at, begun - pending[0], left=pending[0], height=0.6, color=WRITING, zorder=2)
    axes.vlines(run.times(lane, "tool.args"), at - 0.3, at + 0.3, color=PIECE, linewidth=1, zorder=3)
    if started:
        axes.barh(at, max(ended - begun, run.end / 400), left=begun, height=0.6, color=color, zorder=4)
    progress = run.times(lane, "tool.progress")
    axes.plot(progress, [at] * len(progress), "D", color=PAPER, markeredgecolor=RUNNING, zorder=5)
    if finished:
        axes.plot(ended, at, "X" if failed else "o", color=color, markersize=9, markeredgecolor=PAPER, zorder=5)
        note(axes, _ending(call, ran=bool(started)), ended, at, shift=(9, 0), color=color)


def _ending(call: Event, *, ran: bool) -> str:
    if not ran:
        return "never ran"
    ms = call["duration_ms"]
    took = f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms or '< 1'} ms"
    return f"failed after {took}" if call["status"] == "error" else took


def _legend(run: _Run) -> Iterator[Patch | Line2D]:
    """Of what there is in the picture."""
    kinds = {event["name"] if event["event"] == "custom" else event["event"] for event in run.events}
    ended = {event.get("status") for event in run.events if event["event"] == "tool.finished"}
    yield Patch(color=NODE, label="a node's step")
    if "token" in kinds:
        yield _mark("|", TOKEN, "a token of the answer")
    if "tool.pending" in kinds:
        yield Patch(color=WRITING, label="pending: the model writes the arguments")
    if "tool.args" in kinds:
        yield _mark("|", PIECE, "a piece of them")
    if "tool.started" in kinds:
        yield Patch(color=RUNNING, label="started: the tool runs")
    if "tool.progress" in kinds:
        yield _mark("D", PAPER, "progress", markeredgecolor=RUNNING)
    if "ok" in ended:
        yield _mark("o", RUNNING, "finished")
    if "error" in ended or kinds & PUT_RIGHT:
        yield _mark("X", FAILED, "failed or refused")


def _mark(marker: str, color: str, label: str, **style: Any) -> Line2D:
    return Line2D([], [], color=color, marker=marker, linestyle="", markersize=8, label=label, **style)
