"""``millrace runs`` and ``millrace cancel``, as a person and as a script use them, against a real server."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from serving import Served, serving
from typer.testing import CliRunner, Result

from app.cli import cli

Eventually = Callable[[Callable[[], bool]], None]

STALLS = "[[stall_after=3]] go on"


@pytest.fixture
def own() -> Iterator[Served]:
    with serving() as one:
        yield one


def millrace(url: str, *args: str, columns: int = 160, **env: str) -> Result:
    return CliRunner().invoke(cli, args, env={"MILLRACE_URL": url, "COLUMNS": str(columns), **env})


def start(served: Served, text: str = STALLS) -> str:
    answer = httpx.post(f"{served.url}/agents/chat/runs", json={"input": text})
    return str(answer.json()["run_id"])


def finish(served: Served, text: str = "[[tokens=4]] hello") -> str:
    run_id = start(served, text)
    httpx.get(f"{served.url}/runs/{run_id}/result", params={"wait": "true"}, timeout=20)
    return run_id


def lines_with(said: Result, text: str) -> list[str]:
    return [line for line in said.stdout.splitlines() if text in line]


def test_what_runs_is_shown_first_with_its_tokens_and_how_long_it_has_been_going(
    own: Served, eventually: Eventually
) -> None:
    live = start(own)
    over = finish(own)
    eventually(lambda: own.run(live).row()["last_event_id"] >= 5)
    said = millrace(own.url, "runs")
    assert said.exit_code == 0
    header, first, second = said.stdout.splitlines()
    assert header.split()[:5] == ["run", "agent", "status", "started", "for"]
    assert first.split()[:3] == [live, "chat", "running"]
    assert second.split()[:3] == [over, "chat", "completed"]
    assert second.split()[-4:-1] == [str(own.run(over).usage.input_tokens), "+", "4"]
    assert " s " in first


def test_in_a_narrow_terminal_ids_are_as_short_as_they_can_be(own: Served) -> None:
    runs = [finish(own) for _ in range(3)]
    said = millrace(own.url, "runs", columns=80)
    assert all(len(line) <= 80 for line in said.stdout.splitlines())
    shown = [line.split()[0] for line in said.stdout.splitlines()[1:]]
    assert [run_id.startswith(short) for run_id, short in zip(reversed(runs), shown, strict=True)] == [True] * 3


def test_of_those_that_are_over_the_last_ten_are_shown_unless_all_are_wanted(own: Served) -> None:
    runs = [finish(own, "[[tokens=1]] hi") for _ in range(12)]
    some, every = millrace(own.url, "runs"), millrace(own.url, "runs", "--all")
    assert len(lines_with(some, "completed")) == 10
    assert lines_with(some, "2 more")
    assert not lines_with(some, runs[0])
    assert len(lines_with(every, "completed")) == 12


def test_a_script_gets_the_rows_as_the_route_has_them(own: Served) -> None:
    run_id = finish(own)
    said = millrace(own.url, "runs", "--json")
    assert json.loads(said.stdout) == [httpx.get(f"{own.url}/runs/{run_id}").json()]


def test_where_nothing_runs_it_says_so(own: Served) -> None:
    said = millrace(own.url, "runs")
    assert (said.exit_code, said.stdout) == (0, "No runs.\n")
    assert json.loads(millrace(own.url, "runs", "--json").stdout) == []


@pytest.mark.parametrize("letters", [36, 8, 12])
def test_a_run_is_cancelled_by_its_id_or_its_beginning(own: Served, letters: int) -> None:
    run_id = start(own)
    said = millrace(own.url, "cancel", run_id[:letters])
    assert said.exit_code == 0
    assert said.stdout.startswith(f"run {run_id}: cancelled, after ")
    assert own.run(run_id).status == "cancelled"
    row = json.loads(millrace(own.url, "cancel", run_id, "--json").stdout)
    assert (row["run_id"], row["status"]) == (run_id, "cancelled")


def test_cancelling_what_is_over_changes_nothing_and_is_no_failure(own: Served) -> None:
    run_id = finish(own)
    said = millrace(own.url, "cancel", run_id[:8])
    assert (said.exit_code, said.stdout) == (0, f"run {run_id} was over already: completed\n")


@pytest.mark.parametrize(
    "wanted", ["", "zzz", "00000000-0000-0000-0000-000000000000", "../../../../../../../../../health/ready", "%2e"]
)
def test_a_run_that_is_not_there_is_told(own: Served, wanted: str) -> None:
    run_id = start(own)
    said = millrace(own.url, "cancel", wanted)
    assert said.exit_code == 1
    assert said.stderr.startswith("millrace: there is no ")
    assert own.run(run_id).scope.ending is None


def test_a_beginning_that_fits_several_runs_cancels_none(own: Served) -> None:
    runs: dict[str, str] = {}
    while (run_id := start(own))[0] not in runs:  # 17 at the most
        runs[run_id[0]] = run_id
    said = millrace(own.url, "cancel", run_id[0])
    assert said.exit_code == 1
    assert said.stderr.startswith(f"millrace: 2 runs begin with '{run_id[0]}': ")
    assert run_id in said.stderr
    assert all(own.run(one).scope.ending is None for one in (run_id, *runs.values()))


@pytest.mark.parametrize("command", [["runs"], ["cancel", "abc"]])
def test_a_server_that_is_not_there_is_told(command: list[str]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        said = millrace(url, *command)
    assert said.exit_code == 1
    assert said.stderr.startswith(f"millrace: no server answers at {url}")
    assert "millrace serve" in said.stderr


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://127.0.0.1", "http://", "http://[", "/runs"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    said = millrace("http://unused", "runs", "--url", url)
    assert said.exit_code == 1
    assert said.stderr.startswith("millrace: ")
    assert "Traceback" not in said.stderr


@contextmanager
def another_server(status: int, body: bytes) -> Iterator[tuple[str, list[Message]]]:
    """Some HTTP server that says one thing, and the headers it was asked with."""
    asked: list[Message] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"runs": 7}'),
        (200, b'{"runs": [{}]}'),
        (302, b""),
        (404, b"{}"),
        (404, b'"no"'),
        (500, b""),
    ],
)
@pytest.mark.parametrize("command", [["runs"], ["cancel", "abc"]])
def test_what_is_no_millrace_is_called_so(status: int, body: bytes, command: list[str]) -> None:
    with another_server(status, body) as (url, _):
        said = millrace(url, *command)
    assert said.exit_code == 1
    assert said.stderr.startswith(f"millrace: what answers at {url}/ is no Millrace server (status {status})")


def test_the_key_is_read_from_the_environment_and_a_refusal_is_told_in_the_servers_words() -> None:
    refusal = b'{"error": {"code": "unauthorized", "message": "a key is wanted"}}'
    with another_server(401, refusal) as (url, asked):
        said = millrace(url, "runs", MILLRACE_API_KEY="k1")
    assert (said.exit_code, said.stderr) == (1, "millrace: a key is wanted\n")
    assert asked[0]["Authorization"] == "Bearer k1"


@pytest.mark.parametrize("key", ["hidden secret", "hidden\nsecret", "schlüssel-secret", "\x1bsecret"])
def test_what_cannot_be_a_key_is_not_sent_and_not_shown(key: str) -> None:
    for command in (["runs"], ["cancel", "abc"]):
        said = millrace("http://127.0.0.1:1", *command, MILLRACE_API_KEY=key)
        assert (said.exit_code, said.stdout) == (1, "")
        assert said.stderr.startswith("millrace: MILLRACE_API_KEY is no key")
        assert "secret" not in said.stderr


def test_a_server_with_keys_shows_the_keys_users_runs() -> None:
    with serving(api_keys="a-key-that-is-long-enough:ada") as served:
        headers = {"x-api-key": "a-key-that-is-long-enough"}
        run = httpx.post(f"{served.url}/agents/chat/runs", json={"input": STALLS}, headers=headers).json()["run_id"]
        said = millrace(served.url, "runs")
        assert (said.exit_code, said.stderr.startswith("millrace: this server needs a key")) == (1, True)
        assert "MILLRACE_API_KEY" in said.stderr
        assert run in millrace(served.url, "runs", MILLRACE_API_KEY=" a-key-that-is-long-enough\n").stdout
        assert millrace(served.url, "cancel", run, MILLRACE_API_KEY="a-key-that-is-long-enough").exit_code == 0
    assert "MILLRACE_API_KEY" in millrace("http://unused", "runs", "--help").stdout


def test_letters_that_would_drive_the_terminal_are_shown_as_none() -> None:
    row = {
        "run_id": "r1", "agent": "[red]a[/red]", "status": "running", "started_at": 0.0, "finished_at": None,
        "usage": {"input_tokens": 0, "output_tokens": 0}, "thread_id": "\x1b[2J[bold]t",
    }  # fmt: skip
    with another_server(200, json.dumps({"runs": [row]}).encode()) as (url, _):
        said = millrace(url, "runs")
    assert "[red]a[/red]" in said.stdout
    assert "�[2J[bold]t" in said.stdout
    assert "\x1b" not in said.stdout
