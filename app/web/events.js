// The raw events of a run: every frame as it came, one line each, the newest at the bottom.
//
// Only the lines in sight are elements, so fifty thousand cost what fifty do. Text comes in hundreds of pieces: an
// unbroken stretch of pieces of one type is folded into one line, which opens. The list follows the newest event for as
// long as its reader is at the bottom, and never takes the reader's place away.

import { download, el, put, set } from "./dom.js";
import { paced } from "./pace.js";
import { count, many } from "./words.js";

const LINE = 22;
const SPARE = 8;
const SLICE = 10_000; // frames taken in one go
const LEAST_MS = 100;
const SHOWN = 240; // letters of an event's JSON in its line
const LONGEST = 60_000; // and in its detail
const FOLDED = new Set(["token", "reasoning", "tool.args"]);

let made = 0;

/** The raw events of a run, live and afterwards. */
export class Events {
  constructor(run) {
    this._run = run;
    this._taken = 0;
    this._lines = []; // see newLine
    this._hits = 0;
    this._words = null; // {wanted, unwanted}, or null for no filter
    this._open = new Set(); // the first frames of stretches that are unfolded
    this._flat = false; // all stretches are
    this._active = -1;
    this._shown = null; // the line whose detail is open
    this._following = !run.over;
    this._rows = new Map(); // the elements of the lines in sight
    this._pace = paced(() => this._draw());
    this._build();
    this._watch = new ResizeObserver(() => this._pace.soon(0));
    this._watch.observe(this._scroll);
    this.update();
  }

  /** Take what has come; it is drawn soon. */
  update() {
    this._consume();
    this._pace.soon();
  }

  /** Take a slice of the frames: a long run that comes at once is taken in several, with the page at work between. */
  _consume() {
    const { length } = this._run.frames;
    const last = Math.min(length, this._taken + SLICE);
    for (; this._taken < last; this._taken += 1) this._take(this._taken);
    return this._taken === length;
  }

  /** Draw no more. */
  close() {
    this._watch.disconnect();
    this._pace.close();
  }

  _build() {
    this._id = `events-${(made += 1)}`;
    this._filter = el("input", {
      type: "search",
      class: "events-filter",
      placeholder: "Filter: tool, -token …",
      "aria-label": "Show events whose type or node has one of these words; a minus before a word leaves them out",
      title: "Words of the type or the node. A minus before a word leaves out what has it.",
      spellcheck: "false",
      autocomplete: "off",
      oninput: () => this._refilter(),
    });
    this._fold = el("input", { type: "checkbox", checked: true, onchange: () => this._unfoldAll() });
    const fold = el("label", { class: "events-fold" }, this._fold, "fold text");
    this._count = el("span", { class: "events-count" });
    const save = button("Download JSONL", () => this._download());
    this._list = el("div", { class: "events-list", role: "presentation" });
    this._scroll = el(
      "div",
      {
        class: "events-scroll",
        tabindex: "0",
        role: "tree",
        "aria-label": "Raw events",
        onscroll: () => this._scrolled(),
        onkeydown: (event) => this._key(event),
        onclick: (event) => this._click(event),
      },
      this._list,
    );
    this._newest = button("↓ Newest", () => this._follow());
    this._newest.hidden = true;
    this._newest.classList.add("events-newest");
    this._detail = el("section", { class: "events-detail", "aria-label": "One event", hidden: true });
    this.element = el(
      "section",
      { class: "events", "aria-label": "Events" },
      el("div", { class: "events-head" }, this._filter, fold, this._count, save),
      el("div", { class: "events-names", "aria-hidden": "true" }, ...newCells("", "id", "ms", "type", "node", "data")),
      el("div", { class: "events-body" }, this._scroll, this._newest),
      this._detail,
    );
  }

  // Lines

  _take(at) {
    const frame = this._run.frames[at];
    if (!this._hit(frame)) return;
    this._hits += 1;
    const last = this._lines.at(-1);
    const follows = last && FOLDED.has(frame.event) && last.type === frame.event && last.at + last.count === at;
    if (follows && last.head) {
      longer(last.head, frame); // a stretch that is open grows by a line
      this._lines.push(newLine(at, frame, last.head));
    } else if (follows && !this._flat) {
      longer(last, frame);
      if (this._open.has(last.at)) this._lines.push(...this._pieces(last));
    } else {
      this._lines.push(newLine(at, frame));
    }
  }

