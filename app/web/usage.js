// What was spent, of GET /usage, as figures, pictures and tables; and how long one's runs let one wait, of GET /runs.
//
// Every number of a picture stands in a table below it too. A price that nobody knows and a count that is an estimate
// are called so in words; of the simulated model it is said that no money was spent.

import { counts, dayColumns, daysFrom, dollars, histogram, partsBar, quantile } from "./charts.js";
import { el } from "./dom.js";
import { count, many, money, span } from "./words.js";

const PERIODS = [7, 30, 90];
const LOOKS = ["a", "b", "c", "d"]; // of the models, the largest first; what remains is told together
const SIMULATED = "simulated";

const ENDINGS = [
  { kind: "completed", name: "completed", look: "saved", hatched: false },
  { kind: "cancelled", name: "stopped", look: "cost", hatched: false },
  { kind: "interrupted", name: "waiting for you", look: "a", hatched: true },
  { kind: "timed_out", name: "out of time", look: "d", hatched: true },
  { kind: "failed", name: "failed", look: "d", hatched: false },
];

/** The view of what one has spent. `api`: asks the server, see main.js. */
export class UsageView {
  constructor(api) {
    this._api = api;
    this._period = 30;
    this._agent = "";
    this._asked = 0;
    this._body = el("div", { class: "usage-body", tabindex: -1 });
    this._periods = PERIODS.map((days) =>
      el(
        "button",
        { type: "button", class: "small", onclick: () => this._choose(days), "aria-pressed": days === this._period },
        `${days} days`,
      ),
    );
    const again = el("button", { type: "button", class: "small", onclick: () => this.show() }, "Refresh");
    this.element = el(
      "div",
      { class: "usage" },
      el(
        "div",
        { class: "usage-head" },
        el("h2", {}, "Usage"),
        el("div", { class: "usage-periods", role: "group", "aria-label": "How far back" }, ...this._periods),
        again,
      ),
      this._body,
    );
  }

  /** Ask and draw. */
  async show() {
    const asked = (this._asked += 1);
    PERIODS.forEach((days, index) => this._periods[index].setAttribute("aria-pressed", String(days === this._period)));
    if (!this._body.hasChildNodes()) this._body.append(el("p", { class: "usage-quiet" }, "Adding it up…"));
    this._body.setAttribute("aria-busy", "true");
    const drawn = await this._ask().catch((error) => [this._failed(error)]);
    if (asked !== this._asked) return; // another period was chosen meanwhile, or another view
    this._body.removeAttribute("aria-busy");
    const within = this._body.contains(document.activeElement);
    this._body.replaceChildren(...drawn);
    if (within) this._body.focus(); // the button that was pressed there is gone
  }

  /** Let go of an answer that is still to come. */
  hide() {
    this._asked += 1;
  }

  async _ask() {
    const days = this._period;
    const [usage, { runs }] = await Promise.all([this._api(`usage?days=${days}`), this._api("runs")]);
    if (usage.days.length === 0) return [this._nothing(days), todayPanel(usage.today)];
    return [
      notes(usage.total),
      figures(usage.total),
      el(
        "div",
        { class: "usage-panels" },
        tokensPanel(usage, days),
        costPanel(usage, days),
        stoppedPanel(usage, days),
        el("div", { class: "usage-column" }, this._waitPanel(runs), todayPanel(usage.today)),
      ),
      tables(usage),
    ];
  }

  _choose(days) {
    this._period = days;
    this.show();
  }

  _failed(error) {
    const again = el("button", { type: "button", class: "small", onclick: () => this.show() }, "Try again");
    return el("div", { class: "usage-failed", role: "alert" }, el("p", {}, error.message), again);
  }

  _nothing(days) {
    const further = PERIODS.find((one) => one > days);
    return el(
      "div",
      { class: "usage-empty" },
      el("p", {}, el("b", {}, `Nothing was spent in the last ${days} days.`)),
      el(
        "p",
        {},
        "Ask an agent something: the tokens, their cost and how long you waited are shown here when it has answered.",
      ),
      further
        ? el(
            "button",
            { type: "button", class: "small", onclick: () => this._choose(further) },
            `Look ${further} days back`,
          )
        : null,
    );
  }

