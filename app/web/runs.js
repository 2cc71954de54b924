// One's own runs, newest first, from GET /runs: what goes on, what was, a way into each and a way to stop it.
//
// While it is shown, and the tab with it, the list is asked for again every few seconds. Rows are changed in place, so
// that neither the keyboard's focus nor the place on the page is lost. A list that could not be renewed is left
// standing, with when it is from.

import { el, svg } from "./dom.js";
import { count, many, moment, money, span, status } from "./words.js";

const LIVE_MS = 2000; // while something goes on
const REST_MS = 6000;
const PAGE = 40;

const HEADS = ["Agent", "Status", "Started", "Lasted", "First token", "Tokens in + out", "Cost", "Thread"];

const ICONS = {
  queued: "M3 8h.01M8 8h.01M13 8h.01",
  running: "M8 2.5a5.5 5.5 0 1 1-5.5 5.5",
  paused: "M5.5 3v10M10.5 3v10",
  completed: "M3 8.5l3.5 3.5L13 4.5",
  cancelled: "M4 4h8v8H4z",
  failed: "M4 4l8 8M12 4l-8 8",
  timed_out: "M8 4.5V8l2.5 2M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0z",
  interrupted: "M8 3v6M8 12.5v.01",
};

/** The list of runs. `api`: asks the server, see main.js; `open(row)` is called for the run that is to be looked at. */
export class RunsView {
  constructor(api, { open }) {
    this._api = api;
    this._open = open;
    this._rows = [];
    this._lines = new Map();
    this._shown = PAGE;
    this._shows = false;
    this._asked = 0;
    this._timer = null;
    this._from = null;
    this._said = el("div", { class: "runs-said", role: "status" });
    this._failure = el("div", { class: "runs-failure" });
    this._list = el("tbody", { role: "rowgroup" });
    const heads = HEADS.map((head) => el("th", { scope: "col", role: "columnheader" }, head));
    const last = el("th", { scope: "col", role: "columnheader" }, el("span", { class: "runs-hidden" }, "What to do"));
    this._table = el(
      "table",
      { class: "runs-table", role: "table", "aria-label": "Runs, newest first", hidden: true },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...heads, last)),
      this._list,
    );
    this._more = el("button", {
      type: "button",
      class: "small runs-more",
      hidden: true,
      onclick: () => this._showMore(),
    });
    this._empty = el(
      "div",
      { class: "runs-empty", hidden: true },
      el("p", {}, el("b", {}, "You have no runs yet.")),
      el("p", {}, "Ask an agent something, here or from a program of yours: each answer is a run and is listed here."),
    );
    this._refresh = el("button", { type: "button", class: "small", onclick: () => this.show() }, "Refresh");
    this.element = el(
      "div",
      { class: "runs" },
      el("div", { class: "runs-head" }, el("h2", {}, "Runs"), this._said, this._refresh),
      this._failure,
      this._empty,
      this._table,
      this._more,
    );
    document.addEventListener("visibilitychange", () => this._renewIfSeen());
  }

  /** Ask and draw, and go on asking until `hide`. */
  async show() {
    this._shows = true;
    if (this._from === null) this._said.textContent = "Asking for your runs…";
    await this._renew();
  }

  /** Ask no more. */
  hide() {
    this._shows = false;
    this._asked += 1;
    clearTimeout(this._timer);
  }

  _renewIfSeen() {
    if (this._shows && !document.hidden) this._renew();
  }

  async _renew() {
    const asked = (this._asked += 1);
    clearTimeout(this._timer);
    try {
      const { runs } = await this._api("runs");
      if (asked !== this._asked) return;
      this._rows = runs;
      this._from = Date.now();
      if (this._failure.contains(document.activeElement)) this._refresh.focus();
      this._failure.replaceChildren();
      this._draw();
    } catch (error) {
      if (asked !== this._asked) return;
      this._tell(this._from === null ? error.message : `${error.message} The list is from ${moment(this._from)}.`);
      if (this._from === null) this._said.textContent = "";
    }
    const pause = this._rows.some(goesOn) ? LIVE_MS : REST_MS;
    this._timer = setTimeout(() => this._renewIfSeen(), pause);
  }

  _draw() {
    const shown = this._rows.slice(0, this._shown);
    const kept = new Set(shown.map((row) => row.run_id));
    for (const [id, line] of this._lines) {
      if (kept.has(id)) continue;
      line.element.remove();
      this._lines.delete(id);
    }
    shown.forEach((row, index) => {
      const line = this._lines.get(row.run_id) ?? this._line(row);
      line.show(row);
      // Only what stands elsewhere is moved: to move an element takes the focus from it.
      const there = this._list.children[index] ?? null;
      if (there !== line.element) this._list.insertBefore(line.element, there);
    });
    const live = this._rows.filter(goesOn).length;
    // Told anew only when it has changed, as a screen reader would read it out every few seconds.
    const going = live ? `${count(live)} going on` : "none going on";
    const said = this._rows.length ? `${many(this._rows.length, "run")}, ${going}` : "";
    if (this._said.textContent !== said) this._said.textContent = said;
    const left = this._rows.length - shown.length;
    this._more.textContent = `Show ${count(Math.min(PAGE, left))} more of ${count(left)}`;
    this._more.hidden = left === 0;
    this._table.hidden = this._rows.length === 0;
    this._empty.hidden = this._rows.length > 0;
  }

  _line(row) {
    const line = runLine(row, { open: this._open, stop: (stopped) => this._stop(stopped) });
    this._lines.set(row.run_id, line);
    return line;
  }

  _showMore() {
    const first = this._shown;
    this._shown += PAGE;
    this._draw();
    this._lines.get(this._rows[first].run_id).focus();
  }

  async _stop(row) {
    try {
      await this._api(`runs/${encodeURIComponent(row.run_id)}/cancel`, { method: "POST" });
    } catch (error) {
      this._lines.get(row.run_id)?.refused();
      this._tell(error.message);
      return;
    }
    if (this._shows) await this._renew();
  }

  /** The same words again are left standing, so that they are read out once. */
  _tell(message) {
    if (this._failure.firstChild?.textContent === message) return;
    const again = el("button", { type: "button", class: "small", onclick: () => this._renew() }, "Try again");
    this._failure.replaceChildren(el("p", { role: "alert" }, message), again);
  }
}

