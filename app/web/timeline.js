// A run's frames on a clock: one lane for each node and each tool call, what happened in it from when to when, and how
// much text came at which moment.
//
// Pure: frames in, lanes out; no document and no clock. Times are milliseconds since the run started, by the server's
// clock. `take` costs the same for the first frame and the fifty-thousandth: text is counted in bins, of which there
// is a fixed number; when they are full, two become one.

import { asked } from "./run.js";

/** Bins of a lane's text, and how long one is to begin with, in milliseconds. */
const BINS = 2048;
const BIN_MS = 4;

/** What a piece of a structured answer weighs, in letters: its own length is that of the whole object so far. */
const OBJECT_LETTERS = 8;

const PUT_RIGHT = {
  "provider.retry": ["retry", "The provider was busy or failed; it is asked once more."],
  "tool.repaired": ["repair", "A tool call was written wrongly and has been mended."],
  "tool.refused": ["repair", "A tool call that made no sense was sent back to the model."],
  "object.repaired": ["repair", "An object was written wrongly and has been mended."],
  "object.refused": ["repair", "An object that did not fit was sent back to the model."],
};

/**
 * What a run was and is.
 *
 * `rows()` is the lanes from top to bottom: {kind: "run" | "branch" | "node" | "tool", name, depth, lane}. A lane has
 * `items` in the order of their beginnings, each with `kind`, `start` and `end` (null while it goes on), and a node's
 * lane its letters a bin: `text` and `thought`. The items:
 *   {kind: "step", most, cut}                    a node at work; `most` of its steps at once; `cut` by the run's end
 *   {kind: "message", pieces, thoughts, quiet, quietAt, discarded, usage}
 *   {kind: "tool", name, written, started, status, args, output, ms, progress}
 *   {kind: "branch", question, status, problem}
 *   {kind: "queued", position}, {kind: "paused", reason}, {kind: "gap", dropped}
 *   {kind: "mark", what: "first" | "retry" | "repair" | "discarded" | "error" | "interrupted" | "finished", text}
 */
export class Timeline {
  constructor() {
    this.epoch = null; // when the run started, in ms since 1970
    this.end = 0; // the newest event
    this.over = null; // the end's data, once it is there
    this.first = null; // the first piece of the answer
    this.binMs = BIN_MS;
    this.pieces = 0;
    this.dropped = 0;
    this.quiet = { ms: 0, at: 0 }; // the longest silence within a message
    this.tools = { count: 0, failed: 0, running: 0, most: 0, longest: null };
    this.seen = new Set(); // kinds of what can be drawn
    this.run = { items: [] };
    this._groups = new Map();
    this._root = newGroup(null, null);
    this._lanes = [];
    this._messages = new Map();
    this._calls = new Map();
    this._asked = new Set();
    this._steps = new Set();
    this._waits = { queued: null, paused: null, gap: null };
    this._settled = null;
    this._rows = null;
  }

  /** Take one frame, {event, data}, in the order in which they come. */
  take({ event, data }) {
    // A gap is dated when it is told, which can be long after what it stands for: it ends where the next event is.
    if (event === "gap") return this._gap(data);
    this.epoch ??= data.ts;
    const at = Math.max(0, data.ts - this.epoch);
    this.end = Math.max(this.end, at);
    this._end("gap", at);
    TAKEN[event]?.(this, data, at);
  }

  /** The lanes from top to bottom; the same array until there is another lane. */
  rows() {
    if (!this._rows) {
      this._rows = [{ kind: "run", name: "run", depth: 0, lane: this.run }];
      listed(this._root, 0, this._rows);
    }
    return this._rows;
  }

  _gap(data) {
    this.dropped += data.dropped;
    if (this._waits.gap) this._waits.gap.dropped += data.dropped;
    else this._begin("gap", this.end, { dropped: data.dropped });
  }

  _begin(kind, at, facts) {
    this._waits[kind] = this._add(this.run, { kind, start: at, end: null, ...facts });
  }

  _end(kind, at) {
    if (this._waits[kind]) this._waits[kind].end = at;
    this._waits[kind] = null;
  }

  _add(lane, item) {
    lane.items.push(item);
    this.seen.add(item.kind === "mark" ? item.what : item.kind);
    return item;
  }

