"""A letter that waits for a person: asked for by one client, allowed by another, over restarts, and written once."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from serving import serving

from app.simulator.server import Simulator

ROOT = Path(__file__).resolve().parents[2]

QUESTION = "Email ada@example.com that the build is green"

AGENT = """
    import functools
    import os
    import signal
    from pathlib import Path

    from chains.approval import build_approval
    from chains.models import build_model
    from tools.clock import build_clock
    from tools.send_email import build_send_email

    FOLDER = Path(__file__).parent


    def dies_after_it(send_email):
        '''The same tool, whose server is killed as soon as its deed is done, once.'''

        written = send_email.func

        @functools.wraps(written)
        def send(**arguments):
            said = written(**arguments)
            if (FOLDER / "kill").exists():
                (FOLDER / "kill").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return said

        send_email.func = send
        return send_email


    def mailer():
        model = build_model("openai:simulated", base_url=os.environ["OPENAI_BASE_URL"])
        return build_approval(model, [dies_after_it(build_send_email(FOLDER / "outbox")), build_clock()])
"""


@contextmanager
def process(folder: Path, provider: Simulator) -> Iterator["Server"]:
    """A server started as a user would, with an agent of the folder's own; threads and letters are kept there, too."""
    (folder / "mailer.py").write_text(textwrap.dedent(AGENT))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "OPENAI_"))},
        "OPENAI_BASE_URL": provider.base_url,
        "OPENAI_API_KEY": "none",
        "MILLRACE_MODEL": "openai:simulated",
        "MILLRACE_STRICT": "true",
        "MILLRACE_MAX_STREAMS_PER_USER": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "app.cli", "serve", "mailer=mailer:mailer", "--port", str(port)]
    with (folder / "log").open("a") as log:
        popen = subprocess.Popen(command, cwd=folder, env=environment, stderr=log, stdout=log)
    try:
        yield Server(popen, f"http://127.0.0.1:{port}", folder)
    finally:
        popen.kill()
        popen.wait()


class Server:
    """A process and its Maildir."""

    def __init__(self, popen: "subprocess.Popen[bytes]", url: str, folder: Path) -> None:
        self.popen = popen
        self.url = url
        self.folder = folder

    async def stop(self, way: signal.Signals) -> None:
        self.popen.send_signal(way)
        await asyncio.to_thread(self.popen.wait, 30)


def letters(folder: Path) -> list[str]:
    """What the outbox holds, read as a mail program reads it."""
    return [one.read_text("utf-8") for part in ("new", "cur") for one in sorted((folder / "outbox" / part).glob("*"))]


class Client:
    """Somebody who speaks to the server: each has connections of its own."""

    def __init__(self, url: str, thread_id: str = "t", agent: str = "approval") -> None:
        self.thread_id = thread_id
        self.agent = agent
        self.http = httpx.AsyncClient(base_url=url, timeout=30)

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.http.get("/health/ready")
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                else:
                    return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def post(self, **request: Any) -> httpx.Response:
        return await self.http.post(f"/agents/{self.agent}/runs", json={"thread_id": self.thread_id, **request})

    async def turn(self, **request: Any) -> dict[str, Any]:
        """A run to its end: what ``/result`` says."""
        started = await self.post(**request)
        assert started.status_code == 202, started.text
        found = await self.http.get(f"/runs/{started.json()['run_id']}/result", params={"wait": True})
        answer: dict[str, Any] = found.json()
        return answer

    async def thread(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"/threads/{self.thread_id}")).json()
        return found

    async def asked(self) -> dict[str, Any]:
        """What the thread waits for."""
        ((interrupt),) = (await self.thread())["interrupts"]
        value: dict[str, Any] = interrupt["value"]
        return value

    async def events(self, run_id: str) -> list[tuple[str, dict[str, Any]]]:
        text = (await self.http.get(f"/runs/{run_id}/events")).text
        pairs = [block.split("\n") for block in text.split("\n\n") if "event: " in block]
        return [
            (
                next(line[7:] for line in lines if line.startswith("event: ")),
                json.loads(next(line[6:] for line in lines if line.startswith("data: "))),
            )
            for lines in pairs
        ]


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=0) as one:
        yield one


