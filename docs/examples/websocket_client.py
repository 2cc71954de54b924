"""Ask an agent over Millrace's WebSocket, and have the whole answer, however often the line breaks.

    pip install websockets
    python websocket_client.py "What is 17*23?" --url http://127.0.0.1:8000 --agent assistant

What a client has to do, and this one does:

* It keeps the id of the last frame it has, and when the line breaks it connects again and attaches with that id in
  ``after``: nothing is lost, nothing comes twice. The run waits for it, for ``disconnect_grace_s``.
* Between two attempts it waits, longer each time, and by chance: else all clients of a restarted server come at once.
* After a ``gap`` (it fell too far behind) its text has a hole; at the end it shows ``/runs/{id}/result`` instead.
* It knows what trying again cannot heal: a close code from 4000 on, and a refusal that is not ``retryable``.
"""

import argparse
import asyncio
import json
import random
import sys
import urllib.request
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

GRACE_S = 30
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
STREAM = "answer"


class Refused(Exception):
    """The server will not do it, now or later."""


class Answer:
    """One run, as far as it has been read."""

    def __init__(self, url: str, agent: str, question: str) -> None:
        self.url = url.rstrip("/")
        self.start = {
            "type": "start",
            "stream_id": STREAM,
            "agent": agent,
            "input": question,
            "disconnect_grace_s": GRACE_S,
        }
        self.run_id: str | None = None
        self.last_id = 0
        self.dropped = 0
        self.attempts = 0
        self.status: str | None = None

    async def read(self) -> str:
        """Read the run to its end; its status."""
        while self.status is None:
            wait_s = 0.0
            try:
                wait_s = await self.connect()
            except ConnectionClosed as closed:
                if closed.rcvd is not None and closed.rcvd.code >= 4000:
                    raise Refused(closed.rcvd.reason) from None
            except InvalidStatus as answer:
                if answer.response.status_code < 500:
                    raise Refused(f"no Millrace at {self.url}: {answer}") from None
            except (OSError, InvalidHandshake):
                pass
            if self.status is None:
                await asyncio.sleep(max(wait_s, self.back_off()))
        return self.status

    async def connect(self) -> float:
        """Follow the run over one connection. The seconds to wait, when the server wants us to come again."""
        async with connect(self.url.replace("http", "ws", 1) + "/ws", max_size=None) as socket:
            if self.run_id is None:
                await socket.send(json.dumps(self.start))
            else:
                attach = {"type": "attach", "stream_id": STREAM, "run_id": self.run_id, "after": self.last_id}
                await socket.send(json.dumps(attach))
            async for message in socket:
                frame = json.loads(message)
                if frame["event"] == "error" and "id" not in frame:
                    return self.refused(frame["data"])
                self.take(frame)
                if self.status is not None:
                    return 0.0
        return 0.0

    def take(self, frame: dict[str, Any]) -> None:
        """One event of the run."""
        self.attempts, self.last_id = 0, frame.get("id", self.last_id)
        event, data = frame["event"], frame["data"]
        if event == "run.started":
            self.run_id = data["run_id"]
        elif event == "token":
            print(data["text"], end="", flush=True)
        elif event == "gap":
            self.dropped += data["dropped"]
            print(" […] ", end="", flush=True)
        elif event in ("run.finished", "end"):
            self.status = data.get("status", "finished")

    def refused(self, problem: dict[str, Any]) -> float:
        """A start or an attach that came to nothing: when to try again."""
        if not problem["retryable"]:
            raise Refused(problem["message"])
        return float(problem.get("retry_after_ms", 0)) / 1000

    def back_off(self) -> float:
        """Up to twice as long each time, by chance ("full jitter")."""
        self.attempts += 1
        return random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self.attempts))

    def whole_text(self) -> str:
        """The answer as the server has it."""
        with urllib.request.urlopen(f"{self.url}/runs/{self.run_id}/result") as response:
            return str(json.load(response)["text"])


async def ask(url: str, agent: str, question: str) -> int:
    """Print the answer while it comes; the exit code."""
    answer = Answer(url, agent, question)
    try:
        status = await answer.read()
    except Refused as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return 1
    if answer.dropped:
        print(f"\n\n({answer.dropped} events were missed. The whole answer:)\n")
        print(await asyncio.to_thread(answer.whole_text), end="")
    print()
    return 0 if status in ("completed", "finished") else 1


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Ask an agent over Millrace's WebSocket.")
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--agent", default="assistant")
    args = parser.parse_args()
    return asyncio.run(ask(args.url, args.agent, args.question))


if __name__ == "__main__":
    sys.exit(main())