  _mark(data, what, at, text) {
    this._add(data.node ? this._lane(data) : this.run, { kind: "mark", what, start: at, end: at, text });
  }

  _group(path = []) {
    if (!path.length) return this._root;
    const key = path.join("|");
    let group = this._groups.get(key);
    if (!group) {
      group = newGroup(path.at(-1), { kind: "branch", start: this.end, end: null, question: null, status: null });
      this._group(path.slice(0, -1)).children.push(group);
      this._groups.set(key, group);
      this._rows = null;
    }
    return group;
  }

  _lane({ namespace, node = "" }) {
    const group = this._group(namespace);
    let lane = group.nodes.get(node);
    if (!lane) {
      lane = { name: node || "answer", items: [], text: [], thought: [], step: null, at: 0 };
      group.nodes.set(node, lane);
      this._lanes.push(lane);
      this._rows = null;
    }
    return lane;
  }

  _message(data, at) {
    let message = this._messages.get(data.message_id);
    if (!message || message.end !== null) {
      const counts = { pieces: 0, thoughts: 0, quiet: 0, quietAt: at, heard: at };
      message = { kind: "message", start: at, end: null, discarded: false, usage: null, ...counts };
      this._messages.set(data.message_id, this._add(this._lane(data), message));
    }
    return message;
  }

  _piece(data, at, letters, bins) {
    this._end("queued", at);
    const message = this._message(data, at);
    if (this.first === null) {
      this.first = at;
      this._add(this.run, { kind: "mark", what: "first", start: at, end: at, text: "" });
    }
    if (at - message.heard > message.quiet) {
      message.quiet = at - message.heard;
      message.quietAt = message.heard;
      if (message.quiet > this.quiet.ms) this.quiet = { ms: message.quiet, at: message.heard };
    }
    message.heard = at;
    message.pieces += 1;
    this.pieces += 1;
    this.seen.add(bins);
    this._weigh(this._lane(data), bins, at, letters);
    return message;
  }

  _weigh(lane, name, at, letters) {
    while (at >= BINS * this.binMs) this._coarsen();
    const bins = lane[name];
    const bin = Math.floor(at / this.binMs);
    while (bins.length <= bin) bins.push(0);
    bins[bin] += letters;
  }

  _coarsen() {
    this.binMs *= 2;
    for (const lane of this._lanes) {
      lane.text = halved(lane.text);
      lane.thought = halved(lane.thought);
    }
  }

  _call(data, at) {
    let call = this._calls.get(data.call_id);
    if (!call) {
      const asked = { name: data.name ?? "tool", args: null, written: at };
      const made = { started: null, progress: 0, status: null, output: null, ms: null };
      call = { kind: "tool", start: at, end: null, ...asked, ...made };
      this._calls.set(data.call_id, call);
      this._group(data.namespace).tools.push({ name: call.name, items: [call] });
      this.seen.add("tool");
      this.tools.count += 1;
      this._rows = null;
    }
    return call;
  }

  _stopSteps(at) {
    for (const lane of this._steps) {
      Object.assign(lane.step, { end: at, cut: true });
      Object.assign(lane, { step: null, at: 0 });
    }
    this._steps.clear();
  }

  _close(at) {
    this._stopSteps(at);
    for (const kind of Object.keys(this._waits)) this._end(kind, at);
    for (const item of [...this._messages.values(), ...this._calls.values()]) item.end ??= at;
    for (const { item } of this._groups.values()) item.end ??= at;
  }
}

