// The conversation: questions and answers, and the line in which one writes.
//
// What it shows is one conversation of the store, or one run by itself. Other tabs that have the same conversation open
// follow the same runs: whoever starts one writes it into the store, and the others join it.

import { example, inputFor, questions, takesText } from "./agents.js";
import { byId, el } from "./dom.js";
import { begun, keep, recall } from "./store.js";
import { Turn } from "./turn.js";
import * as words from "./words.js";

const NEAR = 48; // px from the end within which a reader is taken to read along
const TOUCH = matchMedia("(pointer: coarse)");
const FOLLOWED = 24; // runs of a conversation that are followed again at a reload; of older ones the text is remembered

/** The view. `on`: inspect(run), drew(), say(text) for screen readers, went(conversation) when its address changes. */
export class Chat {
  constructor(socket, api, on) {
    this._socket = socket;
    this._api = api;
    this._on = on;
    this._turns = [];
    this._agent = null;
    this._conversation = null;
    this._opening = null;
    this._pausing = false;
    this._near = true;
    this._log = byId("log");
    this._form = byId("composer");
    this._field = byId("message");
    this._send = byId("send");
    this._stop = byId("stop");
    this._pause = byId("pause");
    this._continue = byId("continue");
    this._newest = byId("newest");
    this._listen();
  }

  /** The turn whose answer is being made, if one is. */
  get live() {
    return this._turns.findLast((turn) => turn.live) ?? null;
  }

  /** The newest run that is shown. */
  get newest() {
    return this._turns.at(-1)?.run ?? null;
  }

  /** Show the conversation of this id with an agent: the remembered one, what the server has of it, or a new one. */
  async open(agent, id = null) {
    this._clear(agent);
    const known = id === null ? null : recall(id);
    const conversation = known ?? { ...begun(agent.name), ...(id === null ? {} : { id }) };
    if (known === null && id !== null && agent.capabilities.threads) {
      const opening = (this._opening = {});
      conversation.turns = await this._fromThread(id);
      if (this._opening !== opening) return; // another one was opened meanwhile
    }
    this._conversation = conversation;
    const { turns } = conversation;
    turns.forEach((saved, at) => this._add(saved, at < turns.length - FOLLOWED));
    this._show();
  }

  /** Show one run, of whatever agent and client. */
  openRun(row, agent) {
    this._clear(agent);
    this._add({ question: "", runId: row.run_id, text: "", status: row.status });
    this._turns[0].answer.wait(false); // it is answered in its conversation
    this._show();
  }

  /** Another tab has changed this conversation: follow the runs that are new. */
  changedElsewhere(id) {
    if (this._conversation?.id !== id) return;
    const { turns } = recall(id) ?? { turns: [] };
    for (const saved of turns) {
      const known = this._turns.some((turn) => turn.saved.runId === saved.runId);
      if (saved.runId && !known) {
        this._conversation.turns.push(saved);
        this._add(saved);
      }
    }
    this._show();
  }

  /**
   * Ask something, as if it had been written; null where that cannot be now. `by` may give the answer another stream than
   * the socket's.
   */
  ask(text, by = null) {
    if (this.live || this._conversation === null) return null;
    let input;
    try {
      input = inputFor(this._agent, text, this._conversation.turns);
    } catch (error) {
      this._on.say(`This agent wants an object, and this is no JSON: ${error.message}`);
      byId("problem").textContent = `This agent takes an object: ${error.message}`;
      return null;
    }
    byId("problem").textContent = "";
    return this._begin({ input }, text, by);
  }

  /** Go to the line in which one writes. */
  focus() {
    this._field.focus();
  }

  _begin(request, question, by = null) {
    const saved = { question, runId: null, text: "", status: null, resumes: "resume" in request };
    const turn = this._make(saved);
    const threads = this._agent.capabilities.threads ? { thread_id: this._conversation.id } : {};
    const pausing = this._pausing && this._agent.capabilities.pause ? { pause_after: "paragraph" } : {};
    this._conversation.turns.push(saved);
    keep(this._conversation);
    if (by) turn.by(by);
    else turn.start({ agent: this._agent.name, ...request, ...threads, ...pausing });
    turn.pausing = "pause_after" in pausing;
    this._near = true;
    this._on.went(this._conversation);
    this._on.inspect(turn.run);
    this._show();
    return turn;
  }

  _add(saved, old = false) {
    const turn = this._make(saved);
    if (saved.runId && !old) turn.join();
    else if (saved.runId === null && saved.status === null) void turn.find();
    else void turn.recall();
  }

  _make(saved) {
    for (const one of this._turns) one.answer.wait(false);
    const conversation = this._conversation;
    const turn = new Turn(this._socket, this._api, saved, {
      changed: () => conversation && keep(conversation),
      grew: () => this._grew(turn),
      over: () => this._over(turn),
      again: saved.question && !saved.resumes ? (question) => this.ask(question) : null,
      unheard: () => this._unheard(conversation),
      waiting: () => this._waiting(conversation),
      resume: (value, said) => this._begin({ resume: value }, said),
      inspect: (run) => this._on.inspect(run, true),
    });
    this._turns.push(turn);
    this._log.append(turn.element);
    return turn;
  }

  _over(turn) {
    const { run } = turn;
    if (turn.refused) {
      this._on.say(turn.refused.message);
      this._turns.findLast((one) => !one.refused)?.answer.wait(this._conversation !== null);
    } else if (run.status === "completed")
      this._on.say(`Answer complete, ${words.many(run.usage?.output_tokens ?? 0, "token")}.`);
    else this._on.say(`Answer ${words.status(run.status)}.`);
    this._show();
  }

