// A question and its answer: starts the run or joins it, hears it to its end, and mends what a gap left out.

import { Answer } from "./answer.js";
import { el } from "./dom.js";
import { paint } from "./painter.js";
import { Run } from "./run.js";
import { GRACE_S } from "./socket.js";

const GONE = new Set(["run_expired", "unknown_run", "not_found"]);

/**
 * One turn of a conversation. `saved` is what is remembered of it, see store.js; `on` is told changed() when that is worth
 * remembering anew, grew(), over(), again(question) or null, resume(value, said), inspect(run), and asked unheard() for the
 * run on the thread that this page has not heard of, and waiting() for what the thread waits for.
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
    this._left = false;
    this.answer = new Answer(this.run, {
      again: on.again && (() => on.again(saved.question)),
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
    this._begun(this._socket.start({ ...request, disconnect_grace_s: GRACE_S }, this._hears()));
  }

  /** Follow the run that is remembered: from its first event, since this page has heard none. */
  join() {
    this._begun(this._socket.attach(this.saved.runId, 0, this._hears()));
  }

  /** Follow a run by another stream than the socket's: `follow(on)` gives it. */
  by(follow) {
    this._begun(follow(this._hears()));
  }

  /** What is remembered, where the run itself is known no longer, or what was heard until then. */
  async recall() {
    const { status } = this.saved;
    if (status === "interrupted") this.run.interrupts = await this._on.waiting();
    if (status === null) {
      this._fail({
        code: "unknown",
        message: "The server knows this run no longer: how it ended is not known.",
        retryable: true,
      });
    } else {
      this._showText();
      this.run.status = status;
    }
    paint(this._draw);
  }

  /** The page was left before it had heard of the run: it is followed if there is one, and else may be asked for again. */
  async find() {
    if (await this._found()) return;
    const message = "The page was left before the server had taken this question.";
    await this._refuse({ code: "unheard", message, retryable: true });
  }

  /** Stop following. */
  leave() {
    this._left = true;
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
    const repeated = this.stream?.openings > 1;
    this.stream = null;
    if (this.saved.runId !== null && GONE.has(error.code)) {
      this._keepText();
      await this.recall();
    } else if (error.code === "thread_busy" && repeated && (await this._found())) {
      return; // the line broke before `run.started`, and the start was sent again: it was the first that is on the thread
    } else {
      this.refused = error;
      if (this.saved.runId === null) this.saved.status = "refused";
      this._fail(error);
    }
    if (this._left) return;
    this._on.changed();
    this._on.over();
  }

  async _found() {
    const runId = await this._on.unheard();
    if (runId === null || this._left) return false;
    this.saved.runId = runId;
    this._on.changed();
    this.join();
    return true;
  }

  _fail(error) {
    this._showText();
    this.run.status = "failed";
    this.answer.refuse(error);
  }

  /** Show the text that is remembered, unless more than that was heard. */
  _showText() {
    const { run, saved } = this;
    if (!saved.text || run.parts.length) return;
    run.parts.push({ kind: "text", id: "remembered", text: saved.text, lane: "", done: true });
    run.changed.add(run.parts[0]);
  }

  _keepText() {
    const last = this.run.parts.findLast((part) => part.kind === "text" && part.lane === "");
    if (last) this.saved.text = last.text;
  }

  async _end() {
    this.stream = null;
    if (this.run.dropped) await this._mend();
    this.saved.status = this.run.status;
    this._keepText();
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