const TAKEN = {
  "run.queued": (line, { position }, at) => {
    if (line._waits.queued) line._waits.queued.position = Math.max(line._waits.queued.position, position);
    else line._begin("queued", at, { position });
  },
  "run.paused": (line, { reason }, at) => {
    line._end("queued", at);
    line._stopSteps(at);
    line._begin("paused", at, { reason });
  },
  "run.resumed": (line, data, at) => {
    line._end("paused", at);
    for (const message of line._messages.values()) message.heard = at; // a pause is no silence of the model's
  },
  "run.interrupted": (line, data, at) => {
    const { interrupts } = data;
    for (const id of asked(data)) line._asked.add(id);
    const text = interrupts.length === 1 ? "A question waits for a person." : "Questions wait for a person.";
    line._add(line.run, { kind: "mark", what: "interrupted", start: at, end: at, text });
  },
  "run.finished": (line, data, at) => {
    line._close(at);
    line.over = data;
    line._add(line.run, { kind: "mark", what: "finished", start: at, end: at, text: data.status });
  },
  "node.started": (line, data, at) => {
    const lane = line._lane(data);
    reached(line, data, null);
    lane.at += 1;
    lane.step ??= line._add(lane, { kind: "step", start: at, end: null, most: 0, cut: false });
    lane.step.most = Math.max(lane.step.most, lane.at);
    line._steps.add(lane);
  },
  "node.finished": (line, data, at) => {
    const lane = line._lane(data);
    reached(line, data, at);
    if (!lane.step) return; // it was stopped by a pause
    lane.at -= 1;
    if (lane.at > 0) return;
    lane.step.end = at;
    lane.step = null;
    line._steps.delete(lane);
  },
  "message.started": (line, data, at) => {
    line._end("queued", at);
    line._message(data, at);
  },
  "message.finished": (line, data, at) => {
    line._settled = line._messages.get(data.message_id) ?? null;
    if (line._settled) line._settled.end = at;
  },
  "message.discarded": (line, data, at) => {
    const message = line._messages.get(data.message_id);
    if (message) Object.assign(message, { end: at, discarded: true });
    line._mark(data, "discarded", at, "This text is void; it is generated anew.");
  },
  token: (line, data, at) => line._piece(data, at, data.text.length, "text"),
  reasoning: (line, data, at) => {
    line._piece(data, at, data.text.length, "thought").thoughts += 1;
  },
  "object.partial": (line, data, at) => line._piece(data, at, OBJECT_LETTERS, "text"),
  "object.field": (line, data, at) => line._piece(data, at, OBJECT_LETTERS, "text"),
  "tool.pending": (line, data, at) => {
    line._end("queued", at);
    line._call(data, at);
    line.seen.add("args");
  },
  "tool.args": (line, data, at) => {
    const call = line._call(data, at);
    call.written = at;
    if (data.args !== undefined && data.args !== null) call.args = data.args;
  },
  "tool.started": (line, data, at) => {
    Object.assign(line._call(data, at), { started: at, args: data.args });
    line.tools.running += 1;
    line.tools.most = Math.max(line.tools.most, line.tools.running);
  },
  "tool.progress": (line, data, at) => {
    line._call(data, at).progress += 1;
  },
  "tool.finished": (line, data, at) => {
    const call = line._call(data, at);
    if (call.started !== null) line.tools.running -= 1;
    const waits = line._asked.has(data.call_id);
    Object.assign(call, {
      end: at,
      status: waits ? "waiting" : data.status,
      output: data.output,
      ms: data.duration_ms,
    });
    if (call.status === "error") {
      line.tools.failed += 1;
      line.seen.add("failed");
    }
    if (call.started !== null && call.ms > (line.tools.longest?.ms ?? -1)) line.tools.longest = call;
  },
  usage: (line, data) => {
    // A call's usage is told right behind the message that it made, and says how much of the time was the gate's.
    const message = line._settled;
    line._settled = null;
    if (!message) return;
    message.usage = data;
    const wait = line.run.items.findLast((item) => item.kind === "queued" && item.end === message.start);
    if (wait && data.queue_ms) wait.end = Math.min(wait.end, wait.start + data.queue_ms);
  },
  error: (line, data, at) => line._mark(data, "error", at, data.message),
  custom: (line, data, at) => {
    const told = PUT_RIGHT[data.name];
    if (told) line._mark(data, told[0], at, told[1]);
    else if (data.name === "branch.started") begun(line, data.data, at);
    else if (data.name === "branch.finished") ended(line, data.data, at);
  },
};

/** What is known of a subgraph's end, where no event of its own tells it. */
function reached(line, { namespace }, at) {
  const { item } = line._group(namespace);
  if (item && item.status === null) item.end = at;
}

// A graph may send events of these names with anything in them.

function begun(line, told, at) {
  const { item } = pathOf(told) ? line._group(told.namespace) : {};
  if (item) Object.assign(item, { start: at, end: null, question: told.question ?? null, number: told.number ?? null });
  line._rows = null;
}