/** The row of one run: an element that is made once, and filled again with what has changed. */
function runLine(first, { open, stop }) {
  let row = first;
  let filled = null;
  const name = `the run of ${row.agent}, ${moment(row.created_at * 1000)}`;
  const opening = el(
    "button",
    { type: "button", class: "small", "aria-label": `Open ${name}`, onclick: () => open(row) },
    "Open",
  );
  const stopping = el(
    "button",
    { type: "button", class: "small runs-stop", "aria-label": `Stop ${name}`, onclick: () => press() },
    "Stop",
  );
  const cells = HEADS.map((head) => el("td", { role: "cell", "data-head": head }));
  const element = el(
    "tr",
    { role: "row" },
    ...cells,
    el("td", { role: "cell", class: "runs-buttons" }, stopping, opening),
  );

  const press = () => {
    stopping.setAttribute("aria-disabled", "true");
    stopping.textContent = "Stopping…";
    if (!stopping.dataset.pressed) stop(row);
    stopping.dataset.pressed = "yes";
  };
  const refused = () => {
    stopping.removeAttribute("aria-disabled");
    stopping.textContent = "Stop";
    delete stopping.dataset.pressed;
  };
  const show = (fresh) => {
    row = fresh;
    const parts = contents(row);
    const told = JSON.stringify(parts);
    if (told === filled) return;
    filled = told;
    element.className = `runs-row runs-${row.status}`;
    cells[0].textContent = parts.agent;
    cells[1].replaceChildren(...statusOf(row));
    cells[2].textContent = parts.started;
    cells[3].textContent = parts.lasted;
    cells[4].textContent = parts.ttft;
    cells[5].textContent = parts.tokens;
    cells[6].textContent = parts.cost;
    cells[7].replaceChildren(row.thread_id ? el("code", { title: row.thread_id }, row.thread_id) : "–");
    if (document.activeElement === stopping && !goesOn(row)) opening.focus();
    stopping.hidden = !goesOn(row);
  };
  return { element, show, refused, focus: () => opening.focus() };
}

function contents(row) {
  const { usage } = row;
  const counted = !goesOn(row) || usage.total_tokens > 0;
  const end = row.finished_at === null ? Date.now() : row.finished_at * 1000;
  return {
    agent: row.agent,
    status: row.status,
    reason: row.reason,
    started: moment((row.started_at ?? row.created_at) * 1000),
    lasted: row.started_at === null ? "–" : span(Math.max(0, end - row.started_at * 1000)),
    ttft: span(row.ttft_ms),
    // Of a model call that still goes on nothing is counted yet.
    tokens: counted
      ? `${usage.estimated ? "about " : ""}${count(usage.input_tokens)} + ${count(usage.output_tokens)}`
      : "–",
    cost: counted ? money(usage.cost_usd) : "–",
    thread: row.thread_id,
  };
}

function statusOf(row) {
  const icon = svg(
    "svg",
    { class: "runs-icon", viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" },
    svg("path", { d: ICONS[row.status] ?? ICONS.queued }),
  );
  const word = el("span", { class: "runs-status" }, status(row.status));
  // "requested" is what Stop says; any other reason is news.
  const telling = row.reason && row.reason !== "requested";
  return telling ? [icon, word, el("span", { class: "runs-reason" }, row.reason.replaceAll("_", " "))] : [icon, word];
}

function goesOn(row) {
  return row.finished_at === null;
}
