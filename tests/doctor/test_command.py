"""``millrace doctor`` as a person and as a script use it."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.runnables import RunnableLambda
from nginx import free_ports, nginx, proxies
from serving import Served, serving
from typer import Typer
from typer.testing import CliRunner, Result

from app.doctor.command import doctor

SHIPPED = Path(__file__).parents[2] / "deploy" / "nginx.conf"

ALONE = Typer()
ALONE.command()(doctor)


def millrace(*args: str, **env: str) -> Result:
    return CliRunner().invoke(ALONE, args, env={"COLUMNS": "80", **env})


@pytest.fixture(scope="module")
def quick() -> Iterator[Served]:
    with serving({"plain": RunnableLambda(str.upper)}, heartbeat_s=0.3) as one:
        yield one


def test_behind_the_configuration_that_is_shipped_all_is_healthy_and_no_run_is_left(
    quick: Served, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    behind = quick.url.removeprefix("http://")
    text = SHIPPED.read_text("utf-8")
    for line, other in (("listen 80;", f"listen 127.0.0.1:{port};"), ("server 127.0.0.1:8000;", f"server {behind};")):
        assert text.count(line) == 1
        text = text.replace(line, other)
    with nginx(tmp_path, text, [port]):
        said = millrace(quick.url, "--via", f"http://127.0.0.1:{port}")
    assert (said.exit_code, said.stdout.splitlines()[-1], said.stderr) == (0, "healthy", "")
    assert all(len(line) <= 80 for line in said.stdout.splitlines())
    assert [line.split()[0] for line in said.stdout.splitlines()[1:3]] == ["server", "nginx"]
    assert quick.runner.live == 0
    assert {run.status for run in quick.runner._runs.values()} == {"completed", "cancelled"}


def test_a_fault_is_told_with_the_line_that_cures_it(quick: Served, tmp_path: Path) -> None:
    body = "proxy_set_header Host $http_host; gzip on; gzip_types text/event-stream;"
    with proxies(tmp_path, {"one": f"location / {{ proxy_pass {quick.url}; {body} }}"}) as urls:
        said = millrace(quick.url, "--via", urls["one"])
    assert said.exit_code == 1
    assert "    gzip off;\n" in said.stdout
    assert f"        proxy_pass {quick.url};\n" in said.stdout
    assert "healthy" not in said.stdout


def test_a_script_is_told_what_was_measured_and_what_was_found(quick: Served) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        down = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        said = millrace(quick.url, "--via", down, "--json")
    told = json.loads(said.stdout)
    assert (said.exit_code, told["healthy"], told["notes"]) == (1, False, [])
    assert [(one["url"], one["fault"]) for one in told["findings"]] == [(down, "unreachable")]
    near, far = told["layers"]
    assert (near["url"], near["events"], near["encoding"]) == (quick.url, 65, None)
    assert near["first_event_ms"] >= near["headers_ms"] > 0
    assert near["left_ms"] is not None
    assert near["heartbeats"] >= 2
    assert (far["name"].split()[:2], far["events"], far["headers_ms"]) == (["the", "proxy"], 0, None)


def test_an_agent_that_does_not_stream_is_not_judged_by_its_pace(quick: Served) -> None:
    said = millrace(quick.url, "--agent", "plain", "--input", "hello")
    assert said.exit_code == 0
    assert "the pace was not judged" in said.stdout
    assert "silence was not judged" in said.stdout


def test_an_agent_that_is_not_there_is_told(quick: Served) -> None:
    said = millrace(quick.url, "--agent", "nobody")
    assert said.exit_code == 1
    assert said.stderr.startswith("millrace: there is no agent 'nobody'")


def test_an_input_that_the_agent_does_not_take_is_told_in_the_servers_words(quick: Served) -> None:
    said = millrace(quick.url, "--agent", "chat", "--input", '{"messages": 7}')
    assert said.exit_code == 1
    assert said.stderr.startswith("millrace: ")
    assert "messages" in said.stderr


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://a", "http://", "/runs", "http://[", "http://u:p@a", "http://a?k=v", "http://a:99999"],
)
def test_what_is_no_address_is_wrong_usage(url: str) -> None:
    for args in ((url,), ("http://127.0.0.1:1", "--via", url)):
        said = millrace(*args)
        assert (said.exit_code, said.stdout) == (2, "")
        assert "Traceback" not in said.stderr


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        said = millrace(f"http://127.0.0.1:{nobody.getsockname()[1]}")
    assert said.exit_code == 1
    assert said.stdout.startswith("the server at :")
    assert "does not answer" in said.stdout
    assert "`millrace serve`" in said.stdout


def test_the_key_is_the_environments() -> None:
    with serving(api_keys="a-key-that-is-long-enough:ada", heartbeat_s=0.3) as keyed:
        without, wrong = millrace(keyed.url), millrace(keyed.url, MILLRACE_API_KEY="another-key-that-is-long")
        assert (without.exit_code, wrong.exit_code) == (1, 1)
        assert "MILLRACE_API_KEY" in without.stdout
        said = millrace(keyed.url, MILLRACE_API_KEY="a-key-that-is-long-enough")
        assert (said.exit_code, said.stdout.splitlines()[-1]) == (0, "healthy")


def test_a_run_that_fails_is_told(quick: Served) -> None:
    said = millrace(quick.url, "--agent", "chat", "--input", "[[status=400]] hello")
    assert said.exit_code == 0
    assert "the run failed" in said.stdout


def test_a_server_of_several_workers_is_asked_for_what_it_can_do() -> None:
    with serving(workers=2) as several:
        said = millrace(several.url)
    assert (said.exit_code, said.stdout.splitlines()[-1]) == (0, "healthy")
    assert "several workers" in said.stdout