@pytest.fixture(scope="module")
def standing(provider: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server that nobody stops, and the folder of its outbox."""
    folder = tmp_path_factory.mktemp("standing")
    with serving(openai_base_url=provider.base_url, outbox_dir=folder / "outbox") as served:
        yield served.url, folder


@pytest.fixture
def folder(standing: tuple[str, Path]) -> Path:
    """That folder, with an outbox that a mail program has emptied."""
    for letter in (standing[1] / "outbox").glob("*/*"):
        letter.unlink()
    return standing[1]


@pytest.fixture
async def client(standing: tuple[str, Path], request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """A client of that server, with a conversation of this test's own."""
    async with Client(standing[0], f"t-{abs(hash(request.node.nodeid))}") as one:
        yield one


# -- answers ----------------------------------------------------------------------------------------------------------


async def test_nothing_is_written_before_a_person_has_said_so(client: Client, folder: Path) -> None:
    first = await client.turn(input=QUESTION)
    assert first["status"] == "interrupted"
    (request,) = (await client.asked())["action_requests"]
    assert request["args"] == {"to": "ada@example.com", "subject": "The build is green", "body": "The build is green."}
    assert letters(folder) == []
    second = await client.turn(resume="approve")
    assert (second["status"], len(letters(folder))) == ("completed", 1)
    assert "was put into the outbox" in second["text"]


async def test_the_readers_of_both_runs_see_the_call_asked_for_and_then_made(client: Client) -> None:
    first = await client.events((await client.turn(input=QUESTION))["run_id"])
    assert {"tool.pending", "tool.started"} & {name for name, _ in first} == {"tool.pending"}
    ((_, interrupted),) = [one for one in first if one[0] == "run.interrupted"]
    (call_id,) = {data["call_id"] for name, data in first if name == "tool.pending"}
    assert interrupted["interrupts"][0]["value"]["action_requests"][0]["call_id"] == call_id
    second = await client.events((await client.turn(resume="approve"))["run_id"])
    made = [(name, data["call_id"]) for name, data in second if name in ("tool.started", "tool.finished")]
    assert made == [("tool.started", call_id), ("tool.finished", call_id)]


async def test_an_edited_letter_is_the_one_that_is_written(client: Client, folder: Path) -> None:
    await client.turn(input=QUESTION)
    args = {"to": "bob@example.com", "subject": "Careful", "body": "It is red."}
    edit = {"type": "edit", "edited_action": {"name": "send_email", "args": args}}
    answer = await client.turn(resume={"decisions": [edit]})
    (letter,) = letters(folder)
    assert "To: bob@example.com" in letter
    assert "It is red." in letter
    assert "bob@example.com" in answer["text"]
    messages = (await client.thread())["messages"]
    (call,) = next(one for one in messages if one.get("tool_calls"))["tool_calls"]
    assert call["args"] == args


async def test_a_rejected_letter_is_not_written_and_the_model_answers(client: Client, folder: Path) -> None:
    await client.turn(input=QUESTION)
    answer = await client.turn(resume={"type": "reject", "message": "It is not green yet."})
    assert (answer["status"], letters(folder)) == ("completed", [])
    assert "It is not green yet." in answer["text"]
    assert (await client.turn(input="[[say=Well]] and now?"))["text"] == "Well"


async def test_an_answer_that_cannot_be_followed_interrupts_again(client: Client, folder: Path) -> None:
    await client.turn(input=QUESTION)
    asked = await client.asked()
    args = asked["action_requests"][0]["args"]
    wrong: list[Any] = [
        "perhaps",
        {"decisions": []},
        {"type": "edit", "args": {"to": "ada@example.com"}},
        {"type": "edit", "args": {**args, "bcc": "eve@example.com"}},
    ]
    for one in wrong:
        assert (await client.turn(resume=one))["status"] == "interrupted"
        again = await client.asked()
        assert again.pop("problem")
        assert (again, letters(folder)) == (asked, [])
    assert (await client.turn(resume="approve"))["status"] == "completed"
    assert len(letters(folder)) == 1


async def test_the_answer_may_name_its_interrupt(client: Client, folder: Path) -> None:
    await client.turn(input=QUESTION)
    (interrupt,) = (await client.thread())["interrupts"]
    assert (await client.turn(resume={interrupt["id"]: {"type": "approve"}}))["status"] == "completed"
    assert len(letters(folder)) == 1


async def test_an_edit_with_an_argument_that_the_tool_does_not_have_is_told_so(client: Client, folder: Path) -> None:
    await client.turn(input=QUESTION)
    args = {**(await client.asked())["action_requests"][0]["args"], "bcc": "eve@example.com"}
    edit = {"type": "edit", "edited_action": {"name": "send_email", "args": args}}
    assert (await client.turn(resume={"decisions": [edit]}))["status"] == "interrupted"
    assert "no argument bcc" in (await client.asked())["problem"]
    assert letters(folder) == []


@pytest.mark.parametrize("resume", [{}, {"0" * 32: "approve"}])
async def test_an_answer_to_no_interrupt_of_the_thread_is_refused_and_the_thread_waits_on(
    client: Client, folder: Path, resume: dict[str, Any]
) -> None:
    await client.turn(input=QUESTION)
    (interrupt,) = (await client.thread())["interrupts"]
    for one in (resume, {**resume, "0" * 32: "approve", interrupt["id"]: "approve"}):
        refused = await client.post(resume=one)
        assert refused.status_code == 422
        ((problem),) = refused.json()["error"]["detail"]
        assert problem["field"] == "resume"
        assert interrupt["id"] in problem["message"]
    assert (await client.thread())["status"] == "interrupted"
    assert letters(folder) == []
    assert (await client.turn(resume={interrupt["id"]: "approve"}))["status"] == "completed"
    assert len(letters(folder)) == 1


async def test_the_result_of_a_run_that_waits_has_no_state_for_an_object(client: Client) -> None:
    """The state ends in the result of a call that was refused, so that there is no last answer to tell either."""
    asked = f"[[bad_json=cut_string&bad_call=1]] {QUESTION} and email bob@example.com that it is red"
    first = await client.turn(input=asked)
    assert (await client.thread())["messages"][-1]["type"] == "tool"
    assert (first["status"], first["object"], first["message"]) == ("interrupted", None, None)


async def test_several_letters_are_decided_each_on_its_own(client: Client, folder: Path) -> None:
    await client.turn(input=f"{QUESTION} and email bob@example.com that it is red. What time is it in Oslo?")
    assert len((await client.asked())["action_requests"]) == 2
    answer = await client.turn(resume={"decisions": ["reject", "approve"]})
    (letter,) = letters(folder)
    assert "To: bob@example.com" in letter
    assert "Oslo" in answer["text"]


async def test_the_same_question_is_asked_about_anew(client: Client, folder: Path) -> None:
    for count in (1, 2):
        assert (await client.turn(input=QUESTION))["status"] == "interrupted"
        await client.turn(resume="approve")
        assert len(letters(folder)) == count


async def test_who_asks_without_a_thread_is_given_one_and_can_answer_there(client: Client, folder: Path) -> None:
    first = await client.turn(input=QUESTION, thread_id=None)
    assert (first["status"], letters(folder)) == ("interrupted", [])
    events = await client.events(first["run_id"])
    row = (await client.http.get(f"/runs/{first['run_id']}")).json()
    assert events[0][0] == "run.started"
    client.thread_id = events[0][1]["thread_id"]
    assert client.thread_id
    assert client.thread_id == row["thread_id"]
    assert (await client.turn(resume="approve"))["status"] == "completed"
    assert len(letters(folder)) == 1


async def test_who_asks_by_langserve_without_a_thread_finds_it_by_the_run(client: Client, folder: Path) -> None:
    sent = {"input": {"messages": [{"role": "user", "content": QUESTION}]}}
    served = await client.http.post("/agents/approval/invoke", json=sent)
    assert (served.status_code, letters(folder)) == (200, [])
    client.thread_id = (await client.http.get(f"/runs/{served.headers['x-run-id']}")).json()["thread_id"]
    assert (await client.asked())["action_requests"][0]["name"] == "send_email"
    assert (await client.turn(resume="approve"))["status"] == "completed"
    assert len(letters(folder)) == 1


async def test_an_agent_that_asks_nobody_has_a_thread_only_where_it_is_given_one(client: Client) -> None:
    client.agent = "assistant"
    first = await client.turn(input="[[say=Yes]] hi", thread_id=None)
    assert (await client.http.get(f"/runs/{first['run_id']}")).json()["thread_id"] is None


# -- once -------------------------------------------------------------------------------------------------------------


async def test_who_approves_a_second_time_is_refused(client: Client, folder: Path) -> None:
    await client.turn(input=QUESTION)
    await client.turn(resume="approve")
    again = await client.post(resume="approve")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "thread_not_interrupted")
    assert len(letters(folder)) == 1


