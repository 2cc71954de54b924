// Values of JSON, as people read them: what a tool was given, what an object has so far.

import { el } from "./dom.js";

const MOST = 200;
const DEEPEST = 8;
const LINE = 400;
const LONGEST = 4000;

/** A value as nested lists of names and values. Of what is very long the beginning, of what is very deep a line. */
export function asTree(value, depth = 0) {
  if (value !== null && typeof value === "object") {
    if (depth === DEEPEST) return el("code", {}, shortened(value, LINE));
    return Array.isArray(value) ? asList(value, depth + 1) : asNames(value, depth + 1);
  }
  if (typeof value === "string" && value.length > LONGEST) return folded(value, LINE);
  return el("span", { class: `value-${value === null ? "null" : typeof value}` }, plain(value));
}

/** A long text, of which so many characters are seen until it is unfolded. */
export function folded(text, length) {
  return el("details", {}, el("summary", {}, shortened(text, length)), el("pre", { tabindex: 0 }, text));
}

/** A value in one line of so many characters. */
export function shortened(value, length) {
  const text = (typeof value === "string" ? value : JSON.stringify(value)).replace(/\s+/g, " ").trim();
  return text.length <= length ? text : `${text.slice(0, length - 1)}…`;
}

function asList(values, depth) {
  if (values.length === 0) return el("span", { class: "value-null" }, "none");
  const shown = values.slice(0, MOST).map((one) => el("li", {}, asTree(one, depth)));
  const rest = values.length > MOST ? [el("li", {}, `… and ${values.length - MOST} more`)] : [];
  return el("ol", { class: "value-list" }, ...shown, ...rest);
}

function asNames(values, depth) {
  const entries = Object.entries(values);
  if (entries.length === 0) return el("span", { class: "value-null" }, "nothing");
  const shown = entries.slice(0, MOST);
  const rows = shown.map(([name, one]) => el("div", {}, el("dt", {}, name), el("dd", {}, asTree(one, depth))));
  const rest =
    entries.length > MOST ? [el("div", {}, el("dt", {}, "…"), el("dd", {}, `${entries.length - MOST} more`))] : [];
  return el("dl", { class: "value-names" }, ...rows, ...rest);
}

function plain(value) {
  if (value === null || value === undefined) return "none";
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}
