"""The server's life: in a thread, and as a process of its own."""

import gc
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from app.simulator.server import Simulator

ROOT = Path(__file__).resolve().parents[2]


def refused(base_url: str) -> bool:
    try:
        httpx.get(f"{base_url}/models")
    except httpx.ConnectError:
        return True
    return False


def test_its_address_is_known_before_it_starts_and_refuses_until_then() -> None:
    simulator = Simulator()
    base_url = simulator.base_url
    assert refused(base_url)
    with simulator:
        assert simulator.base_url == base_url
        assert httpx.get(f"{base_url}/models").status_code == 200
    assert refused(base_url)


def test_it_comes_back_at_the_same_address() -> None:
    simulator = Simulator()
    for _ in range(3):
        with simulator:
            assert httpx.get(f"{simulator.base_url}/models").status_code == 200


def test_one_that_is_never_started_leaves_nothing_behind() -> None:
    before = threading.active_count()
    Simulator()
    gc.collect()  # an open socket would be a ResourceWarning here
    assert threading.active_count() == before


def test_a_taken_port_is_an_error_at_once() -> None:
    with Simulator() as first, pytest.raises(OSError, match="in use"):
        Simulator(port=int(first.base_url.split(":")[2].removesuffix("/v1")))


def test_it_cannot_be_started_twice_and_may_be_stopped_twice() -> None:
    simulator = Simulator().start()
    with pytest.raises(RuntimeError, match="already running"):
        simulator.start()
    simulator.stop()
    simulator.stop()


def test_it_listens_on_ipv6_too() -> None:
    try:
        simulator = Simulator("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with simulator:
        assert httpx.get(f"{simulator.base_url}/models").status_code == 200


def test_a_stop_aborts_open_streams_and_is_prompt() -> None:
    simulator = Simulator().start()
    before = threading.active_count()
    body = {"model": "m?stall_after=2", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with httpx.stream("POST", f"{simulator.base_url}/chat/completions", json=body) as response:
        assert simulator.wait_for(lambda: simulator.requests[0].tokens_sent == 2)
        started = time.monotonic()
        simulator.stop()
        assert time.monotonic() - started < 1
        with pytest.raises(httpx.TransportError):
            response.read()
    assert threading.active_count() == before - 1
    assert simulator.connections[0].ended == "server_closed"
    assert not simulator.requests[0].finished


def test_it_logs_when_a_connection_opens_and_how_it_closes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millrace.simulator")
    with Simulator(tokens_per_second=0) as simulator:
        body = {"model": "m?tokens=7", "messages": [{"role": "user", "content": "x"}]}
        httpx.post(f"{simulator.base_url}/chat/completions", json=body)
        assert simulator.wait_closed(1)
    opened, closed = [record.getMessage() for record in caplog.records if record.name == "millrace.simulator"]
    assert re.fullmatch(r"connection=1 event=open peer=127\.0\.0\.1:\d+ monotonic=[\d.]+ wall=[\d.]+", opened)
    assert re.fullmatch(
        r"connection=1 event=close how=client_closed monotonic=[\d.]+ wall=[\d.]+ open_s=[\d.]+"
        r" requests=1 tokens_sent=7",
        closed,
    )


def test_waiting_ends_when_the_time_is_up() -> None:
    with Simulator() as simulator:
        assert not simulator.wait_for(lambda: False, timeout=0.01)
        assert not simulator.wait_closed(1, timeout=0.01)


def test_other_loggers_of_the_process_are_left_as_they_are() -> None:
    access = logging.getLogger("uvicorn.access")
    handler = logging.NullHandler()
    access.addHandler(handler)
    before = (list(access.handlers), access.propagate)
    try:
        with Simulator() as simulator:
            httpx.get(f"{simulator.base_url}/models")
        assert (access.handlers, access.propagate) == before
    finally:
        access.removeHandler(handler)


def test_as_a_process_it_prints_its_address_logs_to_a_file_and_ends_when_told(tmp_path: Path) -> None:
    log = tmp_path / "connections.log"
    command = [sys.executable, "-m", "app.simulator", "--tokens-per-second", "0", "--log", str(log)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        try:
            assert httpx.get(f"{base_url}/models").json()["data"][0]["id"] == "simulated"
            connections = httpx.get(base_url.removesuffix("/v1") + "/simulator/connections").json()
            assert connections[0]["requests"] == 1
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert "event=open" in log.read_text()
    assert "event=close" in log.read_text()


def test_as_a_process_it_says_when_the_port_is_taken() -> None:
    with Simulator() as first:
        port = first.base_url.split(":")[2].removesuffix("/v1")
        command = [sys.executable, "-m", "app.simulator", "--port", port]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "Choose another --host or --port" in done.stderr
    assert "Traceback" not in done.stderr
