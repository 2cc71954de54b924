// A question and its answer: starts the run or joins it, hears it to its end, and mends what a gap left out.

import { Answer } from "./answer.js";
import { el } from "./dom.js";
import { paint } from "./painter.js";
import { Run } from "./run.js";
import { GRACE_S } from "./socket.js";

const GONE = new Set(["run_expired", "unknown_run", "not_found"]);

/**
 * One turn of a conversation. `saved` is what is remembered of it: {question, runId, text, status}; `on` is told
 * changed() when that is worth remembering anew, grew(), over(), again(question), resume(value, said), inspect(run).
 */
export class Turn {
  constructor(socket, api, saved, on) {
    this.saved = saved;
    this.run = new Run({ question: saved.question });
    this.stream = null;
    this.refused = null;
    this.pausing = false;
    this._socket = socket;
    this._api = api;
    this._on = on;
    this.answer = new Answer(this.run, {
      again: () => on.again(saved.question),
      resume: (value, said) => on.resume(value, said),
      inspect: () => on.inspect(this.run),
    });
    const asked = el("div", { class: "question" }, el("span", { class: "visually-hidden" }, "You: "), saved.question);
    this.element = el("div", { class: "turn" }, saved.question ? asked : null, this.answer.element);
    this._draw = () => this._update();
  }

  /** Whether its answer is still being made. */
  get live() {
    return this.stream !== null && !this.run.over;
  }

  /** Start the run: a run request with its `agent`. */
  start(request) {
    this._request = { ...request, disconnect_grace_s: GRACE_S };
    this._begun(this._socket.start(this._request, this._hears()));
  }

  /** Follow the run that is remembered: from its first event, since this page has heard none. */
  join() {
    this._begun(this._socket.attach(this.saved.runId, 0, this._hears()));
  }

  /** Follow a run by another stream than the socket's: `follow(on)` gives it. */
  by(follow) {
    this._begun(follow(this._hears()));
  }

  /** What is remembered, where the run itself is known no longer. */
  recall() {
    const { text, status } = this.saved;
    this.run.status = status ?? "completed";
    const id = "remembered";
    if (text) this.run.parts.push({ kind: "text", id, text, lane: "", done: true });
    for (const part of this.run.parts) this.run.changed.add(part);
    paint(this._draw);
  }

  /** Stop following. */
  leave() {
    this.stream?.detach();
    this.stream = null;
  }

  _begun(stream) {
    this.stream = stream;
    paint(this._draw);
  }

  _hears() {
    return {
      frame: (frame) => this._take(frame),
      refused: (error) => this._refuse(error),
      over: () => this._end(),
    };
  }

  _take(frame) {
    this.run.apply(frame);
    if (frame.event === "run.started" && this.saved.runId !== this.run.runId) {
      this.saved.runId = this.run.runId;
      this._on.changed();
    }
    if (frame.event === "token" && this.pausing) this._pauseAtParagraph(frame.data.text);
    paint(this._draw);
  }

  /** The end of a paragraph is seen here, a moment after it was written: a word of the next may have come. */
  _pauseAtParagraph(text) {
    const last = this.run.parts.findLast((part) => part.kind === "text");
    const near = last.text.slice(-text.length - 1);
    if (last.lane === "" && near.includes("\n\n")) this.stream?.pause();
  }

  async _refuse(error) {
    this._opened = this.stream?.openings ?? 0;
    this.stream = null;
    const lost = this.saved.runId ?? null;
    if (lost !== null && GONE.has(error.code)) {
      this.recall();
    } else if (error.code === "thread_busy" && this._request && (await this._rejoin())) {
      return;
    } else {
      this.refused = error;
      this.run.status = "failed";
      this.answer.refuse(error);
    }
    this._on.over();
  }

  /** The line broke between a start and its `run.started`, and the start was sent again: the first one may be on the thread. */
  async _rejoin() {
    if (this._opened < 2 || this._rejoined) return false;
    this._rejoined = true;
    try {
      const thread = await this._api(`threads/${encodeURIComponent(this._request.thread_id)}`);
      if (!thread.run_id) return false;
      this.saved.runId = thread.run_id;
      this._on.changed();
      this.join();
      return true;
    } catch {
      return false;
    }
  }

  async _end() {
    this.stream = null;
    if (this.run.dropped) await this._mend();
    this.saved.status = this.run.status;
    this.saved.text = this.run.parts.findLast((part) => part.kind === "text" && part.lane === "")?.text ?? "";
    this._update(); // now, so that nothing says that it is over before it is shown
    this._on.changed();
    this._on.over();
  }

  async _mend() {
    try {
      this.run.mend(await this._api(`runs/${this.run.runId}/result`));
    } catch {
      // It is gone already: the gap stays, and says so.
    }
  }

  _update() {
    this.answer.update();
    this._on.grew();
  }
}
