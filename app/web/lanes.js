// The lanes: a run over time, a row for each node and each tool call.
//
// What is to be drawn is known to timeline.js; here it is put on the screen. Everything of one kind is one path of one
// SVG, so a redraw costs as many attributes as there are kinds, however long the run is; only rows in sight are drawn.
// The picture has no elements to step through: the arrow keys move over the timeline's own items, what they are at is
// said in a live region, and the same items are there as a table.

import { el, put, set, svg } from "./dom.js";
import { detail, figure, summary } from "./items.js";
import { paced } from "./pace.js";
import { COLUMN, ROW, Sketch, layers, patterns, swatch } from "./sketch.js";
import { Timeline, clock, columns, nearest, ticks } from "./timeline.js";
import { many } from "./words.js";

const SPARE_ROWS = 20; // drawn above and below what is in sight, so that scrolling shows no edge
const AXIS = 22;
const RIGHT = 12; // what stands at the very end has room
const SLICE = 4000; // frames taken in one go
const LEAST_MS = 100; // between two redraws
const CALM_MS = 1000; // and where motion is not wanted and nothing has come
const POINTER = 6; // pixels around the pointer that are meant by it
const TABLE_ROWS = 400;
const TABLE = ["Lane", "What", "Start", "Duration", "More"];
const ZOOM = 2;
const CLOSEST_MS = 20;

const LEGEND = [
  ["step", "node at work"],
  ["text", "text, as dense as it came"],
  ["thought", "reasoning"],
  ["args", "arguments being written"],
  ["tool", "tool at work"],
  ["failed", "failed"],
  ["queued", "queued"],
  ["paused", "paused"],
  ["gap", "missed by this page"],
  ["first", "first piece"],
  ["retry", "asked again"],
  ["repair", "put right"],
  ["discarded", "void"],
  ["error", "error"],
  ["interrupted", "waits for a person"],
  ["finished", "end"],
];

let made = 0;

/** The lanes of a run, live and afterwards. */
export class Lanes {
  constructor(run) {
    this._run = run;
    this._line = new Timeline();
    this._taken = 0;
    this._heard = 0; // when the newest frame came, by this page's clock
    this._view = null; // {from, to} in ms, or null for the whole
    this._current = null; // {row, item}
    this._drawn = { from: 0, to: 0, first: 0, last: 0, rows: null };
    this._pace = paced(() => this._draw());
    this._calm = matchMedia("(prefers-reduced-motion: reduce)");
    this._build();
    this._watch = new ResizeObserver(() => this._pace.soon());
    this._watch.observe(this.element);
    this.update();
  }

  /** Take what has come; it is drawn soon. */
  update() {
    this._consume();
    this._pace.soon();
  }

  /** Take a slice of the frames: a long run that comes at once is taken in several, with the page at work between. */
  _consume() {
    const { frames } = this._run;
    const last = Math.min(frames.length, this._taken + SLICE);
    if (this._taken < last) this._heard = performance.now();
    for (; this._taken < last; this._taken += 1) this._line.take(frames[this._taken]);
    return this._taken === frames.length;
  }

  /** Draw no more. */
  close() {
    this._watch.disconnect();
    this._pace.close();
  }