  _pieces(head) {
    return Array.from({ length: head.count }, (_, by) => newLine(head.at + by, this._run.frames[head.at + by], head));
  }

  _hit({ event, data }) {
    if (!this._words) return true;
    const text = `${event} ${where(data)}`.toLowerCase();
    const { wanted, unwanted } = this._words;
    const has = (word) => text.includes(word);
    return (!wanted.length || wanted.some(has)) && !unwanted.some(has);
  }

  _refilter() {
    const words = this._filter.value
      .toLowerCase()
      .split(/[\s,]+/)
      .filter((word) => word && word !== "-");
    const wanted = words.filter((word) => word[0] !== "-");
    const unwanted = words.filter((word) => word[0] === "-").map((word) => word.slice(1));
    this._words = words.length ? { wanted, unwanted } : null;
    this._again();
  }

  _unfoldAll() {
    this._flat = !this._fold.checked;
    this._open.clear();
    this._again();
  }

  /** Make the lines anew; what was active stays so, and in its place, if it is still there. */
  _again() {
    const active = this._lines[this._active];
    const above = active ? this._active * LINE - this._scroll.scrollTop : 0;
    this._lines = [];
    this._hits = 0;
    for (let at = 0; at < this._taken; at += 1) this._take(at);
    this._active = active ? this._placeOf(active) : -1;
    this._list.style.setProperty("height", `${this._lines.length * LINE}px`);
    if (this._active >= 0 && !this._following) this._scroll.scrollTop = this._active * LINE - above;
    this._pace.soon(0);
  }

  /** Where a line is now, or what has taken it in; -1 where it is filtered out. */
  _placeOf({ at, head }) {
    const holds = (line) => line.at <= at && at < line.at + line.count;
    const same = this._lines.findIndex((line) => holds(line) && !line.head === !head);
    return same >= 0 ? same : this._lines.findIndex(holds);
  }

  _toggle(line, open = !this._open.has(line.at)) {
    if (line.head || line.count < 2 || open === this._open.has(line.at)) return;
    if (open) this._open.add(line.at);
    else this._open.delete(line.at);
    this._active = this._lines.indexOf(line);
    this._following = false; // what is opened stays where it is, also at the end of the list
    this._again();
    this._following = this._bottom();
  }

  // Drawing

  _draw() {
    if (!this._consume()) return this._pace.soon(0);
    if (!this._scroll.clientHeight) return;
    const height = this._lines.length * LINE;
    this._list.style.setProperty("height", `${height}px`);
    if (this._following) this._scroll.scrollTop = height;
    this._newest.hidden = this._run.over || this._following || this._bottom();
    const { length } = this._run.frames;
    set(this._count, this._words ? `${count(this._hits)} of ${many(length, "event")}` : many(length, "event"));
    put(this._scroll, "aria-busy", this._lines.length ? null : "true");
    this._window();
    this._pace.rest(LEAST_MS);
  }

  _window() {
    const { scrollTop, clientHeight } = this._scroll;
    const first = Math.max(0, Math.floor(scrollTop / LINE) - SPARE);
    const last = Math.min(this._lines.length, Math.ceil((scrollTop + clientHeight) / LINE) + SPARE);
    const kept = new Map();
    const spare = [];
    for (const [at, row] of this._rows) {
      if (at >= first && at < last) kept.set(at, row);
      else spare.push(row);
    }
    // A line keeps its element while it is in sight: where one line comes, one line changes.
    let below = null;
    for (let at = last - 1; at >= first; at -= 1) {
      const row = kept.get(at) ?? spare.pop() ?? newRow();
      if (!kept.has(at)) this._list.insertBefore(row.element, below);
      kept.set(at, row);
      this._row(row, at);
      below = row.element;
    }
    for (const row of spare) row.element.remove();
    this._rows = kept;
    const shown = this._active >= first && this._active < last;
    put(this._scroll, "aria-activedescendant", shown ? `${this._id}-${this._active}` : null);
  }

