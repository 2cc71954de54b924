// One answer on the page: what a run says, part by part, and what it did, took and cost.
//
// A part is drawn when it is there and touched again only when it changed: see `Run.changed`.

import { approval } from "./approval.js";
import { el, svg } from "./dom.js";
import { Growing } from "./markdown.js";
import { asTree, folded, shortened } from "./values.js";
import * as words from "./words.js";

const LONG = 160;
const WRITTEN = 2000;

/** The view of a `Run`. `on`: again() or null where it cannot be asked again, resume(value, said), inspect(). */
export class Answer {
  constructor(run, on) {
    this.run = run;
    this._on = on;
    this._views = new Map();
    this._lanes = new Map();
    this._body = el("div", { class: "answer-body" });
    this._state = el("p", { class: "answer-state", hidden: true });
    this._problems = el("div", { class: "answer-problems" });
    this._question = el("div", { class: "answer-question" });
    this._figures = el("dl", { class: "figures" });
    this._foot = el(
      "footer",
      { class: "answer-foot" },
      this._figures,
      el("span", { class: "spread" }),
      el("button", { type: "button", class: "small", onclick: () => on.inspect() }, "Lanes"),
    );
    const parts = [this._body, this._state, this._problems, this._question, this._foot];
    this.element = el("article", { class: "answer", "aria-label": "Answer", "aria-busy": "true" }, ...parts);
    this.update();
  }

  /** Draw what has changed. */
  update() {
    const { run } = this;
    for (const part of run.changed) this._draw(part);
    run.changed.clear();
    if (run.over && !this._settled) this._settle();
    this._tell();
    this._measure();
  }

  /** The server would not have it: why, and what to do. */
  refuse(error) {
    this._refusal = error;
    this.element.removeAttribute("aria-busy");
    const wait = error.retry_after_ms ? ` It may be asked again in ${words.span(error.retry_after_ms)}.` : "";
    this._problems.replaceChildren(this._problem(`${error.message}${wait}`, error.retryable !== false, error.code));
    this._state.hidden = true;
  }

  _draw(part) {
    if (!this.run.parts.includes(part)) {
      this._views.get(part)?.element.remove(); // discarded: it is being written anew
      this._views.delete(part);
      return;
    }
    let view = this._views.get(part);
    if (!view) {
      view = DRAWN[part.kind](part);
      this._views.set(part, view);
      this._place(part.lane).append(view.element);
    }
    view.update(part, this.run.over);
  }

  /** Where a part goes: what a subgraph says is told apart, folded up when it is done. */
  _place(lane) {
    if (lane === "") return this._body;
    let place = this._lanes.get(lane);
    if (!place) {
      const body = el("div", { class: "branch-body" });
      const name = this.run.lanes.get(lane)?.question ?? lane.split(" ").at(-1).split(":")[0];
      const folded = el("details", { class: "branch", open: true }, el("summary", {}, name), body);
      place = { folded, body };
      this._lanes.set(lane, place);
      this._body.append(folded);
    }
    return place.body;
  }

  _settle() {
    this._settled = true;
    for (const part of this.run.parts) this._views.get(part)?.update(part, true);
    for (const { folded } of this._lanes.values()) folded.open = false;
    this.element.removeAttribute("aria-busy");
    const problems = this.run.errors.map((error) => this._problem(error.message, error.retryable, error.code));
    this._problems.append(...problems);
    if (this.run.status === "interrupted" && this.run.interrupts.length) {
      this._question.replaceChildren(approval(this.run.interrupts, (value, said) => this._on.resume(value, said)));
    }
  }

  /** Whether what it asks, if it waits for a person, can be answered here: not when it was, or is being. */
  wait(waits) {
    this._question.hidden = !waits;
  }

  _problem(message, retryable, code) {
    const again =
      retryable && this._on.again
        ? el("button", { type: "button", onclick: () => this._on.again() }, "Try again")
        : null;
    return el("div", { class: "problem", role: "alert", "data-code": code }, el("p", {}, message), again);
  }

  _tell() {
    const said = this._refusal ? "" : stateOf(this.run);
    if (this._state.textContent !== said) this._state.textContent = said;
    this._state.hidden = !said;
    this._state.classList.toggle("waiting", !this.run.over && this.run.status !== "paused");
  }

  _measure() {
    const { run } = this;
    const shown = figures(run);
    const text = JSON.stringify(shown);
    if (text === this._shown) return;
    this._shown = text;
    this._figures.replaceChildren(
      ...shown.map(([name, value, title]) => el("div", { title }, el("dt", {}, name), el("dd", {}, value))),
    );
    this._foot.hidden = shown.length === 0;
  }
}

/** What a run does while it says nothing, or how it ended where that is not by itself. */
export function stateOf(run) {
  if (run.queue !== null) return `Waiting for the provider: number ${run.queue} in line.`;
  if (run.status === "paused") return "Paused. Nothing is generated and nothing is paid until you continue.";
  if (run.status === "cancelled") return `${ENDED[run.reason] ?? "Stopped."}${saving(run)}`;
  if (run.status === "timed_out") return "Out of time. What was written until then is kept.";
  if (!run.over && run.parts.length === 0) return run.status === "starting" ? "Asking…" : "Thinking…";
  return "";
}

const ENDED = {
  requested: "Stopped. What was written until then is kept.",
  disconnected: "Ended, as nobody was reading it any more.",
  superseded: "Ended, as another question took its place.",
  pause_timeout: "Ended, as it was paused for too long.",
  shutdown: "Ended, as the server was stopped.",
};

