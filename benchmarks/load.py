"""The load: so many live runs on a server, read as fast as it writes, from a process of its own.

Bare sockets, since a client library would take more of the machine than the server that is measured. Prints a line of
JSON a second: ``{"at", "live", "tokens"}``: monotonic seconds, runs whose tokens have begun to come, tokens so far.

    python benchmarks/load.py HOST PORT PATH RUNS TOKENS_PER_SECOND
"""

import asyncio
import itertools
import json
import re
import sys
import time

import orjson

from app.simulator.tokens import count

RAMP_S = 5.0
TOKENS = 2000
"""How long a run is; one that is over is followed by another."""

MILLRACE = re.compile(rb'event: token\ndata: \{[^\n]*?"text":("(?:[^"\\]|\\.)+")')
LANGSERVE = re.compile(rb'"on_chat_model_stream","data":\{"chunk":\{"content":("(?:[^"\\]|\\.)+")')
"""Where the text of a token event is, as JSON. Its tokens are counted: for a reader that lags, events are merged."""

LAST_CHUNK = b"\r\n0\r\n\r\n"


class Load:
    """Runs that are kept alive, and what came of them."""

    def __init__(self, host: str, port: int, path: str, tokens_per_second: float) -> None:
        self.tokens = 0
        self._streaming: set[int] = set()
        self._host, self._port = host, port
        self._tokens = MILLRACE if path.endswith("/runs") else LANGSERVE
        text = f"[[tokens={TOKENS}&tokens_per_second={tokens_per_second:g}]] go on"
        self._request = request(path, text)

    @property
    def live(self) -> int:
        """Runs whose first token is there."""
        return len(self._streaming)

    async def keep(self, number: int) -> None:
        """One run after another."""
        while True:
            reader, writer = await asyncio.open_connection(self._host, self._port)
            try:
                writer.write(self._request)
                await self._read(number, reader)
            finally:
                self._streaming.discard(number)
                writer.close()

    async def _read(self, number: int, reader: asyncio.StreamReader) -> None:
        rest = b""
        while not rest.endswith(LAST_CHUNK) and (data := await reader.read(65536)):
            rest += data
            read_to = 0
            for found in self._tokens.finditer(rest):
                self.tokens += count(orjson.loads(found[1]))
                self._streaming.add(number)
                read_to = found.end()
            rest = rest[read_to:]


def request(path: str, text: str) -> bytes:
    """The request that starts a run with this text: our own route, or one of LangServe's."""
    message = {"messages": [{"type": "human", "content": text}]}
    return post(path, json.dumps({"input": text if path.endswith("/runs") else message}).encode())


def post(path: str, body: bytes) -> bytes:
    """A POST, as bytes."""
    head = (
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Accept: text/event-stream",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*head, "", "")).encode() + body


async def main(host: str, port: int, path: str, runs: int, tokens_per_second: float) -> None:
    """Keep the runs alive until the process is ended."""
    load = Load(host, port, path, tokens_per_second)
    async with asyncio.TaskGroup() as group:
        group.create_task(_tell(load))
        for number in range(runs):
            group.create_task(load.keep(number))
            await asyncio.sleep(RAMP_S / runs)


async def _tell(load: Load) -> None:
    for _ in itertools.count():
        line = {"at": time.monotonic(), "live": load.live, "tokens": load.tokens}
        sys.stdout.write(f"{json.dumps(line)}\n")
        sys.stdout.flush()
        await asyncio.sleep(1)


if __name__ == "__main__":
    host, port, path, runs, pace = sys.argv[1:]
    asyncio.run(main(host, int(port), path, int(runs), float(pace)))
