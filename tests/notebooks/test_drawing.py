"""The pictures that notebooks share show what there is: each node, each choice, each call and how it ended."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from langgraph.graph import END, START, MessagesState, StateGraph
from matplotlib.patches import FancyArrowPatch

DRAWING = Path(__file__).parents[2] / "notebooks" / "drawing.py"


@pytest.fixture(scope="module")
def drawing() -> Any:
    """The module beside the notebooks, which is in no package, with a canvas that needs no screen."""
    mpl.use("Agg")
    spec = importlib.util.spec_from_file_location("drawing", DRAWING)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["drawing"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(figure: Any) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for text in figure.axes[0].texts]


def lanes(figure: Any) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def run(*told: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Events 100 ms apart, between the first and the last of every run."""
    events = [("run.started", {}), *told, ("run.finished", {"status": "completed"})]
    return [{"event": event, "ts": 1000 + 100 * at, **data} for at, (event, data) in enumerate(events)]


def step(node: str, *, end: bool = False, namespace: tuple[str, ...] = ()) -> tuple[str, dict[str, Any]]:
    return f"node.{'finished' if end else 'started'}", {"node": node, "namespace": list(namespace)}


def pending(call_id: str) -> tuple[str, dict[str, Any]]:
    return "tool.pending", {"node": "model", "call_id": call_id, "name": "look_up", "label": "Looking…"}


def started(call_id: str, **args: Any) -> tuple[str, dict[str, Any]]:
    return "tool.started", {"node": "tools", "call_id": call_id, "name": "look_up", "args": args}


def finished(call_id: str, status: str = "ok", ms: int = 100) -> tuple[str, dict[str, Any]]:
    data = {"node": "tools", "call_id": call_id, "name": "look_up", "status": status, "output": "", "duration_ms": ms}
    return "tool.finished", data


def said(state: MessagesState) -> dict[str, Any]:
    return {}


def test_a_sheet_has_its_title_and_its_notes_and_is_shown_by_nobody_but_who_asked_for_it(drawing: Any) -> None:
    figure, axes = drawing.sheet("what was found", "seconds", height=2)
    drawing.note(axes, "here", 1, 2)
    assert texts(figure) == ["here"]
    assert (axes.get_title(loc="left"), axes.get_xlabel()) == ("what was found", "seconds")
    assert drawing.plt.get_fignums() == []


def test_a_graph_has_a_box_for_each_node_and_its_choices_are_dashed(drawing: Any) -> None:
    graph = StateGraph(MessagesState)
    for name in ("model", "check", "tools"):
        graph.add_node(name, said)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", lambda _: END, ["check", END])
    graph.add_edge("check", "tools")
    graph.add_edge("tools", "model")
    figure = drawing.draw_graph(graph.compile(), "a title")
    assert sorted(texts(figure)) == ["END", "START", "check", "model", "tools"]
    arrows = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    assert sorted(arrow.get_linestyle() == "-" for arrow in arrows) == [False, False, True, True, True]


def test_nodes_from_which_a_way_leads_back_stand_above_the_others(drawing: Any) -> None:
    graph = StateGraph(MessagesState)
    for name in ("model", "give_up", "tools"):
        graph.add_node(name, said)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", lambda _: "tools", ["give_up", "tools"])
    graph.add_edge("tools", "model")
    graph.add_edge("give_up", END)
    figure = drawing.draw_graph(graph.compile())
    heights = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert heights["tools"] > heights["model"] > heights["give_up"]


def test_a_run_has_a_lane_for_each_node_and_each_call_with_how_it_ended(drawing: Any) -> None:
    events = run(
        step("model"),
        *(pending(call) for call in "abc"),
        step("model", end=True),
        step("tools"),
        started("a", place="Oslo"),
        started("b", place="Rome"),
        ("tool.progress", {"node": "tools", "call_id": "b", "data": {}}),
        finished("a", ms=0),
        finished("b", "error", ms=1500),
        finished("c", "error"),
        step("tools", end=True),
        ("token", {"node": "model", "text": "x", "message_id": "m"}),
    )
    figure = drawing.draw_lanes(events)
    assert lanes(figure) == ["model", "tools", "look_up(Oslo)", "look_up(Rome)", "look_up()"]
    assert texts(figure) == ["< 1 ms", "failed after 1.5 s", "never ran", "first token after 1.40 s"]


def test_the_lanes_of_subgraphs_stand_below_the_node_that_holds_them_and_are_numbered(drawing: Any) -> None:
    one, two = ("branch:5f",), ("branch:a0",)
    events = run(
        step("branch"),
        step("branch"),
        step("model", namespace=one),
        step("model", namespace=two),
        step("model", end=True, namespace=two),
        step("model", end=True, namespace=one),
        step("branch", end=True),
        step("branch", end=True),
        step("synthesis"),
    )
    assert lanes(drawing.draw_lanes(events)) == ["branch", "branch 1 › model", "branch 2 › model", "synthesis"]


def test_what_a_cancel_left_open_goes_on_to_the_end_of_the_run(drawing: Any) -> None:
    figure = drawing.draw_lanes(run(step("tools"), pending("a"), started("a")))
    ends = [patch.get_x() + patch.get_width() for patch in figure.axes[0].patches]
    assert max(ends) == pytest.approx(0.4)


def test_a_chain_without_nodes_has_a_lane_for_its_answer(drawing: Any) -> None:
    assert lanes(drawing.draw_lanes(run(("token", {"text": "x", "message_id": "m"})))) == ["answer"]