  _waitPanel(runs) {
    const heard = runs.filter((run) => run.ttft_ms !== null);
    const agents = [...new Set(heard.map((run) => run.agent))].sort();
    if (!agents.includes(this._agent)) this._agent = "";
    const picture = el("div");
    const draw = () => {
      const values = heard.filter((run) => !this._agent || run.agent === this._agent).map((run) => run.ttft_ms);
      picture.replaceChildren(...waiting(values));
    };
    const choose = (event) => {
      this._agent = event.target.value;
      draw();
    };
    const options = ["", ...agents].map((agent) =>
      el("option", { value: agent, selected: agent === this._agent }, agent || "every agent"),
    );
    draw();
    const choice = el("label", { class: "usage-choice" }, "of ", el("select", { onchange: choose }, ...options));
    return panel("Time to the first token", agents.length > 1 ? choice : null, picture);
  }
}

// In words and figures

function notes(total) {
  const told = [simulatedNote(total), unpricedNote(total), estimatedNote(total)].filter((note) => note !== null);
  return el("div", { class: "usage-notes" }, ...told.map((note) => el("p", {}, note)));
}

function simulatedNote({ models }) {
  const simulated = models.find((row) => row.model === SIMULATED);
  if (!simulated) return null;
  if (models.length === 1) {
    return "Answers are simulated: no money was spent. The cost is what the default model would have come to.";
  }
  const part = `${many(simulated.total_tokens, "token")} and ${money(simulated.cost_usd)}`;
  return `${part} of this are simulated: no money was spent on them.`;
}

function unpricedNote({ calls, unpriced_calls: unpriced }) {
  if (unpriced === 0) return null;
  const which = `The price of ${count(unpriced)} of ${many(calls, "model call")} is not known`;
  return `${which}, so the cost is that of the others. Name your own prices in the file of MILLRACE_PRICES_FILE.`;
}

function estimatedNote({ calls, estimated_calls: estimated }) {
  if (estimated === 0) return null;
  const which = `The tokens of ${count(estimated)} of ${many(calls, "model call")} are estimated`;
  return `${which}: those answers were cut before the provider told its own numbers.`;
}

function figures(total) {
  const { cancelled } = total;
  const runs = allRuns(total.runs);
  const others = ENDINGS.filter(({ kind }) => kind !== "cancelled" && total.runs[kind]);
  const rows = [
    ["Tokens", count(total.total_tokens), `${count(total.input_tokens)} in, ${count(total.output_tokens)} out`],
    ["Cost", cost(total, "≥"), costAside(total)],
    ["Runs", count(runs), others.map(({ kind, name }) => `${count(total.runs[kind])} ${name}`).join(", ")],
    ["Stopped", percent(cancelled.runs, runs), `${count(cancelled.runs)} of ${many(runs, "run")}`],
    ["Saved by stopping", savedMoney(cancelled), `about ${many(cancelled.saved_tokens, "token")}`],
  ];
  return el(
    "dl",
    { class: "usage-figures" },
    ...rows.map(([name, value, aside]) =>
      el(
        "div",
        {},
        el("dt", {}, name),
        el("dd", { class: "usage-figure" }, value),
        el("dd", { class: "usage-quiet" }, aside),
      ),
    ),
  );
}

function costAside({ models, cost_usd: dollarsSpent, total_tokens: tokens, unpriced_calls: unpriced }) {
  if (models.length && models.every((row) => row.model === SIMULATED)) return "simulated, not spent";
  if (unpriced) return `${many(unpriced, "call")} without a price`;
  return tokens ? `${money((dollarsSpent / tokens) * 1e6)} a million tokens` : "";
}

/** What calls cost: a lower bound, and called so, where a price is missing. */
function cost({ cost_usd: known, unpriced_calls: calls, unpriced_runs: runs }, bound = "at least") {
  return known !== null && (calls || runs) ? `${bound} ${money(known)}` : money(known);
}

function savedMoney({ saved_usd: saved, saved_tokens: tokens }) {
  if (saved === null) return money(saved);
  return tokens ? `≈ ${money(saved)}` : "$0";
}

function allRuns(runs) {
  return Object.values(runs).reduce((sum, number) => sum + number, 0);
}

function percent(part, whole) {
  return whole ? `${Math.round((part / whole) * 100)} %` : "–";
}

// Pictures

function panel(title, aside, ...content) {
  const heading = el("div", { class: "usage-panel-head" }, el("h3", {}, title), aside);
  return el("section", { class: "usage-panel", "aria-label": title }, heading, ...content);
}

