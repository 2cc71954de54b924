// The page's one WebSocket, which carries every stream of this tab. docs/websocket.md has its words.
//
// One socket and not an EventSource for each answer: over HTTP/1.1 a browser opens six connections to a server, all tabs
// together, and a seventh request, such as Stop, would wait for one of them to end.
//
// When the line breaks it is opened again, after a while that grows and is partly left to chance, and each stream goes on
// behind the last event it has. A line that is dead without a word is noticed by a ping that nobody answers.

const FIRST_WAIT_MS = 300;
const LONGEST_WAIT_MS = 10_000;
const CONNECT_MS = 15_000; // a browser by itself waits for minutes where nobody answers
const PING_MS = 10_000;
const PONG_MS = 5_000;
const UNAUTHORIZED = 4401;
const REFUSED = 4000; // and what is above: trying again would not heal it

/** How long a run waits for this page after its line broke. */
export const GRACE_S = 15;

let named = 0;

/**
 * One run that is followed. `on` is told: frame(frame), refused(error) and over(). One of the last two comes once.
 * `openings`: how often it was opened, behind a broken line again.
 */
class Stream {
  constructor(socket, opening, on) {
    this.id = `s${++named}`;
    this.on = on;
    this.runId = opening.run_id ?? null;
    this.last = opening.after ?? 0;
    this._socket = socket;
    this.openings = 0;
    this._opening = opening;
    this._waiting = [];
    this._cancelled = false;
  }

  /** End the run. */
  cancel() {
    this._cancelled = true;
    this._socket._send({ type: "cancel", stream_id: this.id });
  }

  /** Have the run stand still. */
  pause() {
    this._say("pause");
  }

  /** Have a paused run go on. */
  continue() {
    this._say("continue");
  }

  /** Stop following; the run goes on if somebody else reads it, or for as long as it was told to wait. */
  detach() {
    if (this._socket._streams.delete(this.id)) this._socket._send({ type: "detach", stream_id: this.id });
  }

  _open() {
    this.openings += 1;
    const heard = this.runId !== null;
    const frame = heard ? { type: "attach", run_id: this.runId, after: this.last } : this._opening;
    this._socket._send({ ...frame, stream_id: this.id });
    for (const type of this._waiting.splice(0)) this._say(type);
    // Said again, since a line may have been dead for a while when it broke: nobody presses Stop in vain.
    if (this._cancelled) this._socket._send({ type: "cancel", stream_id: this.id });
  }

  _say(type) {
    // What is said while there is no line is said when there is one.
    if (!this._socket._send({ type, stream_id: this.id })) this._waiting.push(type);
  }

  _take(frame) {
    const { id, event, data, final } = frame;
    if (event === "error" && id === undefined && !final) return; // about a command that came too late
    if (final && event === "error") this._end(() => this.on.refused?.(data));
    else if (final) this._end(() => this.on.over?.());
    else {
      if (event === "run.started") this.runId = data.run_id;
      this.last = id;
      this.on.frame(frame);
      if (event === "run.finished") this._end(() => this.on.over?.());
    }
  }

  _end(tell) {
    this._socket._streams.delete(this.id);
    tell();
  }
}

/**
 * The socket. Its `state`: "connecting", "open", "waiting" (the line broke, and is tried again), "offline" (the browser has
 * no network) or "refused" (`why` says the reason; `reopen` tries again). Each change is an event "state".
 */
export class Socket extends EventTarget {
  constructor(address) {
    super();
    this.state = "connecting";
    this.why = "";
    this.lost = 0;
    this._address = address;
    this._streams = new Map();
    this._attempts = 0;
    this._ws = null;
    this._timer = null;
    this._ping = null;
    this._pong = null;
    this._heardAt = 0;
    addEventListener("online", () => this.reopen());
    addEventListener("offline", () => this._cut());
    // A tab that comes back from the history, or from sleep, may have a socket that is long dead.
    addEventListener("pageshow", (event) => event.persisted && this.reopen());
    document.addEventListener("visibilitychange", () => !document.hidden && this.state === "waiting" && this.reopen());
    this._connect();
  }

  /** Start a run: a run request with its `agent`. */
  start(request, on) {
    return this._follow({ ...request, type: "start" }, on);
  }

  /** Follow a run from behind the event `after`. */
  attach(runId, after, on) {
    return this._follow({ run_id: runId, after }, on);
  }

  /** Break the line, as a bad network would; it comes back by itself. */
  drop() {
    this._cut();
  }

  /** Try now. */
  reopen() {
    if (this.state === "open" || this.state === "connecting") return;
    this._attempts = 0;
    this._connect();
  }

  _follow(opening, on) {
    const stream = new Stream(this, opening, on);
    this._streams.set(stream.id, stream);
    if (this.state === "open") stream._open();
    else if (this.state === "refused") this.reopen();
    return stream;
  }

  _connect() {
    clearTimeout(this._timer);
    this._tell("connecting");
    const ws = new WebSocket(this._address, "millrace");
    this._ws = ws;
    this._timer = setTimeout(() => this._cut(), CONNECT_MS);
    ws.onopen = () => {
      if (ws !== this._ws) return;
      clearTimeout(this._timer);
      this._tell("open");
      this._beat();
      for (const stream of [...this._streams.values()]) stream._open();
    };
    ws.onmessage = (message) => {
      if (ws !== this._ws) return;
      this._attempts = 0;
      this._heard();
      const frame = JSON.parse(message.data);
      this._streams.get(frame.stream_id)?._take(frame);
    };
    ws.onclose = (closed) => {
      if (ws === this._ws) this._gone(closed.code, closed.reason);
    };
  }

  /** Let go of the line without waiting for the other side to agree, which on a dead line it never will. */
  _cut() {
    if (this._ws === null) return;
    const ws = this._ws;
    this._gone(1006, "");
    ws.close();
  }

  _gone(code, reason) {
    this._ws = null;
    clearTimeout(this._ping);
    clearTimeout(this._pong);
    this._pong = null;
    clearTimeout(this._timer);
    this.lost += 1;
    if (code >= REFUSED) {
      this.why = code === UNAUTHORIZED ? "" : reason;
      this._tell("refused", code);
      return;
    }
    if (!navigator.onLine) {
      this._tell("offline");
      return; // "online" will say when
    }
    const longest = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this._attempts);
    this._attempts += 1;
    this._tell("waiting");
    this._timer = setTimeout(() => this._connect(), longest * (0.5 + Math.random() / 2));
  }

  _beat() {
    clearTimeout(this._ping);
    this._ping = setTimeout(() => {
      if (performance.now() - this._heardAt < PING_MS) {
        this._beat();
        return;
      }
      this._send({ type: "ping" });
      this._pong = setTimeout(() => this._cut(), PONG_MS);
    }, PING_MS);
  }

  _heard() {
    this._heardAt = performance.now();
    if (this._pong === null) return;
    clearTimeout(this._pong);
    this._pong = null;
    this._beat();
  }

  _send(frame) {
    if (this.state !== "open") return false;
    this._ws.send(JSON.stringify(frame));
    return true;
  }

  _tell(state, code = null) {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, code, unauthorized: code === UNAUTHORIZED } }));
  }
}