  _build() {
    const id = (this._id = `lanes-${(made += 1)}`);
    this._paths = layers(id);
    this._around = svg("rect", { class: "lanes-current", rx: 3, visibility: "hidden" });
    this._labels = svg("g", { class: "lanes-labels" });
    this._chart = svg("svg", { class: "lanes-chart", "aria-hidden": "true" }, patterns(id), ...this._paths.values());
    this._chart.append(this._labels, this._around);
    this._axis = svg("svg", { class: "lanes-axis", "aria-hidden": "true", height: AXIS });
    this._names = el("div", { class: "lanes-names", "aria-hidden": "true" });
    this._sheet = el("div", { class: "lanes-sheet" }, this._names, this._chart);
    this._summary = el("p", { class: "lanes-summary", id: `${id}-summary` });
    this._scroll = el(
      "div",
      {
        class: "lanes-scroll",
        tabindex: "0",
        role: "group",
        "aria-label": "Timeline. The arrow keys go from item to item, plus and minus show less or more time.",
        "aria-describedby": `${id}-summary`,
        onkeydown: (event) => this._key(event),
        onpointermove: (event) => this._point(event),
        onpointerdown: (event) => this._point(event),
        onpointerleave: (event) => event.pointerType === "touch" || this._pick(null),
        onfocusout: () => this._pick(null),
        onwheel: (event) => this._wheel(event),
        onscroll: () => this._scrolled(),
      },
      el("div", { class: "lanes-top" }, this._axis),
      this._sheet,
    );
    this._scroll.style.setProperty("--lanes-row", `${ROW}px`);
    const named = { tabindex: "0", role: "group", "aria-label": "The run as a table" };
    const head = el("tr", {}, ...TABLE.map((name) => el("th", { scope: "col" }, name)));
    this._lines = el("tbody");
    this._rest = el("p", { class: "lanes-rest" });
    const table = el("table", {}, el("thead", {}, head), this._lines);
    this._table = el("div", { class: "lanes-table", hidden: true, ...named }, table, this._rest);
    this._tip = el("div", { class: "lanes-tip", "aria-hidden": "true", hidden: true });
    this._said = el("p", { class: "lanes-said", role: "status" });
    this._legend = el("ul", { class: "lanes-legend", "aria-hidden": "true" });
    this._out = button("−", { "aria-label": "Show more time", onclick: () => this._zoom(1 / ZOOM) });
    this._in = button("+", { "aria-label": "Show less time", onclick: () => this._zoom(ZOOM) });
    this._all = button("Whole run", { onclick: () => this._zoom(null) });
    this._tabular = button("Table", { "aria-pressed": "false", onclick: () => this._turn() });
    const buttons = el("div", { class: "lanes-buttons" }, this._out, this._in, this._all, this._tabular);
    this.element = el(
      "section",
      { class: "lanes", "aria-label": "Lanes" },
      el("div", { class: "lanes-head" }, this._summary, buttons),
      this._scroll,
      this._table,
      this._legend,
      this._tip,
      this._said,
    );
  }

  // Time

  get _now() {
    if (this._line.over) return this._line.end;
    return this._line.end + (this._taken ? performance.now() - this._heard : 0);
  }

  _draw() {
    if (!this._consume()) return this._pace.soon(0);
    if (!this.element.isConnected || !this.element.clientWidth) return; // whoever shows it has it observed, or updated
    const began = performance.now();
    if (this._table.hidden) this._picture();
    else this._rewrite();
    this._words();
    const least = Math.max(this._table.hidden ? LEAST_MS : CALM_MS, 8 * (performance.now() - began));
    this._pace.rest(least);
    if (!this._line.over) this._pace.soon(this._calm.matches ? Math.max(CALM_MS, least) : least);
  }

  _zoom(factor, around = null) {
    const whole = Math.max(this._now, CLOSEST_MS);
    const { from, to } = this._view ?? { from: 0, to: whole };
    const middle = around ?? this._current?.item.start ?? (from + to) / 2;
    const wide = factor === null ? whole : Math.max(CLOSEST_MS, (to - from) / factor);
    const start = Math.max(0, Math.min(whole - wide, middle - (middle - from) * (wide / (to - from))));
    this._view = wide >= whole ? null : { from: start, to: start + wide };
    this._pace.soon(0);
  }

  _pan(by) {
    if (!this._view) return;
    const { from, to } = this._view;
    const start = Math.max(0, Math.min(this._now - (to - from), from + by));
    this._view = { from: start, to: start + to - from };
    this._pace.soon(0);
  }

  // The picture

  _words() {
    set(this._summary, summary(this._line, this._run));
    const seen = LEGEND.filter(([kind]) => this._line.seen.has(kind));
    if (seen.length !== this._legend.children.length) {
      this._legend.replaceChildren(...seen.map(([kind, words]) => el("li", {}, swatch(kind, this._id), words)));
    }
    for (const one of [this._out, this._all]) put(one, "aria-disabled", String(!this._view));
  }

