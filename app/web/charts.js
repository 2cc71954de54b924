// Small pictures of numbers: columns over days, a histogram, a bar of parts. They are drawn at the width that they have
// and again when it changes, so that their text stays as large as the page's.
//
// The arithmetic stands first and knows no document. A picture tells nothing by colour alone: what is pointed at, or
// reached by the arrow keys, is told in words and numbers, and whoever shows a picture has its numbers in a table too.

import { el, svg } from "./dom.js";

// Arithmetic

const DAY_MS = 86_400_000;
const DECADE = [1, 1.6, 2.5, 4, 6.3]; // evenly spaced on a logarithmic axis, but for a hundredth
const DAYS_APART = [1, 2, 3, 7, 14, 28, 56, 112];

/** Where to mark an axis: 0 and on in even steps of 1, 2 or 5, to `most` at least. `least`: the smallest step. */
export function ticks(most, { wanted = 4, least = 0 } = {}) {
  if (!(most > 0)) return [0, 1];
  const power = 10 ** Math.floor(Math.log10(most / wanted));
  const exact = [1, 2, 5, 10].map((one) => one * power).find((one) => most / one <= wanted);
  const step = Math.max(exact, least);
  const steps = Math.ceil(most / step - 1e-9);
  return Array.from({ length: steps + 1 }, (_, index) => Number((index * step).toPrecision(12)));
}

const UNITS = [
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
];

/** The marks of an axis of counts: "0", "500", "1.5k". */
export function counts(marks) {
  return marks.map((mark) => {
    const [size, unit] = UNITS.find(([one]) => mark >= one) ?? [1, ""];
    return `${Number((mark / size).toFixed(1))}${unit}`;
  });
}

/** The marks of an axis of US dollars, all with as many digits as their step needs. */
export function dollars(marks) {
  const digits = Math.max(0, -Math.floor(Math.log10(marks[1]) + 1e-9));
  return marks.map((mark) => (mark === 0 ? "$0" : `$${mark.toFixed(digits)}`));
}

/** So many days (UTC, "2026-11-22") from `since` on. */
export function daysFrom(since, number) {
  const first = Date.parse(`${since}T00:00:00Z`);
  return Array.from({ length: number }, (_, index) => new Date(first + index * DAY_MS).toISOString().slice(0, 10));
}

/** Which of `number` days to name under columns `pitch` wide, where a name takes `room`: always the last one. */
export function namedDays(number, pitch, room) {
  const apart = DAYS_APART.find((days) => days * pitch >= room) ?? number;
  return Array.from({ length: number }, (_, index) => index).filter((index) => (number - 1 - index) % apart === 0);
}

/** Values upon each other: where each begins and ends. An unknown one (null) takes no room. */
export function stacked(values) {
  let top = 0;
  return values.map((value) => ({ from: top, to: (top += value ?? 0) }));
}

/** What part of their sum each value is: 0 to 1. */
export function shares(values) {
  const sum = values.reduce((all, value) => all + value, 0);
  return values.map((value) => (sum > 0 ? value / sum : 0));
}

/** The value that so large a share of the values does not exceed (nearest rank); null where there are none. */
export function quantile(values, share) {
  const sorted = [...values].sort((one, other) => one - other);
  return sorted.length ? sorted[Math.max(0, Math.ceil(share * sorted.length - 1e-9) - 1)] : null;
}

/** The edge of a bin, a whole number: 0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100 … */
export function edge(index) {
  return index === 0 ? 0 : Math.round(DECADE[(index - 1) % 5] * 10 ** Math.floor((index - 1) / 5));
}

/** How many values lie in each bin, from the first that has any to the last, and `least` bins at the fewest. */
export function bins(values, least = 6) {
  const found = values.map(binOf);
  let first = found.length ? Math.min(...found) : 0;
  let last = found.length ? Math.max(...found) : 0;
  while (last - first + 1 < least) {
    last += 1;
    if (first > 0 && last - first + 1 < least) first -= 1;
  }
  const numbers = Array.from({ length: last - first + 1 }, () => 0);
  for (const bin of found) numbers[bin - first] += 1;
  return {
    first,
    edges: Array.from({ length: numbers.length + 1 }, (_, index) => edge(first + index)),
    counts: numbers,
  };
}

