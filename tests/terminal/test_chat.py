"""``millrace chat`` as people and scripts use it: in a real terminal, and through a pipe, against a real server."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from proxy import proxying
from serving import Served, serving
from tmux import Pane, pane

from app.simulator import prose

Eventually = Callable[[Callable[[], bool]], None]

ROOT = Path(__file__).parents[2]

CHAT = [sys.executable, "-c", "import typer; from app.terminal import chat; typer.run(chat)"]
"""The command alone, without the server that ``app.cli`` brings along."""

DONE = "tokens/s ·"
"""A part of the line below each answer."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for most tests, whose e-mails go nowhere."""
    with serving(outbox_dir=tmp_path_factory.mktemp("outbox")) as one:
        yield one


@contextmanager
def chatting(url: str, folder: Path, agent: str = "chat", columns: int = 90, rows: int = 24) -> Iterator[Pane]:
    places = {"PYTHONPATH": str(ROOT), "MILLRACE_URL": url, "XDG_STATE_HOME": str(folder), "LANG": "C.UTF-8"}
    with pane(*CHAT, agent, columns=columns, rows=rows, **places) as one:
        one.shows(f"{agent}>")
        yield one


def piped(url: str, lines: str, *args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    environ: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(ROOT), "MILLRACE_URL": url, **env}
    return subprocess.run(
        [*CHAT, *args], input=lines.encode(), capture_output=True, env=environ, timeout=30, check=False
    )


def words(text: str) -> str:
    return " ".join(text.split())


def newest(served: Served) -> str:
    return next(reversed(served.runner._runs))


AGENTS = b"""{"agents": [{"name": "chat", "description": "", "model": null, "capabilities":
    {"text_input": true, "messages": true, "tools": [], "threads": false}}]}"""