  _picture() {
    const rows = this._line.rows();
    const now = this._now;
    const { from, to } = this._view ?? { from: 0, to: Math.max(now, CLOSEST_MS) };
    const names = Math.round(Math.min(260, Math.max(112, this._scroll.clientWidth * 0.3)));
    const width = Math.max(40, this._scroll.clientWidth - names);
    const { scrollTop, clientHeight } = this._scroll;
    const first = Math.max(0, Math.floor(scrollTop / ROW) - SPARE_ROWS);
    const last = Math.min(rows.length, Math.ceil((scrollTop + clientHeight) / ROW) + SPARE_ROWS);
    const scale = (width - RIGHT) / (to - from);
    const x = (ms) => Math.round((ms - from) * scale * 4) / 4;
    this._drawn = { from, to, first, last, rows, names, width, scale, now };
    this._scroll.style.setProperty("--lanes-names", `${names}px`);
    this._sheet.style.setProperty("height", `${rows.length * ROW}px`);
    this._chart.style.setProperty("top", `${first * ROW}px`);
    size(this._chart, width, (last - first) * ROW);
    this._list(rows, first, last, now);
    const sketch = new Sketch(x, width, (last - first) * ROW);
    const marks = this._ruler(x, width, sketch);
    for (const item of this._line.run.items) sketch.band(item, now);
    if (this._line.first !== null) sketch.line("dash", this._line.first);
    for (let at = first; at < last; at += 1) this._row(rows[at], (at - first) * ROW, sketch, { now, from, to, width });
    for (const [layer, path] of this._paths) put(path, "d", sketch.paths[layer] ?? "");
    this._labels.replaceChildren(...sketch.labels);
    this._axis.replaceChildren(...marks);
    this._outline();
    if (this._current) this._tell(this._current);
  }

  _ruler(x, width, sketch) {
    const { from, to } = this._drawn;
    size(this._axis, width, AXIS);
    const { step, at } = ticks(from, to, Math.max(2, Math.floor(width / 72)));
    const room = width - RIGHT;
    return at.map((ms) => {
      sketch.line("grid", ms);
      const anchor = x(ms) > room - 24 ? "end" : x(ms) < 16 ? "start" : "middle";
      return svg("text", { x: Math.min(x(ms), room), y: 15, "text-anchor": anchor }, clock(ms, step));
    });
  }

  _list(rows, first, last, now) {
    while (this._names.children.length > last - first) this._names.lastChild.remove();
    while (this._names.children.length < last - first) {
      this._names.append(el("div", {}, el("span", { class: "lanes-name" }), el("span", { class: "lanes-figure" })));
    }
    for (let at = first; at < last; at += 1) {
      const row = rows[at];
      const cell = this._names.children[at - first];
      put(cell, "class", `lanes-row lanes-row-${row.kind}`);
      cell.style.setProperty("top", `${at * ROW}px`);
      cell.style.setProperty("padding-left", `${8 + Math.min(row.depth, 6) * 10}px`);
      put(cell, "title", row.name);
      set(cell.firstChild, row.name);
      set(cell.lastChild, figure(row, now));
    }
  }

  _row({ kind, lane }, top, sketch, { now, from, to, width }) {
    if (kind === "branch") return;
    for (const item of lane.items) {
      if ((item.end ?? now) >= from && item.start <= to) sketch.item(item, top, now);
    }
    if (kind !== "node") return;
    const cells = Math.floor((width - RIGHT) / COLUMN);
    for (const bins of ["thought", "text"]) {
      if (lane[bins].length) sketch.density(bins, columns(lane[bins], this._line.binMs, from, to, cells), top);
    }
  }

  _outline() {
    const found = this._current && this._box(this._current);
    put(this._around, "visibility", found ? "visible" : "hidden");
    if (!found) return;
    for (const [name, value] of Object.entries(found)) put(this._around, name, String(value));
  }

