"""The notebooks' own server is up when it is there, gone when it is stopped, and says when it does not come up."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.simulator.server import Simulator

SERVER = Path(__file__).parents[2] / "notebooks" / "server.py"


@pytest.fixture(scope="module")
def module() -> Any:
    """The module beside the notebooks, which is in no package."""
    spec = importlib.util.spec_from_file_location("server", SERVER)
    assert spec is not None
    assert spec.loader is not None
    found = sys.modules["server"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_a_server_answers_by_the_provider_it_was_given_until_it_is_stopped(module: Any) -> None:
    with Simulator(tokens_per_second=0) as simulator:
        server = module.Server(simulator, max_streams_per_user=1)
        begun = httpx.post(f"{server.url}/agents/chat/runs", json={"input": "Count to 3."})
        assert '"streams";q=1' in begun.headers["RateLimit-Policy"]
        result = httpx.get(f"{server.url}/runs/{begun.json()['run_id']}/result", params={"wait": True}).json()
        assert result["text"] == "1, 2, 3."
        assert len(simulator.requests) == 1
        server.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


# uvicorn ends by SystemExit then, which a thread takes for its end and pytest for an error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_does_not_come_up_says_so(module: Any, tmp_path: Path) -> None:
    one_at_a_time = f"sqlite:///{tmp_path}/runs.db"
    with Simulator() as simulator:
        first = module.Server(simulator, database_url=one_at_a_time)
        try:
            with pytest.raises(RuntimeError, match="did not start"):
                module.Server(simulator, database_url=one_at_a_time)
        finally:
            first.stop()