@contextmanager
def answering(get: bytes = AGENTS, post: bytes = b"") -> Iterator[str]:
    """Some server: it answers each GET with this, and each POST with the beginning of a stream that never ends."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(get)))
            self.end_headers()
            self.wfile.write(get)

        def do_POST(self) -> None:
            if self.path.endswith("/runs"):
                self.send_response(200)
                self.send_header("X-Run-Id", "r")
                self.end_headers()
                self.wfile.write(post)
            over.wait(30)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            over.set()
            server.shutdown()
            thread.join()


# -- in a terminal ----------------------------------------------------------------------------------------------------


def test_an_answer_longer_than_the_screen_is_in_the_scrollback_once(served: Served, tmp_path: Path) -> None:
    with chatting(served.url, tmp_path, columns=60, rows=12) as one:
        one.type("[[tokens=1500&tokens_per_second=0]] go")
        text = one.shows(DONE)
        assert words(prose.exactly(1500)) in words(text)
        one.type("show me some Python code")
        text = one.shows(DONE, times=2)
        assert text.count("def mill(grain: list[str]) -> str:") == 1


def test_a_window_that_changes_its_size_loses_nothing_and_shows_nothing_twice(served: Served, tmp_path: Path) -> None:
    for columns, rows in ((50, 24), (120, 16)):
        with chatting(served.url, tmp_path) as one:
            one.type("[[tokens=160&paragraphs=2&tokens_per_second=150]] go")
            one.shows("while the")
            one.resize(columns, rows)
            assert words(prose.exactly(160, 2)) in words(one.shows("first token after"))


def test_a_conversation_goes_on_with_an_agent_that_has_threads_and_with_one_that_has_none(
    served: Served, tmp_path: Path
) -> None:
    with chatting(served.url, tmp_path) as one:
        one.shows("what was said is sent along")
        for done in (0, 2):
            one.type("my name is Ada")
            one.shows(DONE, times=done + 1)
            one.type("what is my name?")
            one.shows(DONE, times=done + 2)
            one.type("/agent assistant")
        assert one.text.count("Your name is Ada") == 2
        one.type("/new")
        one.type("what is my name?")
        assert one.shows(DONE, times=5).count("Your name is Ada") == 2


def test_each_tool_has_a_line_with_what_it_was_given_and_what_it_gave(served: Served, tmp_path: Path) -> None:
    with chatting(served.url, tmp_path, "assistant") as one:
        one.type("[[tokens_per_second=40]] What is 17*23, and what time is it in Tokyo?")
        one.shows("Calculating…", "Looking at the clock…")
        text = one.shows(DONE)
        assert re.search(r'✓ calculator\(expression="17\*23"\) .*391', text)
        assert "✓ clock(" in text
        assert "Calculating…" not in text


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(
    served: Served, tmp_path: Path, eventually: Eventually
) -> None:
    with chatting(served.url, tmp_path, "assistant") as one:
        one.type("[[stall_after=4]] my name is Ada")
        one.shows("Noted: your name")
        one.press("C-c")
        one.shows("Stopped. What was said stays.")
        assert served.run(newest(served)).reason == "requested"
        assert "Noted: your name" in one.text
        one.type("what is my name?")
        one.shows("Your name is Ada")


def test_ctrl_c_clears_a_line_and_leaves_from_an_empty_one(served: Served, tmp_path: Path) -> None:
    with chatting(served.url, tmp_path) as one:
        one.tmux("send-keys", "-l", "half a line")
        one.shows("half a line")
        one.press("C-c")
        one.shows("chat>", times=2)
        one.press("C-c")
        assert one.exit_code() == 0


def test_ctrl_c_twice_leaves_a_server_that_does_not_answer(tmp_path: Path) -> None:
    token = b'id: 1\nevent: token\ndata: {"text":"Well","message_id":"m"}\n\n'
    with answering(post=token) as url, chatting(url, tmp_path) as one:
        one.type("go")
        one.shows("Well")
        one.press("C-c")
        one.shows("Ctrl-C once more leaves")
        one.press("C-c")
        assert one.exit_code() == 130


def test_who_closes_the_terminal_cancels_the_answer(served: Served, tmp_path: Path, eventually: Eventually) -> None:
    with chatting(served.url, tmp_path) as one:
        one.type("[[stall_after=3]] go")
        one.shows("I am a")
    run = served.run(newest(served))
    eventually(lambda: run.finished)
    assert run.reason == "requested"


def test_a_connection_that_is_lost_comes_back_and_is_one_quiet_line(served: Served, tmp_path: Path) -> None:
    with proxying(served.url) as proxy, chatting(proxy.url, tmp_path) as one:
        proxy.cut_after(rb"id: 20\nevent: tok")
        one.type("[[tokens=60]] go")
        text = one.shows(DONE)
        assert proxy.cuts == 1
    assert words(prose.exactly(60)) in words(text)
    assert text.count("The connection was lost for") == 1


@pytest.mark.parametrize(
    ("keys", "said"), [(["a"], "was put into the outbox"), (["r", "not now"], "They say: not now")]
)
def test_what_waits_for_a_word_is_shown_and_goes_on_with_it(
    served: Served, tmp_path: Path, keys: list[str], said: str
) -> None:
    with chatting(served.url, tmp_path, "approval") as one:
        one.type("Email ada@example.com that the build is green")
        text = one.shows("approve, edit, reject?")
        assert "subject: The build is green" in text
        assert "✗" not in text
        for key in keys:
            one.type(key)
        one.shows(said, DONE)


def test_what_is_edited_begins_with_what_is_there_and_a_question_that_was_left_is_asked_again(
    served: Served, tmp_path: Path
) -> None:
    with chatting(served.url, tmp_path, "approval") as one:
        one.type("Email ada@example.com that the build is green")
        one.shows("approve, edit, reject?")
        one.press("C-c")
        one.shows("/resume asks again")
        one.type("hello")
        one.shows("It waits for your word")
        one.type("/resume")
        one.shows("approve, edit, reject?", times=2)
        one.type("e")
        one.shows("to> ada@example.com")
        one.press("Enter")
        one.shows("subject> The build is green")
        one.type(" indeed")
        one.shows("body> ")
        one.press("Enter")
        one.shows("The build is green indeed", "was put into the outbox")


def test_a_run_is_shown_again_and_followed(served: Served, tmp_path: Path) -> None:
    body = {"input": "[[stall_after=4]] go", "on_disconnect": "continue"}
    run = httpx.post(f"{served.url}/agents/chat/runs", json=body).json()["run_id"]
    with chatting(served.url, tmp_path) as one:
        one.type(f"/resume {run[:8]}")
        one.shows("I am a simula")
        one.press("C-c")
        one.shows("Stopped.")
        one.type("/resume zzz")
        one.shows("There is no run 'zzz'")


def test_after_a_gap_the_whole_answer_is_shown(tmp_path: Path) -> None:
    with serving(run_max_bytes=65_536) as small:
        body = {"input": "[[tokens=2000&tokens_per_second=0]] go"}
        run = httpx.post(f"{small.url}/agents/chat/runs", json=body).json()["run_id"]
        httpx.get(f"{small.url}/runs/{run}/result?wait=true", timeout=20)
        with chatting(small.url, tmp_path) as one:
            one.type("/resume")
            text = one.shows(DONE)
    assert "Some of it was missed" in text
    assert words(prose.exactly(2000)) in words(text)


def test_its_commands_tell_who_is_there_and_what_it_cost(served: Served, tmp_path: Path) -> None:
    with chatting(served.url, tmp_path, columns=120) as one:
        one.type("hello")
        one.shows(DONE)
        one.type("/agents")
        one.shows("*  chat ", "research")
        one.type("/usage")
        one.shows("day (UTC)", "saved")
        one.type("/nothing")
        one.shows("There is no /nothing; /help tells what there is.")
        one.press("Up")
        one.shows("chat> /nothing", times=2)
        one.press("C-u", "C-d")
        one.shows("/resume " + newest(served)[:8])
        assert one.exit_code() == 0
    history = tmp_path / "millrace" / "chat_history"
    assert history.read_text().splitlines() == ["hello", "/agents", "/usage", "/nothing"]
    assert history.stat().st_mode & 0o777 == 0o600


def test_what_a_model_says_does_not_drive_the_terminal(served: Served, tmp_path: Path) -> None:
    with chatting(served.url, tmp_path) as one:
        one.type("[[say=a%1b[2J%1b%5d0;b%07c%c2%9b1A%e2%80%aed%26%23x202e;!]] go")
        sign = "\N{REPLACEMENT CHARACTER}"
        text = one.shows(DONE)
        assert f"a{sign}[2J{sign}]0;b{sign}c{sign}1A{sign}d{sign}!" in text
        assert "[[say=" in text


# -- through a pipe ---------------------------------------------------------------------------------------------------


def test_through_a_pipe_each_line_is_a_question_and_the_answers_are_all_there_is(served: Served) -> None:
    said = piped(served.url, "[[say=**one**]] x\n\n[[say=two%1b%5b2J]] x\n", "chat")
    assert said.stdout == "**one**\ntwo\N{REPLACEMENT CHARACTER}[2J\n".encode()
    assert said.returncode == 0
    assert DONE.encode() in said.stderr
    assert b"\x1b" not in said.stderr


def test_an_answer_that_failed_is_told_in_words_and_by_the_exit_code(served: Served) -> None:
    said = piped(served.url, "[[error=400]] x\n[[say=two]] x\n", "chat")
    assert said.stdout == b"two\n"
    assert b"HTTP status 400" in said.stderr
    assert said.returncode == 1


def test_what_a_retry_waits_for_is_told(served: Served) -> None:
    said = piped(served.url, "[[error=503&fail_times=1]] x\n", "chat")
    assert b"The provider is asked again in" in said.stderr
    assert said.returncode == 0


def test_an_object_is_the_answer_of_who_makes_one(served: Served) -> None:
    said = piped(served.url, "Ada Lovelace met Charles Babbage in London.\n", "extract")
    assert said.stdout.startswith(b'{\n  "title":')


def test_what_waits_for_a_person_cannot_be_answered_by_a_pipe(served: Served) -> None:
    said = piped(served.url, "Email ada@example.com that the build is green\n", "approval")
    assert b"waits for a person" in said.stderr
    assert said.returncode == 1


def test_an_agent_that_is_not_there_is_told_with_those_that_are(served: Served) -> None:
    said = piped(served.url, "", "nobody")
    assert said.returncode == 1
    assert b"there is no agent 'nobody'" in said.stderr
    assert b"assistant" in said.stderr


def test_a_limit_is_told_with_when_to_come_back() -> None:
    with serving(max_streams_per_user=1) as one:
        httpx.post(f"{one.url}/agents/chat/runs", json={"input": "[[stall_after=3]] x"})
        said = piped(one.url, "hello\n", "chat")
    assert re.search(rb"Maximum concurrent streams.*\(try again in \d+ s\)", said.stderr.replace(b"\n", b" "))
    assert said.returncode == 1


def test_where_a_key_is_wanted_it_says_where_to_put_it_and_takes_it_from_there() -> None:
    with serving(api_keys="a-key-that-is-long-enough:ada") as one:
        said = piped(one.url, "hi\n", "chat")
        assert (said.returncode, b"MILLRACE_API_KEY" in said.stderr) == (1, True)
        assert piped(one.url, "hi\n", "chat", MILLRACE_API_KEY="a-key-that-is-long-enough").returncode == 0


def test_a_reader_of_the_pipe_that_leaves_ends_it_quietly(served: Served, eventually: Eventually) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "MILLRACE_URL": served.url}
    with subprocess.Popen(
        [*CHAT, "chat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"[[tokens=5000&tokens_per_second=300]] x\n")
        process.stdin.flush()
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(20) == 1
        assert b"Traceback" not in process.stderr.read()
    run = served.run(newest(served))
    eventually(lambda: run.finished)
    assert run.status == "cancelled"


def test_told_to_end_it_cancels_its_answer(served: Served, eventually: Eventually) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "MILLRACE_URL": served.url}
    with subprocess.Popen([*CHAT, "chat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"[[stall_after=3]] x\n")
        process.stdin.flush()
        process.stdout.read(4)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    run = served.run(newest(served))
    eventually(lambda: run.finished)
    assert run.reason == "requested"


def test_what_is_no_millrace_is_called_so_and_cannot_drive_the_terminal() -> None:
    with answering(b'{"agents": [{"name": "\\u001b[2Jx"}]}') as url:
        said = piped(url, "hi\n")
    assert (said.returncode, said.stdout) == (1, b"")
    assert b"is no Millrace server" in said.stderr
    assert b"\x1b" not in said.stderr