  /** Where an item is in the chart, or null where it is out of sight. */
  _box({ row, item }) {
    const { from, scale, rows, first, last, width, now } = this._drawn;
    const at = rows ? placeOf(rows, row) : -1;
    if (at < first || at >= last) return null;
    const left = Math.max(-4, (item.start - from) * scale - 2);
    const right = Math.min(width, ((item.end ?? now) - from) * scale + 2);
    if (right < 0 || left > width) return null;
    const y = (at - first) * ROW + 2;
    return { x: left, y, width: Math.max(6, right - left), height: ROW - 4 };
  }

  // The table

  _turn() {
    this._table.hidden = !this._table.hidden;
    this._scroll.hidden = this._legend.hidden = !this._table.hidden;
    put(this._tabular, "aria-pressed", String(!this._table.hidden));
    for (const one of [this._out, this._in, this._all]) one.hidden = !this._table.hidden;
    this._pick(null);
    this._pace.soon(0);
  }

  /** The table's rows are changed in place: whoever reads in it stays where they are. */
  _rewrite() {
    const all = this._line.rows().flatMap((row) => row.lane.items.map((item) => ({ row, item })));
    all.slice(0, TABLE_ROWS).forEach(({ row, item }, at) => {
      const { title, start, lasted, more } = detail(item, this._now);
      const texts = [row.name, title, start, lasted, more.map(([name, value]) => `${name}: ${value}`).join("; ")];
      const line = this._lines.children[at] ?? this._lines.appendChild(newLine());
      texts.forEach((text, column) => set(line.children[column], text));
    });
    const rest = all.length - TABLE_ROWS;
    set(this._rest, rest > 0 ? `and ${many(rest, "item")} more: the raw events have everything.` : "");
  }

  // Pointer and keys

  _point(event) {
    const { rows, names, scale, from, now } = this._drawn;
    if (!rows) return;
    const place = this._sheet.getBoundingClientRect();
    const row = rows[Math.floor((event.clientY - place.top) / ROW)];
    const top = this._scroll.getBoundingClientRect().top + AXIS;
    if (!row || event.clientY < top) return this._pick(null);
    const x = event.clientX - place.left - names;
    const whole = row.kind === "branch" || (row.kind === "tool" && x < 0);
    const near = () => (x < 0 ? null : nearest(row.lane.items, from + x / scale, POINTER / scale, now));
    const item = whole ? row.lane.items[0] : near();
    this._pick(item ? { row, item } : null, event);
  }

  _wheel(event) {
    if (event.ctrlKey) {
      event.preventDefault();
      const { scale, from, names } = this._drawn;
      const x = event.clientX - this._sheet.getBoundingClientRect().left - names;
      this._zoom(event.deltaY < 0 ? 1.25 : 0.8, from + Math.max(0, x) / scale);
    } else if (this._view && Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      this._pan(event.deltaX / this._drawn.scale);
    }
  }

  _scrolled() {
    const { rows, first, last } = this._drawn;
    const top = this._scroll.scrollTop / ROW;
    const bottom = top + this._scroll.clientHeight / ROW;
    if (rows && ((top < first && first > 0) || (bottom > last && last < rows.length))) this._pace.soon(0);
  }