function saving(run) {
  const tokens = run.usage?.saved_tokens;
  return tokens ? ` Stopping saved about ${words.many(tokens, "token")}.` : "";
}

function figures(run) {
  const { usage } = run;
  const shown = [];
  const ttft = run.ttftMs ?? (run.firstTokenAt !== null ? run.firstTokenAt - run.startedAt : null);
  if (ttft !== null)
    shown.push([
      "First word",
      words.span(ttft),
      "from the start of the run to its first token, the wait in line included",
    ]);
  if (run.over) {
    if (usage?.tokens_per_s)
      shown.push(["Speed", words.speed(usage.tokens_per_s), "tokens in a second, from the first to the last"]);
    if (usage) {
      const about = usage.estimated ? "about " : "";
      shown.push([
        "Tokens",
        `${about}${words.count(usage.input_tokens)} in + ${words.count(usage.output_tokens)} out`,
        "of all model calls of this answer",
      ]);
      shown.push([
        "Cost",
        words.money(usage.cost_usd),
        usage.estimated ? "an estimate" : "by the provider's price list",
      ]);
    }
    if (run.durationMs !== null) shown.push(["Took", words.span(run.durationMs), "from its start to its end"]);
  } else if (run.tokens > 0) {
    const seconds = (run.lastAt - run.firstTokenAt) / 1000;
    if (seconds > 0.5) shown.push(["Speed", words.speed(run.tokens / seconds), "pieces of text in a second so far"]);
    shown.push(["Tokens", words.count(run.tokens), "pieces of text so far"]);
  }
  return shown;
}

// -- the parts --------------------------------------------------------------------------------------------------------

const DRAWN = {
  text: () => {
    const growing = new Growing();
    return {
      element: growing.element,
      update: (part, over) => (part.done || over ? growing.finish(part.text) : growing.show(part.text)),
    };
  },
  reasoning: () => {
    const text = document.createTextNode("");
    const element = el("details", { class: "reasoning" }, el("summary", {}, "Reasoning"), el("p", {}, text));
    return { element, update: (part) => text.appendData(part.text.slice(text.data.length)) };
  },
  tool: (part) => toolCard(part),
  object: () => {
    const body = el("div", { class: "object-body" });
    const head = el("p", { class: "object-head" });
    return {
      element: el("section", { class: "object", "aria-label": "Object" }, head, body),
      update: (part, over) => {
        const state = over ? "" : " so far";
        head.textContent = `${words.many(part.fields, "field")}${state}`;
        body.replaceChildren(asTree(part.value));
      },
    };
  },
  note: (part) => ({ element: el("p", { class: "note" }, part.text), update: () => {} }),
  gap: () => {
    const element = el("p", { class: "gap" });
    return {
      element,
      update: (part) => {
        const after = part.mended
          ? "The whole text was fetched afterwards."
          : "The whole text comes when the answer is complete.";
        element.textContent = `This page fell behind and was told so: ${words.many(part.dropped, "event")} skipped. ${after}`;
      },
    };
  },
};

const ICON = {
  pending: ["spinner", "is being called"],
  running: ["spinner", "works"],
  waiting: ["hand", "waits for you"],
  ok: ["tick", "done"],
  error: ["cross", "failed"],
};

function toolCard() {
  const icon = el("span", { class: "tool-icon" });
  const title = el("span", { class: "tool-title" });
  const name = el("code", { class: "tool-name" });
  const took = el("span", { class: "tool-took" });
  const args = el("div", { class: "tool-args" });
  const progress = el("p", { class: "tool-progress", hidden: true });
  const output = el("div", { class: "tool-output", hidden: true });
  const head = el("div", { class: "tool-head" }, icon, title, name, took);
  const element = el("section", { class: "tool" }, head, args, progress, output);
  let drawn = null;
  let result = null;
  return {
    element,
    update: (part) => {
      const [shape, said] = ICON[part.status];
      element.dataset.status = part.status;
      element.setAttribute("aria-label", `Tool ${part.name}: ${said}`);
      if (drawn !== part.status) icon.replaceChildren(sign(shape));
      drawn = part.status;
      title.textContent = part.label || part.name;
      name.textContent = part.name;
      took.textContent = part.ms === null ? "" : words.span(part.ms);
      args.replaceChildren(part.args === null ? el("code", {}, ending(part.written)) : asTree(part.args));
      progress.hidden = part.progress.length === 0;
      if (part.progress.length) progress.textContent = shortened(part.progress.at(-1), LONG);
      if (part.status !== "ok" && part.status !== "error") return;
      if (result === part.output) return;
      result = part.output;
      output.hidden = false;
      output.replaceChildren(outcome(part.output));
    },
  };
}

/** What is being written, where that is long: it would be laid out anew at each piece. */
function ending(text) {
  return text.length <= WRITTEN ? text : `…${text.slice(-WRITTEN)}`;
}

function outcome(value) {
  const whole = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  return whole.length <= LONG && !whole.includes("\n") ? el("p", {}, whole) : folded(whole, LONG);
}

const PATHS = { tick: "M3 8.5l3.2 3.2L13 5", cross: "M4 4l8 8M12 4l-8 8", hand: "M5.5 3v10M10.5 3v10" };

function sign(shape) {
  if (shape === "spinner") return el("span", { class: "spinner" });
  return svg("svg", { viewBox: "0 0 16 16", class: shape, "aria-hidden": "true" }, svg("path", { d: PATHS[shape] }));
}
