"""The peer: the comparisons' graph behind langgraph-api, in memory, as ``langgraph dev`` serves it.

Runs in an environment of its own (``peers.py``). A thousand runs at once, where ``langgraph dev`` has one;
no reloading, no browser, nothing written to the disk, no tracing. It needs no licence and no network.

    python benchmarks/langgraph_app.py PORT
"""

import sys
from pathlib import Path

from graph import answering, plain_model

RUNS_AT_ONCE = 1000

graph = answering(plain_model())
"""Built at import, as langgraph-api wants it: from a factory it would build one for each run."""


def main(port: int) -> None:
    """Serve until told to stop."""
    from langgraph_api.cli import run_server  # type: ignore[import-not-found]  # noqa: PLC0415 - there only

    run_server(
        "127.0.0.1",
        port,
        reload=False,
        graphs={"live": f"{Path(__file__).resolve()}:graph"},
        n_jobs_per_worker=RUNS_AT_ONCE,
        open_browser=False,
        disable_persistence=True,
        allow_blocking=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
