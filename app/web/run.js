// A run as far as this page has heard of it: its frames in order, and what they come to.
//
// Pure: frames in, a model out; no document, no socket, no clock. `apply` takes the server's events as docs/events.md
// has them; what it does not know it keeps among the frames and passes over. The text of the answer may have a hole
// after a `gap`; whoever shows it then fetches the result and calls `mend`.

const OVER = new Set(["completed", "cancelled", "failed", "timed_out", "interrupted"]);

/**
 * What an answer is made of, in the order in which it came:
 *   {kind: "text" | "reasoning", id, text, lane, done}
 *   {kind: "tool", id, name, label, args, written, status, output, ms, progress, lane}
 *     whose status is "pending", "running", "waiting" (for a person), "ok" or "error"
 *   {kind: "object", id, value, fields, lane}
 *   {kind: "note", text, lane}                        a retry, a repair, anything else that a graph tells
 *   {kind: "gap", dropped}
 * `lane` is the namespace, joined: "" is the root of the graph.
 */
export class Run {
  constructor({ agent = null, question = null } = {}) {
    this.agent = agent;
    this.question = question;
    this.runId = null;
    this.threadId = null;
    this.model = null;
    this.status = "starting";
    this.reason = null;
    this.queue = null;
    this.seamless = true;
    this.interrupts = [];
    this.errors = [];
    this.usage = null;
    this.ttftMs = null;
    this.durationMs = null;
    this.startedAt = null;
    this.firstTokenAt = null;
    this.lastAt = null;
    this.last = 0;
    this.tokens = 0;
    this.dropped = 0;
    this.frames = [];
    this.parts = [];
    this.lanes = new Map();
    this.changed = new Set();
    this._texts = new Map();
    this._tools = new Map();
    this._objects = new Map();
    this._asked = new Set();
  }

  /** Whether nothing more will come. */
  get over() {
    return OVER.has(this.status);
  }

  /** Take one frame: {id, event, data}. Parts that it changes are put into `changed`. */
  apply(frame) {
    if (frame.id !== undefined) {
      if (frame.id <= this.last) return; // sent again behind a broken line
      this.last = frame.id;
    }
    this.frames.push(frame);
    const { event, data } = frame;
    if (data.ts !== undefined) this.lastAt = data.ts;
    TAKEN[event]?.(this, data);
  }

  /** Replace what was streamed of the answer by the run's result, where a gap left a hole in it. */
  mend(result) {
    const texts = this.parts.filter((part) => part.kind === "text" && part.lane === "");
    const gaps = this.parts.filter((part) => part.kind === "gap");
    const last = texts.at(-1);
    if (typeof result.text === "string" && result.text && last) {
      last.text = result.text;
      this.changed.add(last);
    }
    if (result.object !== null && result.object !== undefined) {
      const part = this.parts.findLast((one) => one.kind === "object");
      if (part) {
        part.value = result.object;
        this.changed.add(part);
      }
    }
    for (const gap of gaps) {
      gap.mended = true;
      this.changed.add(gap);
    }
  }

  /** Every frame as JSON Lines, as it came. */
  jsonl() {
    return this.frames.map((frame) => JSON.stringify(frame)).join("\n") + "\n";
  }

  _add(part) {
    this.parts.push(part);
    this.changed.add(part);
    return part;
  }

  /** The part that `kept` has under this key, or a new one that begins as `fresh` says; it is about to change. */
  _part(kept, key, fresh) {
    let part = kept.get(key);
    if (!part) {
      part = this._add(fresh);
      kept.set(key, part);
    }
    this.changed.add(part);
    return part;
  }

  _text(kind, data) {
    const fresh = { kind, id: data.message_id, text: "", lane: laneOf(data), done: false };
    this._part(this._texts, `${kind} ${data.message_id}`, fresh).text += data.text;
  }

  _tool(data) {
    const about = { kind: "tool", id: data.call_id, name: data.name ?? "", lane: laneOf(data) };
    const begun = { label: "", args: null, written: "", status: "pending", output: null, ms: null, progress: [] };
    return this._part(this._tools, data.call_id, { ...about, ...begun });
  }

  _object(data) {
    const fresh = { kind: "object", id: data.message_id, value: null, fields: 0, lane: laneOf(data) };
    return this._part(this._objects, data.message_id, fresh);
  }

  _note(text, data) {
    this._add({ kind: "note", text, lane: laneOf(data) });
  }
}