  _key(event) {
    const go = KEYS[event.key];
    if (!go || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const found = go(this, this._line.rows());
    if (!found) return;
    this._see(found);
    this._pick(found);
    const { title, start, lasted, more } = detail(found.item, this._now);
    const facts = [title, `starts at ${start}`, lasted && `takes ${lasted}`, ...more.map((one) => one.join(": "))];
    set(this._said, `${found.row.name}: ${facts.filter(Boolean).join(", ")}`);
  }

  /** Have an item in sight. */
  _see({ row, item }) {
    const at = placeOf(this._line.rows(), row) * ROW;
    const { scrollTop, clientHeight } = this._scroll;
    if (at < scrollTop) this._scroll.scrollTop = at;
    else if (at + ROW + AXIS > scrollTop + clientHeight) this._scroll.scrollTop = at + ROW + AXIS - clientHeight;
    if (this._view && (item.start < this._view.from || item.start > this._view.to)) {
      this._pan(item.start - (this._view.from + this._view.to) / 2);
    }
  }

  _pick(found, event = null) {
    this._current = found;
    this._tip.hidden = !found;
    this._outline();
    if (!found) return;
    this._tell(found);
    this._placeTip(found, event);
  }

  _tell(found) {
    const { title, start, lasted, more } = detail(found.item, this._now);
    const rows = [["start", start], ["duration", lasted], ...more].filter(([, value]) => value);
    const text = [title, ...rows.flat()].join("\n");
    if (text === this._tipped) return;
    this._tipped = text;
    const facts = rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
    this._tip.replaceChildren(el("strong", {}, title), el("dl", {}, ...facts));
  }

  _placeTip(found, event) {
    const home = this.element.getBoundingClientRect();
    const sheet = this._sheet.getBoundingClientRect();
    const box = this._box(found) ?? { x: 0, y: 0, width: 0 };
    const left = event ? event.clientX : sheet.left + this._drawn.names + Math.max(0, box.x);
    const top = sheet.top + (this._drawn.first * ROW + box.y) + ROW;
    const { offsetWidth, offsetHeight } = this._tip;
    const room = document.documentElement.clientHeight;
    const below = top + offsetHeight + 6 < room;
    const y = below ? top + 4 : top - ROW - offsetHeight - 4;
    this._tip.style.setProperty("left", `${Math.max(0, Math.min(left - home.left + 8, home.width - offsetWidth))}px`);
    this._tip.style.setProperty("top", `${y - home.top}px`);
  }
}

/** The way from item to item: each gives {row, item}, or nothing where there is nowhere to go. */
const KEYS = {
  ArrowRight: (lanes, rows) => along(lanes, rows, 1),
  ArrowLeft: (lanes, rows) => along(lanes, rows, -1),
  ArrowDown: (lanes, rows) => across(lanes, rows, 1),
  ArrowUp: (lanes, rows) => across(lanes, rows, -1),
  Home: (lanes, rows) => along(lanes, rows, -Infinity),
  End: (lanes, rows) => along(lanes, rows, Infinity),
  "+": (lanes) => lanes._zoom(ZOOM),
  "-": (lanes) => lanes._zoom(1 / ZOOM),
  0: (lanes) => lanes._zoom(null),
  Escape: (lanes) => lanes._pick(null),
};

function along(lanes, rows, by) {
  if (!lanes._current) return begin(rows);
  const { row, item } = lanes._current;
  const items = row.lane.items;
  const at = Math.max(0, Math.min(items.length - 1, items.indexOf(item) + by));
  return { row, item: items[at] };
}

/** To what went on in another lane at the same time, or came next. */
function across(lanes, rows, by) {
  if (!lanes._current) return begin(rows);
  const { row, item } = lanes._current;
  for (let at = placeOf(rows, row) + by; at >= 0 && at < rows.length; at += by) {
    const { items } = rows[at].lane;
    const then = items.find(({ end }) => end === null || end >= item.start) ?? items.at(-1);
    if (then) return { row: rows[at], item: then };
  }
  return lanes._current;
}

/** Rows are made anew when there is one more; their lanes stay. */
function placeOf(rows, { lane }) {
  return rows.findIndex((row) => row.lane === lane);
}

function begin(rows) {
  const row = rows.find(({ lane }) => lane.items.length);
  return row && { row, item: row.lane.items[0] };
}

function newLine() {
  return el("tr", {}, ...TABLE.map((_, at) => el(at ? "td" : "th", at ? {} : { scope: "row" })));
}

function size(element, width, height) {
  put(element, "width", String(width));
  put(element, "height", String(height));
}

function button(label, attributes) {
  return el("button", { type: "button", class: "lanes-button", ...attributes }, label);
}
