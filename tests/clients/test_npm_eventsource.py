"""The npm package ``eventsource`` in Node, which comes back by itself and stops at the 204."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import missing, program
from story import Eventually, Seen, Story, telling

HERE = Path(__file__).parent
LOCK = HERE / "package-lock.json"
INSTALLED = HERE / "node_modules" / ".package-lock.json"
OLDEST = 18


@pytest.fixture(scope="module")
def node() -> str:
    """Node with the pinned package beside these tests; it is fetched when the lock is newer than what is there."""
    path, npm = program("node", package="nodejs"), program("npm", package="npm")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST:
        missing(f"Node {version} on this machine: install {OLDEST} or newer (the Debian package 'nodejs')")
    if not INSTALLED.exists() or INSTALLED.stat().st_mtime < LOCK.stat().st_mtime:
        got = subprocess.run([npm, "ci", "--ignore-scripts"], cwd=HERE, capture_output=True, text=True, check=False)
        if got.returncode:
            missing(f"npm could not fetch the package 'eventsource': {got.stderr[-500:]}")
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
    node: str, story: Story, eventually: Eventually
) -> None:
    with subprocess.Popen([node, HERE / "eventsource.mjs", story.url], stdout=subprocess.PIPE, text=True) as reader:
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
