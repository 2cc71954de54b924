"""What docs/sse-or-websocket.md says is so: of browsers in one, of costs in what was measured last."""

import re
from pathlib import Path

from machine import chromium
from scripted import Gate, Scripted, say
from serving import serving

MEASURED = Path(__file__).resolve().parents[2] / "docs" / "performance.md"

SEVENTH = """async () => {
  const started = await fetch("/agents/story/runs", { method: "POST", body: JSON.stringify({ input: "Tell me." }) });
  const { run_id } = await started.json();
  const tabs = Array.from({ length: 6 }, () => new EventSource(`/runs/${run_id}/events`));
  await Promise.all(tabs.map((tab) => new Promise((open) => tab.addEventListener("run.started", open))));

  const order = [];
  const stop = fetch(`/runs/${run_id}/cancel`, { method: "POST" }).then(() => order.push("the stop"));
  const socket = new WebSocket(`ws://${location.host}/ws`);
  await new Promise((open) => socket.addEventListener("open", open));
  socket.send(JSON.stringify({ type: "ping" }));
  await new Promise((pong) => socket.addEventListener("message", pong));
  order.push("a socket that was opened after it");
  tabs[0].close();
  await stop;
  return order;
}"""


def test_six_streams_of_a_browser_hold_up_a_stop_and_not_a_socket() -> None:
    with serving({"story": Scripted(turns=[[Gate(), say("Never.")]])}) as served, chromium() as browser:
        page = browser.new_page()
        page.goto(f"{served.url}/health/live")
        assert page.evaluate(SEVENTH) == ["a socket that was opened after it", "the stop"]


def test_a_socket_of_ten_thousand_costs_more_than_a_stream_and_all_are_fed() -> None:
    rows = re.findall(r"^\| Millrace \| (?:SSE|WebSocket) \| .*", MEASURED.read_text("utf-8"), re.MULTILINE)
    stream, socket = ([cell.strip() for cell in row.split("|")] for row in rows)
    for _, _, wire, readers, fed, _, _, _, _, _, _ in (stream, socket):
        assert (readers, fed) == ("10,000", "10,000"), wire
    assert all(float(stream[cost]) < float(socket[cost]) for cost in (7, 8))  # KiB a reader, µs a frame