function tokensPanel(usage, period) {
  const { groups, of } = models(usage);
  const one = (name, hatched) => (group, index) => ({ group, name, look: LOOKS[index] ?? "e", hatched });
  const series = [...groups.map(one("in", true)), ...groups.map(one("out", false))];
  const values = (sums) =>
    ["input_tokens", "output_tokens"].flatMap((name) => of(sums).map((rows) => added(rows, name)));
  return panel(
    "Tokens a day",
    null,
    byDay(usage, period, { label: "Tokens a day", series, values, axis: counts, told: count }),
  );
}

function costPanel(usage, period) {
  const { groups, of } = models(usage);
  const series = groups.map((group, index) => ({ group, name: "", look: LOOKS[index] ?? "e", hatched: false }));
  const values = (sums) => of(sums).map((rows) => added(rows, "cost_usd"));
  return panel(
    "Cost a day",
    null,
    byDay(usage, period, { label: "Cost a day", series, values, axis: dollars, told: money }),
  );
}

function stoppedPanel(usage, period) {
  const { runs, cancelled } = usage.total;
  const ended = ENDINGS.filter(({ kind }) => runs[kind]).map((ending) => ({
    ...ending,
    value: runs[ending.kind],
    told: count(runs[ending.kind]),
  }));
  const series = [
    { group: "spent until the stop", name: "", look: "cost", hatched: false },
    { group: "saved, about", name: "", look: "saved", hatched: true },
  ];
  const values = (sums) => [sums?.cancelled.total_tokens ?? 0, sums?.cancelled.saved_tokens ?? 0];
  const label = "Tokens of stopped runs, and those that stopping saved, a day";
  const picture = { label, series, values, axis: counts, told: count };
  return panel(
    "Stopped runs, and what stopping saved",
    null,
    el("p", {}, stoppedInWords(cancelled)),
    partsBar({ label: "How runs ended", parts: ended }),
    cancelled.runs ? byDay(usage, period, picture) : null,
  );
}

function stoppedInWords(cancelled) {
  const { runs, total_tokens: tokens, saved_tokens: saved, saved_usd: dollarsSaved } = cancelled;
  if (runs === 0) return "No run was stopped. Stopping an answer ends its cost too; what that saves is shown here.";
  const spent = `${many(runs, "stopped run")} came to ${many(tokens, "token")} (${cost(cancelled)}).`;
  if (saved === 0) return `${spent} What that saved can be told once other answers of the agent came to their end.`;
  return `${spent} Let through, they would have come to about ${many(saved, "token")} more (${money(dollarsSaved)}).`;
}

function waiting(values) {
  if (values.length === 0) {
    const words = "No run of yours has said anything yet. How long each let you wait is shown here.";
    return [el("p", { class: "usage-quiet" }, words)];
  }
  const marks = [
    { name: "p50", value: quantile(values, 0.5) },
    { name: "p99", value: quantile(values, 0.99) },
  ];
  const [half, most] = marks.map((mark) => span(mark.value));
  const noun = (number) => (number === 1 ? "run" : "runs");
  const words = `Of ${many(values.length, "run")}, half began to answer within ${half} (p50), `;
  return [
    el("p", {}, words, values.length < 100 ? `all within ${most} (p99).` : `99 of 100 within ${most} (p99).`),
    histogram({ label: "Runs by their time to the first token", values, marks, told: span, noun }),
  ];
}

function todayPanel(today) {
  const meters = [
    ["Tokens", today.tokens, today.tokens_per_day, count],
    ["Cost", today.cost_usd, today.cost_per_day_usd, money],
  ];
  const limited = meters.some(([, , most]) => most !== null);
  const words = limited ? renewal(today.resets_in_s) : "Nothing limits what you may spend in a day.";
  const told = meters.map(([name, spent, most, inWords]) => meter(name, spent, most, inWords));
  return panel(limited ? "Today’s budget" : "Today", null, ...told, el("p", { class: "usage-quiet" }, words));
}

function renewal(seconds) {
  const here = new Date(Date.now() + seconds * 1000).toLocaleTimeString("en-GB", { timeStyle: "short" });
  return `The budget is renewed in ${span(seconds * 1000)}, at 00:00 UTC (${here} here).`;
}