function ended(line, told, at) {
  const { item } = pathOf(told) ? line._group(told.namespace) : {};
  if (item) Object.assign(item, { end: at, status: told.status ?? "ok", problem: told.problem ?? null });
}

function pathOf(told) {
  return Array.isArray(told?.namespace) && told.namespace.every((one) => typeof one === "string");
}

function newGroup(element, item) {
  const caller = element === null ? null : element.split(":")[0];
  return { caller, item, items: item ? [item] : [], nodes: new Map(), tools: [], children: [] };
}

function halved(bins) {
  const half = new Array(Math.ceil(bins.length / 2)).fill(0);
  bins.forEach((letters, at) => (half[at >> 1] += letters));
  return half;
}

/** A group's lanes: each node with the graphs that it called below it, then the tool calls. */
function listed(group, depth, rows) {
  const left = new Set(group.children);
  for (const lane of group.nodes.values()) {
    rows.push({ kind: "node", name: lane.name, depth, lane });
    const called = group.children.filter(({ caller }) => caller === lane.name);
    called.forEach((child, at) => {
      left.delete(child);
      branch(child, called.length > 1 ? at + 1 : null, depth + 1, rows);
    });
  }
  for (const child of left) branch(child, null, depth + 1, rows);
  for (const lane of group.tools) rows.push({ kind: "tool", name: lane.name, depth, lane });
}

function branch(group, at, depth, rows) {
  const { question, number } = group.item;
  const plain = at === null ? group.caller : `${group.caller} ${at}`;
  const name = typeof question === "string" ? `${number ?? at ?? ""} ${question}`.trim() : plain;
  rows.push({ kind: "branch", name, depth, lane: group });
  listed(group, depth, rows);
}

/**
 * The letters between two moments, put into `count` columns: what lies in a bin wider than a column is spread over its
 * columns, so that a hole is one where no text came, and not where the picture is finer than the bins.
 */
export function columns(bins, binMs, from, to, count) {
  const found = new Array(count).fill(0);
  const scale = count / (to - from);
  const first = Math.max(0, Math.floor(from / binMs));
  const last = Math.min(bins.length - 1, Math.ceil(to / binMs));
  for (let bin = first; bin <= last; bin += 1) {
    if (!bins[bin]) continue;
    const left = Math.floor((bin * binMs - from) * scale);
    const right = Math.max(left, Math.ceil(((bin + 1) * binMs - from) * scale) - 1);
    const end = binMs * scale < 1 ? left : right;
    for (let at = Math.max(0, left); at <= Math.min(count - 1, end); at += 1) found[at] += bins[bin] / (end - left + 1);
  }
  return found;
}

const STEPS_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600];
const HOUR_MS = 3_600_000;

/** At most `most` round moments between two, and how far they lie apart: {step, at}. */
export function ticks(from, to, most) {
  const wanted = (to - from) / Math.max(1, most);
  let step = 1000 * (STEPS_S.find((one) => 1000 * one >= wanted) ?? STEPS_S.at(-1));
  while (step < wanted) step *= step < HOUR_MS / 2 ? 3 : 2;
  const at = [];
  for (let moment = Math.ceil(from / step) * step; moment <= to; moment += step) at.push(moment);
  return { step, at };
}

/** A moment on the axis: seconds, from a minute on minutes and hours; as many digits as the step needs. */
export function clock(ms, step) {
  const digits = step >= 1000 ? 0 : step >= 100 ? 1 : step >= 10 ? 2 : 3;
  if (ms < 60_000 && step < 60_000) return `${(ms / 1000).toFixed(digits)} s`;
  const seconds = ((ms % 60_000) / 1000).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes}:${seconds}`;
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${seconds}`;
}

/**
 * The item of a lane that is meant by a moment, if there is one within `slack` ms. What is thinner than that goes
 * first, as it could not be pointed at otherwise; then the shortest of those that hold the moment.
 */
export function nearest(items, at, slack, now) {
  let best = null;
  let least = Infinity;
  for (const item of items) {
    const end = item.end ?? now;
    const far = Math.max(0, item.start - at, at - end);
    if (far > slack) continue;
    const rank = end - item.start <= slack ? far / (slack + 1) : far > 0 ? 4 : 2 - 1 / (1 + end - item.start);
    if (rank < least) [best, least] = [item, rank];
  }
  return best;
}
