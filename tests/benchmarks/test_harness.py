"""The arithmetic and the page of the benchmarks. What they measure is not asserted: it is the machine's."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = sorted(one.stem for one in BENCHMARKS.glob("*.py"))

Script: TypeAlias = Callable[[str], ModuleType]


@pytest.mark.parametrize(("percent", "expected"), [(0.5, 1.0), (50, 100.0), (99, 198.0), (100, 200.0)])
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    harness: ModuleType, percent: float, expected: float
) -> None:
    assert harness.percentile([float(one) for one in range(200, 0, -1)], percent) == expected


def test_a_table_is_written_between_markers_of_its_own(harness: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    harness.write("one", "first", page)
    harness.write("two", "second", page)
    harness.write("one", "first, measured anew", page)
    text = page.read_text(encoding="utf-8")
    assert "<!-- one:begin -->\nfirst, measured anew\n<!-- one:end -->" in text
    assert "<!-- two:begin -->\nsecond\n<!-- two:end -->" in text
    assert text.count("first") == 1


def test_what_people_write_around_a_table_stays(harness: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- one:begin -->\nold\n<!-- one:end -->\nafter\n", encoding="utf-8")
    harness.write("one", "new", page)
    assert page.read_text(encoding="utf-8") == "before\n<!-- one:begin -->\nnew\n<!-- one:end -->\nafter\n"


def test_the_machine_is_named_with_its_cores_and_versions(harness: ModuleType) -> None:
    said = harness.machine()
    assert "cores" in said
    assert "Python" in said
    assert "langserve" in said


@pytest.mark.parametrize("name", NAMES)
def test_every_script_can_be_imported_and_measures_nothing_by_that(script: Script, name: str) -> None:
    assert script(name).__doc__


def test_the_text_of_tokens_is_found_in_every_servers_stream(script: Script) -> None:
    load = script("load")
    ours = b'id: 3\nevent: token\ndata: {"ts":1,"message_id":"m","text":" a \\"word"}\n\n'
    theirs = b'data: {"event":"on_chat_model_stream","data":{"chunk":{"content":" word","id":"x"}}}\r\n\r\n'
    empty = b'data: {"event":"on_chat_model_stream","data":{"chunk":{"content":"","id":"x"}}}\r\n\r\n'
    other = b'event: messages\r\ndata: [{"content":" word","type":"AIMessageChunk"},{"run_id":"r"}]\r\n\r\n'
    provider = b'data: {"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
    assert load.wording("/runs/stream").findall(other) == [b'" word"']
    assert load.wording("/v1/chat/completions").findall(provider) == [b'" word"']
    assert load.wording("/agents/a/runs") is load.MILLRACE
    assert load.wording("/agents/a/stream_events") is load.LANGSERVE
    assert load.MILLRACE.findall(ours * 2) == [b'" a \\"word"'] * 2
    assert load.LANGSERVE.findall(theirs + empty) == [b'" word"']


@pytest.mark.parametrize(
    ("cancels", "live", "said"), [(200, 500, "held by 1 of 1"), (20, 500, "not judged"), (200, 20, "not judged")]
)
def test_an_aim_is_judged_only_under_the_load_and_the_count_that_it_is_for(
    script: Script, cancels: int, live: int, said: str
) -> None:
    cancel = script("cancel")
    cells = {("mid-token", "FIN"): cancel.Cell(cancels, [1.0] * cancels)}
    load = cancel.Load(live, live, 10.0 * live, 0.5)
    assert said in cancel._verdict(cancel.Measured("Millrace", cells, cancel.Cell(1), load), "live")


def test_an_aim_is_not_held_by_a_cell_that_ran_out_of_time(script: Script) -> None:
    cancel = script("cancel")
    cells = {("mid-token", "FIN"): cancel.Cell(200, [1.0] * 30)}
    verdict = cancel._verdict(
        cancel.Measured("Millrace", cells, cancel.Cell(1), cancel.Load(500, 500, 5000.0, 0.5)), "live"
    )
    assert "held by 0 of 1" in verdict


@pytest.mark.parametrize(
    ("wanted", "due"),
    [
        ({"A": 200, "B": 1, "C": 0}, {"A": 7.0, "B": 1.0, "C": 0.0}),
        ({"A": 200, "B": 100}, {"A": 4.0, "B": 4.0}),
        ({"A": 3, "B": 3}, {"A": 3.0, "B": 3.0}),
        ({"A": 1, "B": 9, "C": 9}, {"A": 1.0, "B": 3.5, "C": 3.5}),
    ],
)
def test_nobody_is_due_more_than_it_wants_and_what_is_left_goes_to_the_others(
    script: Script, wanted: dict[str, int], due: dict[str, float]
) -> None:
    assert script("fairness").max_min(wanted, 8) == due


def test_what_a_user_got_is_told_of_the_time_only_in_which_users_contend(script: Script) -> None:
    fairness = script("fairness")
    asked = [("A", 0.0), ("A", 0.0), ("B", 1.0)]
    first = fairness.Call("A", 0.0, 2.0)
    fifo = [first, fairness.Call("A", 2.0, 4.0), fairness.Call("B", 4.0, 6.0)]
    assert fairness.shares(fairness.moments(asked, fifo), 1) == {"A": 3 / 1.5, "B": 0.0}
    fair = [first, fairness.Call("B", 2.0, 4.0), fairness.Call("A", 4.0, 6.0)]
    assert fairness.shares(fairness.moments(asked, fair), 1) == {"A": 1 / 1.5, "B": 2 / 1.5}


@pytest.mark.parametrize(("got", "index"), [([1, 1, 1, 1], 1.0), ([5, 0, 0, 0], 0.25), ([1, 1, 0, 0], 0.5)])
def test_jains_index_is_one_when_all_got_alike_and_one_nth_when_one_got_everything(
    script: Script, got: list[float], index: float
) -> None:
    assert script("fairness").jain(got) == index


def test_the_headlines_of_the_page_are_a_list_in_the_readme(harness: ModuleType, tmp_path: Path) -> None:
    page, readme = tmp_path / "performance.md", tmp_path / "README.md"
    readme.write_text("before\n<!-- headlines:begin -->\nold\n<!-- headlines:end -->\nafter\n", encoding="utf-8")
    harness.write("one", "## One\n\n**Four times less**\n\ntext with **bold** in it", page, readme)
    harness.write("two", "## Two\n\n**12 KiB a reader**", page, readme)
    assert readme.read_text(encoding="utf-8") == (
        "before\n<!-- headlines:begin -->\n- Four times less\n- 12 KiB a reader\n<!-- headlines:end -->\nafter\n"
    )


def test_the_readme_shows_the_headlines_of_the_page(harness: ModuleType) -> None:
    shown = harness.README.read_text(encoding="utf-8").split("<!-- headlines:begin -->")[1].split("<!-- headl")[0]
    assert shown.strip() == harness.headlines(harness.PAGE.read_text(encoding="utf-8"))


def test_a_chart_of_the_same_figures_has_the_same_bytes(harness: ModuleType, tmp_path: Path) -> None:
    written = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        line = harness.bars("chart", "A title", "µs", {"Millrace": 120.0, "a peer": 563.2}, tmp_path / folder / "p.md")
        assert line == "![A title](chart.svg)"
        written.append((tmp_path / folder / "chart.svg").read_bytes())
    assert written[0] == written[1]
    assert b"a peer" in written[0]
    assert b"<dc:date>" not in written[0]


@pytest.mark.parametrize(
    ("number", "said"), [(float("nan"), "–"), (4.1234, "4.12"), (98.76, "98.8"), (1234.5, "1,234"), (0.0123, "0.0123")]
)
def test_a_figure_has_three_digits_or_is_whole(harness: ModuleType, number: float, said: str) -> None:
    assert harness.told(number) == said


def test_the_versions_of_a_peer_are_those_of_its_lock(script: Script) -> None:
    assert script("peers").versions("langgraph-api", "langgraph-api").startswith("langgraph-api 0.")


def test_a_slope_is_that_of_the_nearest_straight_line(script: Script) -> None:
    soak = script("soak")
    samples = [soak.Sample(minute, 100 + 0.5 * minute + (-1) ** minute * 0.1, 200) for minute in range(100)]
    assert soak.slope(samples) == pytest.approx(0.5, abs=0.001)


def test_a_frame_belongs_to_the_room_or_library_that_its_file_is_in(script: Script) -> None:
    where = script("where")
    roots = {"/p/.venv/lib": "", "/usr/lib": "\0", "/p": ""}
    assert where.place("/p/.venv/lib/openai/_streaming.py", roots) == "openai/_streaming.py"
    assert where.room(where.place("/p/app/runs/run.py", roots)) == "app/runs"
    assert where.room(where.place("/p/chains/transport.py", roots)) == "the provider's wire"
    assert where.room(where.place("/p/chains/chat.py", roots)) == "chains, tools"
    assert where.room("openai_other/x.py") is None


def test_the_cost_in_each_tenth_of_the_time_is_told_of_the_tokens_in_it(script: Script) -> None:
    load = script("load")
    moments = [load.Moment(at, 1, at * 100, True, at * 100 * 20e-6 * (1 if at <= 10 else 2), 1.0) for at in range(11)]
    assert script("long_answers").tenths(moments) == pytest.approx([20.0] * 10)
