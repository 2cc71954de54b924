"""The peer: the benchmarks' graphs behind LangServe's own ``add_routes`` and nothing of ours, under the same uvicorn.

python benchmarks/langserve_app.py PORT
"""

import sys

import agents
import uvicorn
from fastapi import FastAPI
from langserve import add_routes


def build() -> FastAPI:
    """An app such as LangServe's own documentation shows."""
    app = FastAPI()
    for build_graph in (agents.chat, agents.consulting, agents.nested, agents.live):
        add_routes(app, build_graph(), path=f"/agents/{build_graph.__name__}")

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    return app


if __name__ == "__main__":
    uvicorn.run(build(), port=int(sys.argv[1]), log_level="warning", access_log=False)