  async _fromThread(id) {
    try {
      const thread = await this._thread(id);
      const turns = [];
      for (const message of thread.messages) {
        const text = textOf(message.content);
        if (message.type === "human") turns.push({ question: text, runId: null, text: "", status: "completed" });
        else if (message.type === "ai" && text && turns.length) turns.at(-1).text = text;
      }
      const last = turns.at(-1);
      if (last && thread.run_id) Object.assign(last, { runId: thread.run_id, status: null });
      else if (last && thread.interrupts.length) last.status = "interrupted";
      return turns;
    } catch {
      return []; // a conversation that the server has not heard of is a new one
    }
  }

  /** The newest run on a conversation's thread that this page has not heard of, if there is one. */
  async _unheard(conversation) {
    try {
      const { runs } = await this._api("runs");
      const known = new Set(conversation.turns.map((turn) => turn.runId));
      return runs.find((row) => row.thread_id === conversation.id && !known.has(row.run_id))?.run_id ?? null;
    } catch {
      return null;
    }
  }

  /** What a conversation's thread waits for. */
  async _waiting(conversation) {
    try {
      return (await this._thread(conversation.id)).interrupts;
    } catch {
      return []; // gone with the thread
    }
  }

  _thread(id) {
    return this._api(`threads/${encodeURIComponent(id)}`);
  }

  // -- what is on the screen ------------------------------------------------------------------------------------------

  _clear(agent) {
    for (const turn of this._turns) turn.leave();
    this._turns = [];
    this._conversation = null;
    this._opening = null;
    if (!takesText(agent)) this._field.value = blank(agent);
    else if (this._agent && !takesText(this._agent)) this._field.value = "";
    this._fit();
    this._agent = agent;
    this._near = true;
    this._log.replaceChildren();
    byId("problem").textContent = "";
    this._field.placeholder = takesText(agent) ? `Ask ${agent.name}…` : "An object, as JSON";
  }

  _show() {
    const focused = document.activeElement; // now, since a browser takes the focus away from what is hidden
    const empty = this._turns.length === 0;
    byId("welcome").hidden = !empty;
    if (empty) this._welcome();
    const { live } = this;
    const paused = live?.run.status === "paused";
    const can = this._agent?.capabilities.pause ?? false;
    this._form.hidden = this._conversation === null && !live;
    this._field.hidden = this._conversation === null;
    this._send.hidden = live !== null || this._conversation === null;
    this._stop.hidden = live === null;
    this._pause.hidden = !can || paused;
    this._continue.hidden = !paused;
    this._pause.setAttribute("aria-pressed", String(this._pausing));
    // On a phone the line in which one writes would bring up the keyboard, over the answer.
    if (focused?.closest("#chat [hidden]")) (TOUCH.matches ? this._log : this._field).focus();
    this._scroll();
  }

  _welcome() {
    const agent = this._agent;
    byId("welcome-about").textContent = agent.description || `Ask ${agent.name} something.`;
    byId("welcome-questions").replaceChildren(
      ...questions(agent).map((text) => el("button", { type: "button", onclick: () => this.ask(text) }, text)),
    );
  }

  _grew(turn) {
    const state = turn.run.status + turn.run.queue;
    if (state !== turn.shown) {
      turn.shown = state;
      this._show();
    }
    for (const part of turn.run.parts) {
      if (part.kind !== "tool" || part.told === part.status) continue;
      part.told = part.status;
      if (part.status === "pending") this._on.say(part.label || `Calling ${part.name}`);
    }
    this._scroll();
    this._on.drew();
  }

  _scroll() {
    if (this._near) this._log.scrollTop = this._log.scrollHeight;
    this._newest.hidden = this._near;
  }

  _listen() {
    this._form.addEventListener("submit", (event) => {
      event.preventDefault();
      this._submit();
    });
    this._field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this._submit();
    });
    this._field.addEventListener("input", () => this._fit());
    this._stop.addEventListener("click", () => this._stopNow());
    addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing || event.defaultPrevented || byId("chat").hidden) return;
      if (this.live && !document.querySelector(":popover-open, dialog[open]")) this._stopNow();
    });
    this._pause.addEventListener("click", () => {
      this._pausing = !this._pausing;
      if (this.live) this.live.pausing = this._pausing;
      this._show();
    });
    this._continue.addEventListener("click", () => {
      this.live?.stream.continue();
      this._field.focus();
    });
    this._newest.addEventListener("click", () => {
      this._near = true;
      this._scroll();
    });
    this._log.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this._log;
      this._near = scrollHeight - scrollTop - clientHeight < NEAR;
      this._newest.hidden = this._near;
    });
    // What grows because of the window, a font or an opened tool keeps the end in sight, too.
    new ResizeObserver(() => this._scroll()).observe(this._log);
  }

  _stopNow() {
    this.live?.stream.cancel();
    this._on.say("Stopping.");
  }

  _submit() {
    const text = this._field.value.trim();
    if (!text || this.live || this._conversation === null) return;
    if (this.ask(text) === null) return;
    this._field.value = takesText(this._agent) ? "" : blank(this._agent);
    this._fit();
  }

  _fit() {
    this._field.rows = Math.min(10, Math.max(1, this._field.value.split("\n").length));
  }
}

/** What stands in the line of an agent that takes an object. */
function blank(agent) {
  return JSON.stringify(example(agent), null, 2);
}

/** The text of a message, whose content may be blocks of it and other things. */
function textOf(content) {
  if (typeof content === "string") return content;
  return content.map((block) => (typeof block === "string" ? block : (block.text ?? ""))).join("");
}
