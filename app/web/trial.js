// What happens to a stream in the world, made to happen on purpose: the line breaks, the reader falls behind, a user opens
// fifty tabs. Each is the real thing, and tells what came of it.

import { takesText } from "./agents.js";
import { el } from "./dom.js";
import { canBeSlow, followSlowly } from "./slow.js";
import * as words from "./words.js";

const TABS = 50;
const LONG = "tokens=20000&tokens_per_second=4000"; // of about 200 bytes each: more than the buffers on the way hold

/** The panel below the connection's badge. */
export class Trial {
  constructor(panel, { socket, chat, api, address, agent }) {
    Object.assign(this, { _socket: socket, _chat: chat, _api: api, _address: address, _agent: agent });
    this._state = el("p", { class: "trial-state" });
    panel.append(
      el("h2", {}, "The connection"),
      this._state,
      this._offer("Drop my connection", "Cuts the line, as a tunnel or a bad network would.", (say) => this._drop(say)),
      this._offer("Slow my reader down", "A very long answer, read slowly by this page. See the gap.", (say) =>
        this._slow(say),
      ),
      this._offer("Open fifty tabs", "Fifty questions at once, as one user. See the 429.", (say, more) =>
        this._tabs(say, more),
      ),
    );
    socket.addEventListener("state", () => this._tell());
    this._tell();
  }

  _offer(name, about, run) {
    const outcome = el("p", { class: "trial-outcome", role: "status" });
    const picture = el("div", { class: "trial-picture" });
    const button = el("button", { type: "button" }, name);
    button.addEventListener("click", async () => {
      button.disabled = true;
      picture.replaceChildren();
      try {
        await run(
          (text) => (outcome.textContent = text),
          (element) => picture.replaceChildren(element),
        );
      } catch (error) {
        outcome.textContent = error.message;
      } finally {
        button.disabled = false;
      }
    });
    return el(
      "section",
      {},
      el("div", { class: "trial-head" }, button, el("p", { class: "quiet" }, about)),
      outcome,
      picture,
    );
  }

  _tell() {
    const { state, why } = this._socket;
    const said = {
      connecting: "Opening a WebSocket to the server…",
      open: "One WebSocket carries every stream of this tab.",
      waiting: "The line broke. It is tried again, each time a little later.",
      offline: "This browser has no network. It connects again when there is one.",
      refused: why || "The server wants a key.",
    };
    this._state.textContent = said[state];
  }

  // -- the line breaks ------------------------------------------------------------------------------------------------

  async _drop(say) {
    const run = this._chat.live?.run ?? null;
    const had = run?.last ?? 0;
    const began = performance.now();
    say("Dropped…");
    this._socket.drop();
    await this._opened();
    const away = performance.now() - began;
    if (had === 0) {
      say(`Back after ${words.span(away)}. Ask something first, and drop the line in the middle of the answer.`);
      return;
    }
    await until(() => run.last > had || this._chat.live?.run !== run);
    const first = run.frames.findIndex((frame) => frame.id > had);
    if (first < 1) {
      say(`Back after ${words.span(away)}, and the answer is over.`);
      return;
    }
    const [before, after] = [run.frames[first - 1]?.id, run.frames[first]?.id];
    say(
      `Back after ${words.span(away)}: event ${before} was the last before, ${after} the first after. None is missing.`,
    );
  }

  _opened() {
    return new Promise((resolve) => {
      const heard = () => {
        if (this._socket.state !== "open") return;
        this._socket.removeEventListener("state", heard);
        resolve();
      };
      this._socket.addEventListener("state", heard);
    });
  }

  // -- the reader falls behind ----------------------------------------------------------------------------------------

  async _slow(say) {
    const agent = this._agent();
    if (!canBeSlow)
      throw new Error("This browser cannot hold a sender back; try it with: curl --limit-rate 2k (docs/events.md).");
    if (this._chat.live) throw new Error("Wait for the answer's end, or stop it.");
    if (agent.model !== "simulated")
      throw new Error("This needs an answer of 20,000 tokens in five seconds, and so simulated answers.");
    const question = `Write a very long answer. [[${LONG}]]`;
    const row = await this._api(`agents/${encodeURIComponent(agent.name)}/runs`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ input: question }),
    });
    say("The run goes at full speed; this page reads it slowly…");
    const turn = this._chat.ask("A very long answer, read slowly", (on) =>
      followSlowly(this._api, this._address, row.run_id, on),
    );
    if (turn === null) throw new Error("Another question was asked meanwhile. Stop it, and try again.");
    const { run } = turn;
    await until(() => run.over);
    say(
      run.dropped
        ? `The run took ${words.span(run.durationMs)}, whoever read it how slowly. This reader was told of a gap: ` +
            `${words.many(run.dropped, "event")} skipped. The whole answer was fetched when it was complete.`
        : "This reader was not slow enough: the buffers on the way took all of it.",
    );
  }

  // -- fifty tabs -----------------------------------------------------------------------------------------------------

  async _tabs(say, show) {
    const agent = this._agent();
    if (!takesText(agent)) throw new Error("This agent wants objects; choose another one.");
    const paid = agent.model !== "simulated";
    if (paid && !confirm("Answers here are not simulated: what is let through of these fifty runs costs money. Go on?"))
      return;
    const tabs = Array.from({ length: TABS }, (_, at) => {
      const tab = el("li", { "data-state": "asking", title: `Tab ${at + 1}` }, String(at + 1));
      return { id: `tab-${at + 1}`, tab, state: "asking" };
    });
    show(el("ol", { class: "tabs", "aria-label": "Fifty tabs" }, ...tabs.map((one) => one.tab)));
    const refusals = [];
    const tell = () => say(`${tally(tabs)}. ${refusals.length ? `“${refusals[0].message}”` : ""}`);
    await this._ask(agent, tabs, refusals, tell);
    if (!refusals.length) say(`${tally(tabs)}. This server limits nobody's streams.`);
  }

  /** A socket of its own, since fifty EventSources would wait for each other in the browser. */
  _ask(agent, tabs, refusals, changed) {
    const socket = new WebSocket(this._address, "millrace");
    return new Promise((resolve, reject) => {
      socket.onopen = () => {
        for (const { id } of tabs) {
          socket.send(
            JSON.stringify({ type: "start", stream_id: id, agent: agent.name, input: "Write 40 words about a mill." }),
          );
        }
      };
      socket.onmessage = (message) => {
        const { stream_id: id, event, data, final } = JSON.parse(message.data);
        const one = tabs.find((tab) => tab.id === id);
        if (!one) return;
        if (final) {
          refusals.push(data);
          mark(
            one,
            data.code === "too_many_streams" || data.code === "rate_limited" ? "refused" : "failed",
            data.message,
          );
        } else if (event === "run.started") mark(one, "streaming", "let through");
        else if (event === "run.finished") mark(one, "done", data.status);
        else return;
        changed();
        if (tabs.every((tab) => tab.state !== "asking" && tab.state !== "streaming")) socket.close();
      };
      socket.onclose = () => resolve();
      socket.onerror = () => reject(new Error("The connection for the fifty tabs could not be opened."));
    });
  }
}

function mark(one, state, why) {
  one.state = state;
  one.tab.dataset.state = state;
  one.tab.title = `Tab ${one.tab.textContent}: ${why}`;
}

function tally(tabs) {
  const of = (...states) => tabs.filter((tab) => states.includes(tab.state)).length;
  const failed = of("failed") ? `, ${of("failed")} failed` : "";
  return `${of("streaming", "done")} let through, ${of("refused")} refused with 429${failed}`;
}

async function until(holds) {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 50));
}