function binOf(value) {
  let index = 0;
  while (edge(index + 1) <= value) index += 1;
  return index;
}

/** Where a value lies between these edges, counted in bins. */
export function place(edges, value) {
  const bin = Math.max(
    0,
    edges.findLastIndex((one) => one <= value),
  );
  if (bin >= edges.length - 1) return edges.length - 1;
  return bin + Math.max(0, value - edges[bin]) / (edges[bin + 1] - edges[bin]);
}

/** Whether the edge of this index is named where bins are `pitch` wide: all; 10, 25, 100, 250 …; or 10, 100 … alone. */
export function namedEdge(index, pitch, room) {
  if (pitch >= room) return true;
  return index > 0 && ((index - 1) % 5 === 0 || (pitch * 2 >= room && (index - 1) % 5 === 2));
}

// Pictures

const HEIGHT = 150; // of the columns alone
const UNDER = 22;
const NAME_ROOM = 54;
const SIGN = 6.2; // a sign of the axis' text, in px: its labels are short, and a measured one would need a layout
const MARKS = 30; // above the columns, where marks are named

let patterns = 0;

/**
 * Columns, one a day, each of parts that lie upon each other, and a legend that tells the numbers of all days or of the
 * one that is pointed at.
 *
 * `days`: [{name, short, values}], oldest first, with a value (or null) for each of `series`: [{group, name, look,
 * hatched}]; the series of one group stand together in the legend. `look` is one of the looks "a" to "e", "cost" and
 * "saved" of the stylesheet. `axis`: `counts` or `dollars`. `told`: a value in words. `all`: what all days together are
 * called. `sums`: the values of all days, where they are not the sum of these.
 */
export function dayColumns({ label, days, series, axis, told, all, sums = null }) {
  const totals = sums ?? series.map((_, index) => days.reduce((sum, day) => sum + (day.values[index] ?? 0), 0));
  const legend = legendOf(series, told);
  const whole = { name: all, values: totals };
  const columns = days.map((day) => ({ ...day, label: `${day.name}: ${inWords(series, day.values, told)}` }));
  const under = (pitch) => {
    const named = new Set(namedDays(days.length, pitch, NAME_ROOM));
    return days.map((day, index) => ({ at: index + 0.5, text: day.short, named: named.has(index) }));
  };
  const picture = plot({ label, columns, series, axis, under, onpick: (column) => legend.tell(column ?? whole) });
  legend.tell(whole);
  return el("div", { class: "charts" }, legend.element, picture);
}

/**
 * How many values lie where, on a logarithmic axis, with marks: [{name, value}]. `told`: a value in words; `noun`: what
 * is counted, as "run" or "runs" by its number.
 */
export function histogram({ label, values, marks, told, noun }) {
  const { first, edges, counts: numbers } = bins(values);
  const series = [{ group: "", name: "", look: "a", hatched: false }];
  const columns = numbers.map((number, index) => ({
    values: [number],
    label: `${told(edges[index])} to ${told(edges[index + 1])}: ${number} ${noun(number)}`,
  }));
  const under = (pitch) =>
    edges.map((one, index) => ({ at: index, text: told(one), named: namedEdge(first + index, pitch, NAME_ROOM) }));
  const named = marks.map(({ name, value }) => ({ text: `${name} ${told(value)}`, at: place(edges, value) }));
  const everything = `${values.length} ${noun(values.length)}`;
  const telling = el("p", { class: "charts-told" }, everything);
  const onpick = (column) => {
    telling.textContent = column?.label ?? everything;
  };
  const picture = plot({ label, columns, series, axis: counts, under, onpick, marks: named, close: true });
  return el("div", { class: "charts" }, telling, picture);
}

