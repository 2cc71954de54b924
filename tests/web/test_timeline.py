"""The page's timeline in Node: frames in, lanes out."""

import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from node import javascript

TRACES = Path(__file__).parents[1] / "protocols" / "traces"

SCRIPT = """
import { Timeline, clock, columns, nearest, ticks } from "./timeline.js";
import { detail, summary } from "./items.js";
const line = new Timeline();
for (const frame of given.frames) line.take(frame);
const row = (name) => line.rows().find((one) => one.name === name).lane;
const brief = (item, ...names) => names.map((name) => item[name]);
told((%s) ?? null);
"""

Frame = dict[str, Any]


class Told:
    """The frames of a made-up run."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._ids: Iterator[int] = count(1)
        self(0, "run.started", run_id="r", agent="assistant", thread_id=None, model=None, max_tokens=None)

    def __call__(self, at: int, event: str, **data: Any) -> "Told":
        self.frames.append({"id": next(self._ids), "event": event, "data": {"ts": 1_000_000 + at, **data}})
        return self

    def finished(self, at: int, status: str = "completed") -> "Told":
        return self(at, "run.finished", status=status, reason=None, usage={}, ttft_ms=None, duration_ms=at)


def seen(frames: list[Frame], what: str) -> Any:
    """What an expression over the ``line`` of these frames is."""
    return javascript(SCRIPT % what, {"frames": frames})


def recorded(name: str) -> list[Frame]:
    return [json.loads(line) for line in (TRACES / f"{name}.jsonl").read_text("utf-8").splitlines()]


def test_each_node_and_each_call_has_a_lane_and_a_subgraph_stands_below_the_node_that_called_it() -> None:
    told = Told()
    told(1, "node.started", node="plan")(2, "node.finished", node="plan")
    told(3, "node.started", node="look")
    for number, place in enumerate(("Oslo", "Rome"), 1):
        path = [f"look:{number}"]
        told(
            4,
            "custom",
            node="look",
            name="branch.started",
            data={"namespace": path, "number": number, "question": place},
        )
        told(5, "node.started", node="model", namespace=path)
        told(6, "tool.pending", node="model", namespace=path, call_id=place, name="weather", label="…")
    told(9, "node.started", node="tell")
    rows = seen(told.frames, "line.rows().map(({kind, name, depth}) => [kind, name, depth])")
    assert rows == [
        ["run", "run", 0],
        ["node", "plan", 0],
        ["node", "look", 0],
        ["branch", "1 Oslo", 1],
        ["node", "model", 1],
        ["tool", "weather", 1],
        ["branch", "2 Rome", 1],
        ["node", "model", 1],
        ["tool", "weather", 1],
        ["node", "tell", 0],
    ]


def test_a_subgraph_that_says_nothing_of_itself_is_called_by_its_node() -> None:
    assert seen(recorded("subgraph"), "line.rows().map(({name}) => name)") == ["run", "deep", "deep", "think"]


def test_an_agent_that_is_no_graph_has_one_lane() -> None:
    assert seen(recorded("failed"), "line.rows().map(({name}) => name)") == ["run", "answer"]


def test_steps_of_a_node_at_the_same_time_are_one_stretch_that_knows_how_many() -> None:
    told = Told()
    told(10, "node.started", node="tools")(20, "node.started", node="tools")
    told(30, "node.finished", node="tools")(50, "node.finished", node="tools")
    told(60, "node.started", node="tools")
    steps = seen(told.frames, "row('tools').items.map((one) => brief(one, 'start', 'end', 'most'))")
    assert steps == [[10, 50, 2], [60, None, 1]]


def test_a_call_is_written_then_waits_then_runs() -> None:
    told = Told()
    told(10, "tool.pending", node="model", call_id="a", name="clock", label="…")
    told(20, "tool.args", node="model", call_id="a", delta='{"zone":', args=None)
    told(30, "tool.args", node="model", call_id="a", delta='"UTC"}', args={"zone": "UTC"})
    told(80, "tool.started", node="tools", call_id="a", name="clock", args={"zone": "UTC"})
    told(95, "tool.finished", node="tools", call_id="a", name="clock", status="ok", output="noon", duration_ms=14)
    names = "'start', 'written', 'started', 'end', 'status', 'ms'"
    assert seen(told.frames, f"brief(row('clock').items[0], {names})") == [10, 30, 80, 95, "ok", 14]


def test_tools_side_by_side_are_counted_and_the_longest_is_known() -> None:
    facts = seen(recorded("parallel_tools"), "[line.tools.count, line.tools.most, line.tools.longest.name]")
    assert facts == [3, 2, "clock"]


def test_a_call_that_never_ran_was_at_work_at_no_time() -> None:
    told = Told()
    told(10, "tool.pending", node="model", call_id="a", name="clock", label="…")
    told(40, "tool.finished", node="model", call_id="a", name="clock", status="error", output="no", duration_ms=0)
    facts = "[row('clock').items[0].started, line.tools.failed, line.tools.running, line.tools.longest]"
    assert seen(told.frames, facts) == [None, 1, 0, None]


def test_a_silence_within_a_message_is_a_hole_in_its_text() -> None:
    told = Told()
    told(0, "message.started", node="model", message_id="m", role="assistant")
    for at in [*range(0, 500, 10), *range(800, 1000, 10)]:
        told(at, "token", node="model", message_id="m", text="word")
    text = seen(told.frames, "columns(row('model').text, line.binMs, 0, 1000, 20)")
    assert [at for at, letters in enumerate(text) if not letters] == [10, 11, 12, 13, 14, 15]
    assert sum(text) == 70 * len("word")
    assert seen(told.frames, "line.quiet") == {"ms": 310, "at": 490}


def test_a_pause_is_no_silence_and_ends_what_its_nodes_did() -> None:
    told = Told()
    told(0, "node.started", node="model")
    told(10, "message.started", node="model", message_id="m", role="assistant")
    told(20, "token", node="model", message_id="m", text="a")
    told(30, "run.paused", reason="requested", usage={})
    told(9000, "run.resumed", seamless=True)
    told(9010, "node.started", node="model")
    told(9020, "token", node="model", message_id="m", text="b")
    told(9030, "message.finished", node="model", message_id="m", role="assistant")
    told(9040, "node.finished", node="model").finished(9050)
    assert seen(told.frames, "line.quiet.ms") == 20
    paused = "line.run.items.filter(({kind}) => kind === 'paused').map((one) => brief(one, 'start', 'end'))"
    assert seen(told.frames, paused) == [[30, 9000]]
    steps = "row('model').items.filter(({kind}) => kind === 'step').map((one) => brief(one, 'start', 'end', 'cut'))"
    assert seen(told.frames, steps) == [[0, 30, True], [9010, 9040, False]]


def test_the_wait_at_the_gate_ends_where_the_calls_usage_says() -> None:
    told = Told()
    told(10, "run.queued", position=3)(50, "run.queued", position=1)
    told(900, "message.started", node="model", message_id="m", role="assistant")
    told(910, "message.finished", node="model", message_id="m", role="assistant")
    queued = "line.run.items.filter(({kind}) => kind === 'queued').map((one) => brief(one, 'start', 'end', 'position'))"
    assert seen(told.frames, queued) == [[10, 900, 3]]
    told(910, "usage", input_tokens=1, output_tokens=1, total_tokens=2, cost_usd=None, estimated=False, queue_ms=200)
    assert seen(told.frames, queued) == [[10, 210, 3]]


def test_a_gap_lies_between_the_events_around_it_whenever_it_was_told() -> None:
    told = Told()
    told(100, "message.started", node="model", message_id="m", role="assistant")
    told(90_000, "gap", **{"from": 3, "to": 40, "dropped": 38})
    told(400, "message.finished", node="model", message_id="m", role="assistant").finished(500)
    gap = "line.run.items.filter(({kind}) => kind === 'gap').map((one) => brief(one, 'start', 'end', 'dropped'))"
    assert seen(told.frames, gap) == [[100, 400, 38]]
    assert seen(told.frames, "line.end") == 500


def test_a_message_that_is_generated_anew_leaves_its_void_part_in_the_lane() -> None:
    messages = (
        "row('answer').items.filter(({kind}) => kind === 'message').map((one) => brief(one, 'discarded', 'pieces'))"
    )
    assert seen(recorded("discarded"), messages) == [[True, 15], [False, 40]]


@pytest.mark.parametrize("name", sorted(path.stem for path in TRACES.glob("*.jsonl")))
def test_nothing_of_a_run_that_is_over_is_still_open(name: str) -> None:
    items = "line.rows().flatMap(({lane}) => lane.items).filter(({end}) => end === null)"
    still, told = seen(recorded(name), f"[{items}, summary(line, {{status: line.over.status}})]")
    assert still == []
    assert not {"undefined", "NaN", "null"} & set(re.findall(r"\w+", told))


def test_what_is_open_when_the_run_ends_was_cut() -> None:
    told = Told()(10, "node.started", node="model").finished(30, "cancelled")
    assert seen(told.frames, "brief(row('model').items[0], 'end', 'cut')") == [30, True]


def test_a_long_run_has_no_more_bins_than_a_short_one_and_loses_no_letter() -> None:
    told = Told()
    told(0, "message.started", node="model", message_id="m", role="assistant")
    for at in range(0, 5_000_000, 1000):
        told(at, "token", node="model", message_id="m", text="ab")
    lane = "[row('model').text.length <= 2048, row('model').text.reduce((sum, one) => sum + one)]"
    assert seen(told.frames, lane) == [True, 10_000]


def test_events_of_these_names_with_anything_in_them_do_no_harm() -> None:
    told = Told()
    strange: list[Any] = [None, 1, "x", [], {}, {"namespace": "x"}, {"namespace": [1]}]
    for data in [*strange, {"namespace": ["a:1"], "question": 7}]:
        told(1, "custom", name="branch.started", data=data)(2, "custom", name="branch.finished", data=data)
    told(3, "something.new", node="x").finished(4)
    assert seen(told.frames, "line.rows().map(({name}) => name)") == ["run", "a"]


@pytest.mark.parametrize(
    ("start", "end", "most", "labels"),
    [
        (0, 80, 4, ["0.00 s", "0.02 s", "0.04 s", "0.06 s", "0.08 s"]),
        (0, 2600, 3, ["0 s", "1 s", "2 s"]),
        (0, 150_000, 4, ["0:00", "1:00", "2:00"]),
        (3_600_000, 10_800_000, 2, ["1:00:00", "2:00:00", "3:00:00"]),
    ],
)
def test_the_axis_has_round_moments(start: int, end: int, most: int, labels: list[str]) -> None:
    shown = f"(({{step, at}}) => at.map((one) => clock(one, step)))(ticks({start}, {end}, {most}))"
    assert seen([], shown) == labels


def test_what_is_too_thin_to_point_at_is_found_beside_what_is_wide() -> None:
    items = "[{n: 'wide', start: 0, end: 1000}, {n: 'thin', start: 500, end: 501}, {n: 'other', start: 508, end: 508}]"
    for at, name in ((100, "wide"), (496, "thin"), (507, "other")):
        assert seen([], f"nearest({items}, {at}, 10, 1000).n") == name
    assert seen([], f"nearest({items}, 2000, 10, 2000)") is None