@pytest.mark.parametrize("strategy", ["reject", "enqueue"])
async def test_of_clients_that_approve_at_once_one_is_heard(client: Client, folder: Path, strategy: str) -> None:
    await client.turn(input=QUESTION)
    answers = await asyncio.gather(
        *(client.post(resume="approve", multitask_strategy=strategy) for _ in range(8)),
    )
    started = [one.json()["run_id"] for one in answers if one.status_code == 202]
    results = [(await client.http.get(f"/runs/{one}/result", params={"wait": True})).json() for one in started]
    assert sum(one["status"] == "completed" for one in results) == 1
    assert {one.status_code for one in answers} <= {202, 409}
    assert len(letters(folder)) == 1


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
async def test_a_letter_is_approved_after_a_restart_by_another_client(
    tmp_path: Path, provider: Simulator, way: signal.Signals
) -> None:
    with process(tmp_path, provider) as server:
        async with Client(server.url) as one:
            assert (await one.turn(input=QUESTION))["status"] == "interrupted"
        await server.stop(way)
    assert letters(tmp_path) == []
    with process(tmp_path, provider) as server:
        async with Client(server.url) as other:
            assert (await other.asked())["action_requests"][0]["name"] == "send_email"
            assert (await other.turn(resume="approve"))["status"] == "completed"
            assert (await other.post(resume="approve")).status_code == 409
    assert len(letters(tmp_path)) == 1


async def test_a_server_that_is_killed_right_after_the_deed_does_not_do_it_again(
    tmp_path: Path, provider: Simulator
) -> None:
    with process(tmp_path, provider) as server:
        async with Client(server.url, agent="mailer") as one:
            await one.turn(input=QUESTION)
            (tmp_path / "kill").touch()
            await one.post(resume="approve")
            await asyncio.to_thread(server.popen.wait, 30)
    assert len(letters(tmp_path)) == 1
    with process(tmp_path, provider) as server:
        async with Client(server.url, agent="mailer") as other:
            if (await other.thread())["interrupts"]:  # killed before it had noted the answer
                assert (await other.turn(resume="approve"))["status"] == "completed"
            assert (await other.turn(input="[[say=Here]] where were we?"))["text"] == "Here"
            assert (await other.post(resume="approve")).status_code == 409
    assert len(letters(tmp_path)) == 1