/** One bar, all of it made of `parts`: [{name, value, told, look, hatched}]. What has no size is named, not drawn. */
export function partsBar({ label, parts }) {
  const prefix = `charts-bar-${(patterns += 1)}`;
  const sizes = shares(parts.map((part) => part.value ?? 0));
  const places = stacked(sizes);
  const bars = parts.map((part, index) =>
    svg("rect", {
      class: `charts-part ${look(part)}`,
      x: `${places[index].from * 100}%`,
      width: `${sizes[index] * 100}%`,
      height: 16,
      fill: paint(prefix, part),
    }),
  );
  const picture = svg(
    "svg",
    { class: "charts-bar", height: 16, "aria-hidden": "true" },
    hatches(prefix, parts),
    ...bars,
  );
  const legend = el(
    "ul",
    { class: "charts-keys", "aria-label": label },
    ...parts.map((part) => el("li", {}, swatch(part), el("span", {}, `${part.name} `), el("b", {}, part.told))),
  );
  return el("div", { class: "charts" }, picture, legend);
}

function plot({ label, columns, series, axis, under, onpick, marks = [], close = false }) {
  const prefix = `charts-${(patterns += 1)}`;
  const most = Math.max(...columns.map((column) => stacked(column.values).at(-1)?.to ?? 0));
  const scale = ticks(most, { least: axis === counts ? 1 : 0 });
  const lines = axis(scale);
  const left = Math.max(...lines.map((line) => line.length)) * SIGN + 10;
  const top = marks.length ? MARKS : 8;
  const y = (value) => top + HEIGHT * (1 - value / scale.at(-1));
  const rooms = columns.map((column) =>
    svg("rect", {
      class: "charts-room",
      role: "img",
      "aria-label": column.label,
      tabindex: -1,
      y: top,
      height: HEIGHT,
    }),
  );
  const behind = svg("g", { "aria-hidden": "true" });
  const before = svg("g", { class: "charts-before", "aria-hidden": "true" });
  const picture = svg(
    "svg",
    { height: top + HEIGHT + UNDER, role: "group", "aria-label": label },
    hatches(prefix, series),
    behind,
    ...rooms,
    before,
  );
  const holder = el("div", { class: "charts-picture" }, picture);
  const draw = (width) => {
    const pitch = (width - left - 2) / columns.length;
    const broad = close ? pitch - 1 : Math.min(44, Math.max(pitch * 0.76, 1.5));
    const x = (at) => left + at * pitch;
    picture.setAttribute("width", width);
    rooms.forEach((room, index) => {
      room.setAttribute("x", x(index));
      room.setAttribute("width", pitch);
    });
    behind.replaceChildren(...grid(scale, lines, { left, width, y }));
    before.replaceChildren(
      ...series.map((one, index) =>
        svg("path", {
          class: `charts-part ${look(one)}`,
          d: outline(columns, index, { x: (at) => x(at + 0.5) - broad / 2, y, broad }),
          fill: paint(prefix, one),
        }),
      ),
      ...names(under(pitch), { x, width, y: top + HEIGHT + 16, between: close }),
      ...marked(marks, { x, width, top }),
    );
  };
  picking(picture, rooms, (index) => onpick(columns[index] ?? null));
  new ResizeObserver(([entry]) => draw(Math.max(left + columns.length, Math.floor(entry.contentRect.width)))).observe(
    holder,
  );
  return holder;
}

/** Columns are picked by the pointer, and by the arrow keys, for which all of them are one stop of the Tab key. */
function picking(picture, rooms, tell) {
  let stop = rooms.length - 1;
  let picked = null;
  const pick = (index) => {
    rooms[picked]?.classList.remove("charts-picked");
    rooms[index]?.classList.add("charts-picked");
    picked = index;
    tell(index);
  };
  const focused = () => {
    const index = rooms.indexOf(document.activeElement);
    return index < 0 ? null : index;
  };
  const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -rooms.length, End: rooms.length };
  rooms[stop].setAttribute("tabindex", 0);
  picture.addEventListener("pointerover", ({ target }) => {
    const index = rooms.indexOf(target);
    if (index >= 0 && index !== picked) pick(index);
  });
  picture.addEventListener("pointerleave", ({ pointerType }) => {
    if (pointerType === "mouse") pick(focused()); // a finger that is lifted leaves what it asked for
  });
  picture.addEventListener("focusin", () => {
    rooms[stop].setAttribute("tabindex", -1);
    stop = focused() ?? stop;
    rooms[stop].setAttribute("tabindex", 0);
    pick(stop);
  });
  picture.addEventListener("focusout", () => pick(null));
  picture.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    rooms[Math.min(rooms.length - 1, Math.max(0, stop + steps[event.key]))].focus();
  });
}