  _row(row, at) {
    const line = this._lines[at];
    const { frames } = this._run;
    const frame = frames[line.at];
    const long = line.count > 1;
    const open = this._open.has(line.at);
    const { element, cells } = row;
    element.style.setProperty("top", `${at * LINE}px`);
    put(element, "id", `${this._id}-${at}`);
    put(element, "class", `events-line${toneOf(frame)}${line.head ? " events-piece" : ""}`);
    put(element, "aria-level", line.head ? "2" : "1");
    put(element, "aria-setsize", String(this._lines.length));
    put(element, "aria-posinset", String(at + 1));
    put(element, "aria-selected", String(at === this._active));
    put(element, "aria-expanded", long ? String(open) : null);
    const twist = open ? "▾" : "▸";
    const texts = [long ? twist : "", frame.id ?? "", this._time(frame)];
    texts.push(long ? `${frame.event} × ${count(line.count)}` : frame.event);
    const source = line.type === "tool.args" ? "call" : "message";
    texts.push(line.sources ? many(line.sources.size, source) : where(frame.data));
    texts.push(long ? toldOf(frames, line) : jsonOf(frame));
    texts.forEach((text, place) => set(cells[place], String(text)));
  }

  /** When an event was, in ms since the run started; a gap is dated when it is told, and has no moment of its own. */
  _time({ event, data }) {
    if (event === "gap" || this._run.startedAt === null || data.ts === undefined) return "–";
    return count(data.ts - this._run.startedAt);
  }

  _bottom() {
    const { scrollTop, clientHeight, scrollHeight } = this._scroll;
    return scrollTop + clientHeight >= scrollHeight - LINE;
  }

  _scrolled() {
    this._following = this._bottom();
    this._pace.soon(0);
  }

  _follow() {
    this._following = true;
    this._scroll.focus({ preventScroll: true });
    this._pace.soon(0);
  }

  // Keys, clicks, one event

  _key(event) {
    const to = this._goal(event.key);
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const line = this._lines[this._active];
    if (to !== null) this._go(to);
    else if ((event.key === "Enter" || event.key === " ") && line) this._show(line);
    else if (event.key === "ArrowRight" && line) this._toggle(line, true);
    else if (event.key === "ArrowLeft" && line?.head) this._go(this._lines.indexOf(line.head));
    else if (event.key === "ArrowLeft" && line) this._toggle(line, false);
    else if (event.key === "Escape" && this._shown) this._hide();
    else return;
    event.preventDefault();
  }

  /** The line that a key leads to, or null for a key that leads nowhere. */
  _goal(key) {
    const page = Math.max(1, Math.floor(this._scroll.clientHeight / LINE) - 1);
    const end = this._lines.length - 1;
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[key];
    if (by === undefined || end < 0) return null;
    const from = this._active >= 0 ? this._active : Math.floor(this._scroll.scrollTop / LINE) - Math.sign(by);
    return Math.max(0, Math.min(end, from + by));
  }

  _go(at) {
    this._active = at;
    const top = at * LINE;
    const { scrollTop, clientHeight } = this._scroll;
    if (top < scrollTop) this._scroll.scrollTop = top;
    else if (top + LINE > scrollTop + clientHeight) this._scroll.scrollTop = top + LINE - clientHeight;
    this._following = this._bottom() && at === this._lines.length - 1;
    this._window();
    if (this._shown) this._show(this._lines[at]);
  }

  _click(event) {
    const element = event.target.closest(".events-line");
    if (!element) return;
    this._active = Number(element.id.slice(this._id.length + 1));
    const line = this._lines[this._active];
    if (event.target.classList.contains("events-twist") && line.count > 1) this._toggle(line);
    else this._show(line);
    this._window();
  }

