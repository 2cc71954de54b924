// A reader that takes its time, to see what the server does about one: it reads a run frame by frame, slowly. What it does
// not take fills the buffers on the way, and then the server's bound for it; past that it is told of a gap, while the run
// and every other reader go on at full speed.
//
// By `WebSocketStream`, since it alone holds the sender back: a `WebSocket` hands its messages on at once, and Chromium
// takes all of a `fetch` whose body is not read. Firefox and Safari have none.

const EVERY_MS = 20;

/** Whether this browser can read slowly. */
export const canBeSlow = "WebSocketStream" in globalThis;

/** Follow a run slowly, until it is over at the server; what is left is then read at once. Of the form of a `Stream`. */
export function followSlowly(api, address, runId, on) {
  const line = new WebSocketStream(String(address), { protocols: ["millrace"] });
  const tell = (verb) => () => void api(`runs/${runId}/${verb}`, { method: "POST" }).catch(() => null);
  line.closed.catch(() => null); // told by what reads
  let left = false;
  let over = false;
  const leave = () => {
    left = true;
    line.close();
  };
  void read().catch((error) => {
    if (left) return;
    leave();
    on.refused({ code: "lost", message: `The slow reader failed: ${error.message}` });
  });
  void api(`runs/${runId}/result?wait=true`).then(
    () => (over = true),
    () => (over = true),
  );
  return { openings: 1, cancel: tell("cancel"), pause: tell("pause"), continue: tell("continue"), detach: leave };

  async function read() {
    const { readable, writable } = await line.opened;
    await writable.getWriter().write(JSON.stringify({ type: "attach", stream_id: "slow", run_id: runId }));
    const reader = readable.getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the line broke");
      const frame = JSON.parse(value);
      if (frame.final) throw new Error(frame.data.message);
      on.frame(frame);
      if (frame.event === "run.finished") break;
      if (!over) await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
    leave();
    on.over();
  }
}