/** One series through all columns, as one path: a picture of 90 days stays a small one. */
function outline(columns, series, { x, y, broad }) {
  const pieces = columns.map((column, index) => {
    const { from, to } = stacked(column.values)[series];
    return to > from ? `M${near(x(index))} ${near(y(from))}V${near(y(to))}h${near(broad)}V${near(y(from))}z` : "";
  });
  return pieces.join("");
}

function near(length) {
  return Number(length.toFixed(2));
}

function grid(scale, lines, { left, width, y }) {
  return scale.flatMap((mark, index) => [
    svg("line", { class: "charts-line", x1: left, x2: width, y1: y(mark), y2: y(mark) }),
    svg("text", { x: left - 8, y: y(mark) + 4, "text-anchor": "end" }, lines[index]),
  ]);
}

function names(under, { x, width, y, between }) {
  return under
    .filter((one) => one.named)
    .flatMap(({ at, text }) => {
      const half = (text.length * SIGN) / 2;
      const middle = Math.min(x(at), width - half);
      const tick = between ? svg("line", { class: "charts-tick", x1: x(at), x2: x(at), y1: y - 16, y2: y - 12 }) : null;
      return [tick, svg("text", { x: middle, y, "text-anchor": "middle" }, text)].filter((one) => one !== null);
    });
}

function marked(marks, { x, width, top }) {
  return marks.flatMap(({ at, text }, index) => {
    const line = x(at);
    const turned = line + text.length * (SIGN + 0.6) + 6 > width;
    const y = 11 + index * 14; // one below the other, as they may lie close together
    return [
      svg("line", { class: "charts-mark", x1: line, x2: line, y1: y - 9, y2: top + HEIGHT }),
      svg(
        "text",
        { class: "charts-mark-name", x: line + (turned ? -5 : 5), y, "text-anchor": turned ? "end" : "start" },
        text,
      ),
    ];
  });
}

function legendOf(series, told) {
  const title = el("span", { class: "charts-told" });
  const values = series.map(() => el("b"));
  const groups = new Map();
  series.forEach((one, index) => {
    groups.set(one.group, [...(groups.get(one.group) ?? []), [one, values[index]]]);
  });
  const items = [...groups].map(([name, keys]) => {
    const title = el("span", { class: "charts-group", title: name }, name);
    if (!keys[0][0].name) return el("li", {}, swatch(keys[0][0]), title, keys[0][1]);
    const told = keys.map(([one, value]) => el("span", { class: "charts-key" }, swatch(one), `${one.name} `, value));
    return el("li", { class: "charts-several" }, title, ...told);
  });
  const element = el("div", { class: "charts-legend" }, title, el("ul", { class: "charts-keys" }, ...items));
  const tell = (column) => {
    title.textContent = column.name;
    values.forEach((value, index) => {
      value.textContent = told(column.values[index]);
    });
  };
  return { element, tell };
}

function inWords(series, values, told) {
  const parts = series.map((one, index) => (values[index] === 0 ? null : wording(one, told(values[index]))));
  return parts.filter((part) => part !== null).join(", ") || "nothing";
}

function wording({ group, name }, value) {
  return [group, name, value].filter(Boolean).join(" ");
}

function swatch(one) {
  return el("span", {
    class: `charts-swatch ${look(one)}${one.hatched ? " charts-hatched" : ""}`,
    "aria-hidden": "true",
  });
}

function look(one) {
  return `charts-look-${one.look}`;
}

function paint(prefix, one) {
  return one.hatched ? `url(#${prefix}-${one.look})` : null;
}

function hatches(prefix, series) {
  const looks = new Set(series.filter((one) => one.hatched).map((one) => one.look));
  return svg(
    "defs",
    {},
    ...[...looks].map((name) =>
      svg(
        "pattern",
        {
          id: `${prefix}-${name}`,
          class: `charts-look-${name}`,
          width: 5,
          height: 5,
          patternUnits: "userSpaceOnUse",
          patternTransform: "rotate(45)",
        },
        svg("rect", { class: "charts-hatch-ground", width: 5, height: 5 }),
        svg("rect", { class: "charts-hatch-line", width: 2, height: 5 }),
      ),
    ),
  );
}
