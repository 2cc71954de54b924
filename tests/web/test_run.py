"""What the page makes of a run's events, held to the recorded streams."""

import json
from pathlib import Path
from typing import Any

import pytest
from node import javascript

TRACES = sorted((Path(__file__).parents[1] / "protocols" / "traces").glob("*.jsonl"))

FOLD = """
import { Run } from "./run.js";
const run = new Run();
for (const frame of given.frames) run.apply(frame);
told({
  status: run.status, last: run.last, over: run.over, frames: run.frames.length, usage: run.usage,
  texts: run.parts.filter(one => one.kind === "text").map(one => [one.id, one.text, one.lane]),
  tools: run.parts.filter(one => one.kind === "tool").map(one => [one.id, one.name, one.status, one.output]),
  reasoning: run.parts.filter(one => one.kind === "reasoning").map(one => one.text).join(""),
});
"""


def recorded(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def folded(frames: list[dict[str, Any]]) -> dict[str, Any]:
    model: dict[str, Any] = javascript(FOLD, {"frames": frames})
    return model


def texts(frames: list[dict[str, Any]]) -> dict[str, str]:
    """The text of each message that was not discarded, computed here."""
    written: dict[str, str] = {}
    for frame in frames:
        data = frame["data"]
        if frame["event"] == "token":
            written[data["message_id"]] = written.get(data["message_id"], "") + data["text"]
        elif frame["event"] == "message.discarded":
            written.pop(data["message_id"], None)
    return written


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_recorded_run_comes_to_its_texts_its_tools_and_its_end(path: Path) -> None:
    frames = recorded(path)
    model = folded(frames)
    assert {message_id: text for message_id, text, _ in model["texts"]} == texts(frames)
    ended = [frame["data"] for frame in frames if frame["event"] == "tool.finished"]
    assert {one[0]: one[1:] for one in model["tools"]} == {
        one["call_id"]: [one["name"], one["status"], one["output"]] for one in ended
    }
    assert (model["status"], model["over"], model["last"]) == (frames[-1]["data"]["status"], True, frames[-1]["id"])


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_frames_that_come_again_behind_a_broken_line_change_nothing(path: Path) -> None:
    frames = recorded(path)
    half = len(frames) // 2
    assert folded([*frames[:half], *frames[half // 2 :]]) == folded(frames)


def test_what_subgraphs_say_stays_in_their_lanes() -> None:
    model = folded(recorded(next(path for path in TRACES if path.stem == "subgraph")))
    assert {lane for *_, lane in model["texts"]} - {""}


def test_usage_adds_up_until_the_end_tells_the_sum() -> None:
    def usage(cost: float | None) -> dict[str, Any]:
        return {"input_tokens": 2, "output_tokens": 3, "total_tokens": 5, "cost_usd": cost, "estimated": False}

    frames = [{"id": at, "event": "usage", "data": {"ts": at, **usage(cost)}} for at, cost in enumerate((0.5, 0.25), 1)]
    assert folded(frames)["usage"]["cost_usd"] == 0.75
    frames.append({"id": 3, "event": "usage", "data": {"ts": 3, **usage(None)}})
    assert (folded(frames)["usage"]["cost_usd"], folded(frames)["usage"]["total_tokens"]) == (None, 15)


MEND = """
import { Run } from "./run.js";
const run = new Run();
const say = (id, event, data) => run.apply({ id, event, data: { ts: id, ...data } });
say(1, "run.started", { run_id: "r", agent: "a", thread_id: null, model: null, max_tokens: null });
say(2, "token", { text: "It is ", message_id: "m" });
say(9, "gap", { from: 3, to: 9, dropped: 7 });
say(10, "token", { text: "noon.", message_id: "m" });
const torn = run.parts.find(one => one.kind === "text").text;
run.mend({ text: "It is almost noon.", object: null });
told({ torn, mended: run.parts.map(one => one.text ?? one.mended), dropped: run.dropped });
"""


def test_a_gap_is_shown_and_mended_by_the_runs_result() -> None:
    assert javascript(MEND) == {"torn": "It is noon.", "mended": ["It is almost noon.", True], "dropped": 7}
