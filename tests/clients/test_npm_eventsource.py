"""The npm package ``eventsource`` in Node, which comes back by itself and stops at the 204."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from node import LOCK, node, packages
from story import Eventually, Seen, Story, telling

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs() -> str:
    """Node, with the pinned package beside these tests."""
    path = node()
    packages()
    return path


@pytest.fixture
def story() -> Iterator[Story]:
    with telling() as one:
        yield one


def test_the_lock_names_no_registry() -> None:
    packages = json.loads(LOCK.read_text("utf-8"))["packages"]
    assert len(packages) > 1
    assert not [name for name, package in packages.items() if "resolved" in package]


def test_a_reader_whose_line_breaks_five_times_has_every_event_once_and_stops_by_itself(
    runs: str, story: Story, eventually: Eventually
) -> None:
    with subprocess.Popen([runs, HERE / "eventsource.mjs", story.url], stdout=subprocess.PIPE, text=True) as reader:
        try:
            story.tell(eventually)
            printed, _ = reader.communicate(timeout=30)
        finally:
            reader.kill()
    *events, last = [json.loads(line) for line in printed.splitlines()]
    story.check([Seen(*event) for event in events])
    assert last == {"stopped": 204}
    assert reader.returncode == 0  # nothing keeps it waiting
    assert story.requests == 7  # one, five after the breaks, and the one that is told to stop
