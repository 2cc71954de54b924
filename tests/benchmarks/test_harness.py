"""The arithmetic and the page of the benchmarks. What they measure is not asserted: it is the machine's."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = sorted(one.stem for one in BENCHMARKS.glob("*.py"))

Script: TypeAlias = Callable[[str], ModuleType]


@pytest.fixture
def script() -> Iterator[Script]:
    """Imports one as Python runs it: the scripts find one another by the folder they are in, and by nothing else."""
    others = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in NAMES:
            sys.modules.pop(name, None)
        sys.modules.update(others)


@pytest.fixture
def harness(script: Script) -> ModuleType:
    return script("harness")


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


def test_the_text_of_tokens_is_found_in_both_servers_streams(script: Script) -> None:
    load = script("load")
    ours = b'id: 3\nevent: token\ndata: {"ts":1,"message_id":"m","text":" a \\"word"}\n\n'
    theirs = b'data: {"event":"on_chat_model_stream","data":{"chunk":{"content":" word","id":"x"}}}\r\n\r\n'
    empty = b'data: {"event":"on_chat_model_stream","data":{"chunk":{"content":"","id":"x"}}}\r\n\r\n'
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