const TAKEN = {
  "run.started": (run, data) => {
    run.runId = data.run_id;
    run.agent = data.agent;
    run.threadId = data.thread_id;
    run.model = data.model;
    run.startedAt = data.ts;
    run.status = "running";
  },
  "run.queued": (run, data) => {
    run.queue = data.position;
  },
  "run.paused": (run, data) => {
    run.status = "paused";
    run.usage = data.usage;
  },
  "run.resumed": (run, data) => {
    run.status = "running";
    run.seamless &&= data.seamless;
  },
  "run.interrupted": (run, data) => {
    run.interrupts = data.interrupts;
    for (const id of asked(data)) run._asked.add(id);
  },
  "run.finished": (run, data) => {
    run.status = data.status;
    run.reason = data.reason;
    run.usage = data.usage;
    run.ttftMs = data.ttft_ms;
    run.durationMs = data.duration_ms;
    run.queue = null;
  },
  "message.discarded": (run, data) => {
    for (const part of run.parts.filter((one) => one.id === data.message_id)) run.changed.add(part);
    run.parts = run.parts.filter((part) => part.id !== data.message_id);
    run._texts.delete(`text ${data.message_id}`);
    run._texts.delete(`reasoning ${data.message_id}`);
    run._objects.delete(data.message_id);
  },
  "message.finished": (run, data) => {
    for (const kind of ["text", "reasoning"]) {
      const part = run._texts.get(`${kind} ${data.message_id}`);
      if (part) {
        part.done = true;
        run.changed.add(part);
      }
    }
  },
  token: (run, data) => {
    run.queue = null;
    run.tokens += 1;
    run.firstTokenAt ??= data.ts;
    run._text("text", data);
  },
  reasoning: (run, data) => {
    run.queue = null;
    run._text("reasoning", data);
  },
  "tool.pending": (run, data) => {
    run.queue = null;
    Object.assign(run._tool(data), { name: data.name, label: data.label });
  },
  "tool.args": (run, data) => {
    const part = run._tool(data);
    part.written += data.delta;
    if (data.args !== undefined && data.args !== null) part.args = data.args;
  },
  "tool.started": (run, data) => {
    Object.assign(run._tool(data), { name: data.name, args: data.args, status: "running" });
  },
  "tool.progress": (run, data) => {
    run._tool(data).progress.push(data.data);
  },
  "tool.finished": (run, data) => {
    const waits = run._asked.has(data.call_id); // its run is over, and the next one makes the call, or not
    const came = waits ? { status: "waiting" } : { status: data.status, output: data.output, ms: data.duration_ms };
    Object.assign(run._tool(data), { name: data.name, ...came });
  },
  "object.partial": (run, data) => {
    run.firstTokenAt ??= data.ts;
    run._object(data).value = data.value;
  },
  "object.field": (run, data) => {
    run._object(data).fields += 1;
  },
  usage: (run, data) => {
    run.usage = run.usage && run.status !== "paused" ? added(run.usage, data) : data;
  },
  gap: (run, data) => {
    run.dropped += data.dropped;
    run._add({ kind: "gap", dropped: data.dropped, mended: false, lane: "" });
  },
  error: (run, data) => {
    run.errors.push(data);
  },
  custom: (run, { name, data, ...from }) => {
    const branch = Array.isArray(data?.namespace) ? data.namespace.join(" ") : null; // a user's graph may use our names
    if (name === "branch.started" && branch !== null) run.lanes.set(branch, { question: data.question, status: null });
    else if (name === "branch.finished" && branch !== null) Object.assign(run.lanes.get(branch) ?? {}, data);
    else if (name === "provider.retry") run._note("The provider was busy or failed; asking it once more.", from);
    else if (name === "tool.refused") run._note("A tool call that made no sense was sent back to the model.", from);
    else if (name === "tool.repaired") run._note("A tool call was written wrongly and has been mended.", from);
    else if (name === "object.refused") run._note("An object that did not fit was sent back to the model.", from);
  },
};

/** The lane an event belongs to. */
export function laneOf(data) {
  return (data.namespace ?? []).join(" ");
}

/** The calls that wait for a person, by the ids that `run.interrupted` tells. */
export function asked({ interrupts }) {
  return interrupts.flatMap(({ value }) => value?.action_requests ?? []).map((request) => request.call_id);
}

function added(sum, one) {
  const cost = sum.cost_usd === null || one.cost_usd === null ? null : sum.cost_usd + one.cost_usd;
  return {
    ...sum,
    input_tokens: sum.input_tokens + one.input_tokens,
    output_tokens: sum.output_tokens + one.output_tokens,
    total_tokens: sum.total_tokens + one.total_tokens,
    cost_usd: cost,
    estimated: sum.estimated || one.estimated,
  };
}
