// What the lanes look like: shapes for items, gathered into one path for each kind of thing.

import { svg } from "./dom.js";
import { count, many, span } from "./words.js";

/** The height of a row, and the width of one bar of text, in pixels. */
export const ROW = 22;
export const COLUMN = 2;

/** From the back to the front. */
const LAYERS = [
  "grid",
  "band-paused",
  "band-gap",
  "step",
  "message",
  "thought",
  "text",
  "void",
  "wait",
  "args",
  "tool",
  "failed",
  "hatch",
  "queued",
  "paused",
  "gap",
  "dash",
  "retry",
  "repair",
  "discarded",
  "error",
  "interrupted",
  "first",
  "finished",
];

const HATCHED = { void: "void", hatch: "failed", "band-gap": "gap", gap: "gap" };

/** An empty path for each layer, from the back to the front. */
export function layers(id) {
  return new Map(LAYERS.map((layer) => [layer, newPath(id, layer)]));
}

function newPath(id, layer, d = null) {
  const fill = HATCHED[layer] ? `url(#${id}-${HATCHED[layer]})` : null;
  return svg("path", { class: `lanes-${layer}`, fill, d });
}

/** The paths of one drawing, by layer, and the few texts in it. `x` puts a moment in its place. */
export class Sketch {
  constructor(x, width, height) {
    this.x = x;
    this.width = width;
    this.height = height;
    this.paths = {};
    this.labels = [];
  }

  add(layer, path) {
    this.paths[layer] = (this.paths[layer] ?? "") + path;
  }

  box(layer, start, end, top, height, least = 1) {
    const left = Math.max(0, this.x(start));
    const right = Math.min(this.width, Math.max(this.x(end), left + least));
    if (right > left) this.add(layer, `M${left} ${top}H${right}V${top + height}H${left}Z`);
    return right - left;
  }

  line(layer, at) {
    const x = this.x(at);
    if (x >= 0 && x <= this.width) this.add(layer, `M${x} 0V${this.height}`);
  }

  band({ kind, start, end }, now) {
    if (kind === "paused" || kind === "gap") this.box(`band-${kind}`, start, end ?? now, 0, this.height, 2);
  }

  item(item, top, now) {
    DRAWN[item.kind]?.(this, item, top, item.end ?? now);
  }

  label(start, top, wide, texts) {
    const text = texts.find((one) => one.length * 6.2 + 8 < wide);
    if (text) this.labels.push(svg("text", { x: Math.max(0, this.x(start)) + 4, y: top + 15 }, text));
  }

  /** The height of a column goes by the root of its letters, so that one big piece leaves the others to be seen. */
  density(layer, cells, top) {
    let most = 0;
    for (const letters of cells) most = Math.max(most, letters);
    if (!most) return;
    let path = "";
    cells.forEach((letters, at) => {
      if (!letters) return;
      const tall = Math.round(4 + 9 * Math.sqrt(letters / most));
      path += `M${at * COLUMN} ${top + 18}v${-tall}h${COLUMN}v${tall}z`;
    });
    this.add(layer, path);
  }
}

const DRAWN = {
  step: (sketch, { start }, top, end) => sketch.box("step", start, end, top + 3, 16),
  message: (sketch, { start, discarded }, top, end) => {
    sketch.box("message", start, end, top + 18, 1.5, 2);
    if (discarded) sketch.box("void", start, end, top + 3, 16, 4);
  },
  tool: (sketch, { start, written, started, status: told }, top, end) => {
    const writing = started ?? end;
    sketch.box("args", start, Math.min(written, writing), top + 6, 10, 2);
    sketch.box("wait", written, writing, top + 10, 2, 0);
    const failed = told === "error";
    if (started !== null) sketch.box(failed ? "failed" : "tool", started, end, top + 6, 10, 3);
    if (failed) sketch.box("hatch", started ?? start, end, top + 6, 10, 3);
    if (failed && started === null) cross(sketch, "failed", sketch.x(end), top);
  },
  queued: (sketch, { start, position }, top, end) => {
    const wide = sketch.box("queued", start, end, top + 4, 14, 2);
    sketch.label(start, top, wide, [`queued at ${position}`, "queued"]);
  },
  paused: (sketch, { start }, top, end) => {
    const wide = sketch.box("paused", start, end, top + 4, 14, 2);
    sketch.label(start, top, wide, [`paused ${span(end - start)}`, "paused"]);
  },
  gap: (sketch, { start, dropped }, top, end) => {
    const wide = sketch.box("gap", start, end, top + 4, 14, 3);
    sketch.label(start, top, wide, [`${many(dropped, "event")} missed`, `${count(dropped)} missed`, count(dropped)]);
  },
  mark: (sketch, { what, start }, top) => MARKS[what](sketch, what, sketch.x(start), top),
};

const triangle = (sketch, layer, x, top) => sketch.add(layer, `M${x} ${top + 5}l5 9h-10z`);
const cross = (sketch, layer, x, top) => {
  sketch.add(layer, `M${x} ${top + 9}l3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3 2-2z`);
};
const MARKS = {
  first: (sketch, layer, x, top) => sketch.add(layer, `M${x - 4} ${top + 11}a4 4 0 1 0 8 0a4 4 0 1 0-8 0z`),
  retry: triangle,
  repair: triangle,
  discarded: cross,
  error: (sketch, layer, x, top) => sketch.add(layer, `M${x} ${top + 16}l-6-10h12z`),
  interrupted: (sketch, layer, x, top) => sketch.add(layer, `M${x} ${top + 5}l6 6-6 6-6-6z`),
  finished: (sketch, layer, x, top) => sketch.add(layer, `M${x - 1.5} ${top + 4}h3v14h-3z`),
};

/** The hatchings. `id` is what this drawing's names begin with: they are the whole document's. */
export function patterns(id) {
  const hatch = (name) =>
    svg(
      "pattern",
      { id: `${id}-${name}`, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      svg("rect", { class: `lanes-${name}-ground`, width: 6, height: 6 }),
      svg("rect", { class: `lanes-${name}-stroke`, width: 2, height: 6 }),
    );
  return svg("defs", {}, hatch("failed"), hatch("gap"), hatch("void"));
}

/** A piece of the picture for the legend: what is drawn there, in its own colours. */
export function swatch(kind, id) {
  const sketch = new Sketch((at) => at, 18, ROW);
  const facts = { start: 0, started: 0, written: 0, end: 16, what: kind, dropped: 0, discarded: false };
  if (kind === "text" || kind === "thought") sketch.density(kind, [4, 3, 0, 1, 4, 2, 3, 4], 0);
  else if (kind === "args") sketch.box("args", 0, 16, 6, 10);
  else if (kind === "failed") DRAWN.tool(sketch, { ...facts, status: "error" }, 0, 16);
  else if (MARKS[kind]) MARKS[kind](sketch, kind, 8, 0);
  else DRAWN[kind](sketch, facts, 0, 16);
  const drawn = LAYERS.filter((layer) => sketch.paths[layer]);
  const paths = drawn.map((layer) => newPath(id, layer, sketch.paths[layer]));
  return svg("svg", { width: 18, height: ROW, "aria-hidden": "true" }, ...paths);
}