  _show(line) {
    const frames = this._run.frames.slice(line.at, line.at + line.count);
    const [frame] = frames;
    const long = frames.length > 1;
    const ids = long ? `ids ${frame.id} to ${frames.at(-1).id}` : `id ${frame.id ?? "–"}`;
    const title = `${frame.event}${long ? ` × ${count(line.count)}` : ""}, ${ids}`;
    const text = long ? said(frames).join("\n\n") : JSON.stringify(frame, null, 2);
    const raw = () => (long ? frames.map((one) => JSON.stringify(one)).join("\n") : text);
    const pre = el("pre", { tabindex: "0", role: "group", "aria-label": title }, cut(text, LONGEST));
    const note = el("span", { class: "events-said", role: "status" });
    const copy = button("Copy JSON", () => copied(raw(), pre, note));
    const close = button("Close", () => this._hide());
    this._detail.replaceChildren(el("div", { class: "events-title" }, el("strong", {}, title), note, copy, close), pre);
    this._shown = line;
    if (!this._detail.hidden) return;
    this._detail.hidden = false;
    this._detail.scrollIntoView({ block: "nearest" });
  }

  _hide() {
    this._detail.hidden = true;
    this._shown = null;
    this._scroll.focus({ preventScroll: true });
  }

  _download() {
    download(`run-${this._run.runId}.jsonl`, "application/jsonl", this._run.jsonl());
  }
}

async function copied(text, pre, note) {
  try {
    await navigator.clipboard.writeText(text);
    note.textContent = "Copied.";
  } catch {
    // Without https there is no clipboard to write to, on any address but this machine's own.
    getSelection().selectAllChildren(pre);
    note.textContent = "Selected: press Ctrl+C.";
  }
}

function button(label, onclick) {
  return el("button", { type: "button", class: "events-button", onclick }, label);
}

function newCells(...texts) {
  const names = ["twist", "id", "time", "type", "where", "json"];
  return names.map((name, at) => el("span", { class: `events-${name}` }, texts[at]));
}

function newRow() {
  const cells = newCells();
  return { element: el("div", { class: "events-line", role: "treeitem" }, ...cells), cells };
}

/** A line: `count` frames from `at` on. A piece of a stretch that is open has that one's line as its `head`. */
function newLine(at, frame, head = null) {
  return { at, count: 1, type: frame.event, head, of: sourceOf(frame), sources: null, told: null };
}

function longer(line, frame) {
  line.count += 1;
  const source = sourceOf(frame);
  if (source === line.of) return;
  line.sources ??= new Set([line.of]);
  line.sources.add(source);
}

function sourceOf({ data }) {
  return data.message_id ?? data.call_id;
}

/** The node, then the subgraphs around it, as there may be room for one; of their ids what tells them apart. */
function where({ node = "", namespace }) {
  if (!namespace?.length) return node;
  const path = namespace.map((one) => one.replace(/:(.{4}).*/, ":$1"));
  return [node, ...path.reverse()].filter(Boolean).join(" ‹ ");
}

const written = new WeakMap();

/** An event's data in one line, without what has a column of its own. */
function jsonOf(frame) {
  let text = written.get(frame);
  if (text === undefined) {
    const { ts, node, namespace, ...data } = frame.data;
    text = cut(JSON.stringify(data), SHOWN);
    written.set(frame, text);
  }
  return text;
}

function textOf({ data }) {
  return data.text ?? data.delta ?? "";
}

/** What each message, or each call, says in a stretch. */
function said(frames) {
  const texts = new Map();
  for (const frame of frames) texts.set(sourceOf(frame), (texts.get(sourceOf(frame)) ?? "") + textOf(frame));
  return [...texts.values()];
}

/** The beginning of that, in one line. */
function toldOf(frames, line) {
  const first = Math.min(line.count, SHOWN);
  if (line.told?.count !== first) {
    const few = said(frames.slice(line.at, line.at + first));
    const text = few.map((one) => `“${cut(one, SHOWN).replace(/\s+/g, " ")}”`).join(" ");
    line.told = { count: first, text };
  }
  return line.told.text;
}

function cut(text, most) {
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

function toneOf({ event, data }) {
  if (event === "error" || data.status === "error" || data.status === "failed") return " events-bad";
  return event === "gap" ? " events-warn" : "";
}
