// Values of JSON, as people read them: what a tool was given, what an object has so far.

import { el } from "./dom.js";

const MOST = 200;

/** A value as nested lists of names and values. Of a very long list the beginning. */
export function asTree(value) {
  if (Array.isArray(value)) return asList(value);
  if (value !== null && typeof value === "object") return asNames(value);
  return el("span", { class: `value-${value === null ? "null" : typeof value}` }, plain(value));
}

/** A value in one line of so many characters. */
export function shortened(value, length) {
  const text = (typeof value === "string" ? value : JSON.stringify(value)).replace(/\s+/g, " ").trim();
  return text.length <= length ? text : `${text.slice(0, length - 1)}…`;
}

function asList(values) {
  if (values.length === 0) return el("span", { class: "value-null" }, "none");
  const shown = values.slice(0, MOST).map((one) => el("li", {}, asTree(one)));
  const rest = values.length > MOST ? [el("li", {}, `… and ${values.length - MOST} more`)] : [];
  return el("ol", { class: "value-list" }, ...shown, ...rest);
}

function asNames(values) {
  const entries = Object.entries(values);
  if (entries.length === 0) return el("span", { class: "value-null" }, "nothing");
  const rows = entries.slice(0, MOST).map(([name, one]) => el("div", {}, el("dt", {}, name), el("dd", {}, asTree(one))));
  return el("dl", { class: "value-names" }, ...rows);
}

function plain(value) {
  if (value === null || value === undefined) return "none";
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}