function meter(name, spent, most, told) {
  if (most === null)
    return el(
      "p",
      { class: "usage-meter-line" },
      `${name} `,
      el("b", {}, told(spent)),
      el("span", { class: "usage-quiet" }, " no limit"),
    );
  const state = spent >= most ? "used up" : spent >= 0.8 * most ? "nearly used up" : `${told(most - spent)} left`;
  const look = spent >= most ? "over" : spent >= 0.8 * most ? "near" : "fine";
  const bar = el("span", { class: "usage-meter-bar" });
  bar.style.setProperty("width", `${Math.min(100, (spent / most) * 100)}%`);
  const text = `${told(spent)} of ${told(most)}, ${state}`;
  const range = {
    "aria-valuemin": 0,
    "aria-valuemax": most,
    "aria-valuenow": Math.min(spent, most),
    "aria-valuetext": text,
  };
  return el(
    "div",
    { class: "usage-meter" },
    el(
      "p",
      { class: "usage-meter-line" },
      `${name} `,
      el("b", {}, told(spent)),
      ` of ${told(most)} `,
      el("span", { class: `usage-state usage-${look}` }, state),
    ),
    el(
      "div",
      { class: `usage-meter-room usage-${look}`, role: "meter", "aria-label": `${name} of today’s budget`, ...range },
      bar,
    ),
  );
}

function byDay(usage, period, { values, ...picture }) {
  const found = new Map(usage.days.map((day) => [day.day, day]));
  const days = daysFrom(usage.since, period).map((day, index) => ({
    name: `${dated(day, { weekday: "short", day: "numeric", month: "long" })}${index === period - 1 ? ", so far" : ""}`,
    short: dated(day, { day: "numeric", month: "short" }),
    values: values(found.get(day)),
  }));
  return dayColumns({ ...picture, days, all: `All ${period} days`, sums: values(usage.total) });
}

/** The models that pictures tell apart, and of a day's sums (or of none) the rows of each. */
function models({ total }) {
  const ranked = [...total.models].sort((one, other) => other.total_tokens - one.total_tokens).map((row) => row.model);
  const few = ranked.length > LOOKS.length + 1 ? ranked.slice(0, LOOKS.length) : ranked;
  const rest = ranked.filter((model) => !few.includes(model));
  const groups = rest.length ? [...few, `${rest.length} others`] : few;
  const of = (sums) => {
    const rows = sums?.models ?? [];
    const named = few.map((model) => rows.filter((row) => row.model === model));
    return rest.length ? [...named, rows.filter((row) => rest.includes(row.model))] : named;
  };
  return { groups, of };
}

/** The sum of what is known; null where nothing of it is. */
function added(rows, name) {
  const known = rows.map((row) => row[name]).filter((value) => value !== null);
  return rows.length && !known.length ? null : known.reduce((sum, value) => sum + value, 0);
}

function dated(day, form) {
  return new Date(`${day}T00:00:00Z`).toLocaleDateString("en-GB", { ...form, timeZone: "UTC" });
}

// Tables

function tables({ total, days }) {
  const models = ["model", "calls", "tokens in", "of them cached", "tokens out", "of them reasoning", "cost"];
  const agents = ["agent", "runs", "stopped", "calls", "tokens in", "tokens out", "cost"];
  const daily = [
    "day (UTC)",
    "runs",
    "stopped",
    "tokens in",
    "tokens out",
    "cost",
    "stopped runs’ tokens",
    "saved, about",
  ];
  return el(
    "div",
    { class: "usage-tables" },
    table(
      "By model",
      models,
      total.models.map((row) => [row.model, count(row.calls), ...inAndOut(row), cost(row)]),
    ),
    table(
      "By agent",
      agents,
      total.agents.map((row) => [row.agent, ...runsOf(row), count(row.calls), ...tokens(row), cost(row)]),
    ),
    folded("By day, as a table", () => table("By day", daily, days.map(dayRow))),
  );
}

function dayRow(row) {
  const { total_tokens: stopped, saved_tokens: saved } = row.cancelled;
  return [row.day, ...runsOf(row), ...tokens(row), cost(row), count(stopped), count(saved)];
}

/** What is long and seldom wanted is made when it is opened. */
function folded(title, make) {
  const details = el("details", { class: "usage-days" }, el("summary", {}, title));
  details.addEventListener("toggle", () => details.append(make()), { once: true });
  return details;
}

function inAndOut(row) {
  return [row.input_tokens, row.cached_tokens, row.output_tokens, row.reasoning_tokens].map(count);
}

function tokens(row) {
  return [count(row.input_tokens), count(row.output_tokens)];
}

function runsOf({ runs }) {
  return [count(allRuns(runs)), count(runs.cancelled ?? 0)];
}

function table(caption, heads, rows) {
  const row = ([name, ...cells]) =>
    el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, cell)));
  return el(
    "div",
    { class: "usage-scroll", role: "region", "aria-label": caption, tabindex: 0 },
    el(
      "table",
      { class: "usage-table" },
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, ...rows.map(row)),
    ),
  );
}
