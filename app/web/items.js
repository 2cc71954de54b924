// The lanes in words: what an item was, what stands beside a lane's name, and the run in two or three sentences.

import { count, many, span, speed, status } from "./words.js";

/** What stands beside a lane's name. */
export function figure({ kind, lane }, now) {
  if (kind === "run") return span(now);
  const [item] = lane.items;
  if (kind === "tool") {
    if (item.status === "error") return "failed";
    if (item.status === "waiting") return "waits";
    return item.started === null ? "…" : span(item.ms ?? now - item.started);
  }
  if (kind === "branch") return item.status === "error" ? "failed" : "";
  const steps = lane.items.filter((one) => one.kind === "step");
  return steps.length ? span(steps.reduce((sum, { start, end }) => sum + (end ?? now) - start, 0)) : "";
}

/** An item in words: {title, start, lasted, more: [[name, value]]}. */
export function detail(item, now) {
  const time = `${span((item.end ?? now) - item.start)}${item.end === null ? " so far" : ""}`;
  const lasted = item.kind === "mark" ? "" : time;
  const { title, more = [] } = TOLD[item.kind](item);
  return { title, start: span(item.start), lasted, more: more.filter(([, value]) => value !== null && value !== "") };
}

const TOLD = {
  step: ({ most, cut }) => ({
    title: "Node at work",
    more: [
      ["at once", most > 1 ? `${most} of it` : null],
      ["end", cut ? "stopped before it was done" : null],
    ],
  }),
  message: (item) => ({
    title: item.discarded ? "Message, void" : "Message",
    more: [
      ["pieces", count(item.pieces)],
      ["of them reasoning", item.thoughts ? count(item.thoughts) : null],
      ["longest silence", item.quiet ? `${span(item.quiet)} at ${span(item.quietAt)}` : null],
      ...used(item.usage),
    ],
  }),
  tool: (item) => ({
    title: `Tool ${item.name}`,
    more: [
      ["state", TOOL_STATES[item.status] ?? (item.started === null ? "its arguments are being written" : "at work")],
      ["ran", item.started === null ? null : item.ms === null ? "since " + span(item.started) : span(item.ms)],
      ["arguments", item.args === null ? null : short(item.args)],
      ["result", item.status === null ? null : short(item.output)],
      ["progress", item.progress ? many(item.progress, "report") : null],
    ],
  }),
  branch: ({ question, status: told, problem }) => ({
    title: "Branch",
    more: [
      ["question", question],
      ["state", told === "error" ? "failed" : told],
      ["problem", problem],
    ],
  }),
  queued: ({ position }) => ({
    title: "Queued",
    more: [
      ["for", "its turn at the provider"],
      ["place", count(position)],
    ],
  }),
  paused: ({ reason }) => ({ title: "Paused", more: [["reason", reason]] }),
  gap: ({ dropped }) => ({
    title: "Missed by this page",
    more: [
      ["events", count(dropped)],
      ["why", "it was read too slowly; the answer is whole in the result"],
    ],
  }),
  mark: ({ what, text }) => ({
    title: MARK_NAMES[what],
    more: [what === "finished" ? ["state", status(text)] : ["why", text]],
  }),
};

const TOOL_STATES = { ok: "done", error: "failed", waiting: "waits for a person" };
const MARK_NAMES = {
  first: "First piece of the answer",
  retry: "Asked again",
  repair: "Put right",
  discarded: "Discarded",
  error: "Error",
  interrupted: "Waits for a person",
  finished: "The run is over",
};

function used(usage) {
  if (!usage) return [];
  const sums = `${count(usage.input_tokens)} in, ${count(usage.output_tokens)} out`;
  return [
    ["tokens", usage.estimated ? `${sums}, estimated` : sums],
    ["speed", usage.tokens_per_s ? speed(usage.tokens_per_s) : null],
    ["first chunk", Number.isFinite(usage.ttft_ms) ? `after ${span(usage.ttft_ms)}` : null],
    ["queued", usage.queue_ms ? span(usage.queue_ms) : null],
    ["model", usage.model ?? null],
  ];
}

function short(value, most = 180) {
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "");
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

/** The run in two or three sentences. */
export function summary(line, run) {
  if (line.epoch === null) return "Nothing has come yet.";
  const rows = line.rows();
  const nodes = rows.filter(({ kind }) => kind === "node").length;
  const branches = rows.filter(({ kind }) => kind === "branch").length;
  const { tools, first, pieces, quiet, dropped } = line;
  const parts = [many(nodes, "node")];
  if (branches) parts.push(many(branches, "subgraph"));
  if (tools.count) parts.push(many(tools.count, "tool call"));
  const said = [parts.join(", ")];
  if (tools.most > 1) said.push(`${tools.most} tools side by side`);
  if (tools.longest) said.push(`the longest ${span(tools.longest.ms)} (${tools.longest.name})`);
  if (tools.failed) said.push(`${tools.failed} failed`);
  const text = [`${said.join("; ")}.`];
  if (first !== null) text.push(`Text from ${span(first)} on, in ${many(pieces, "piece")}${silence(quiet)}.`);
  if (dropped) text.push(`This page missed ${many(dropped, "event")}.`);
  if (line.over) text.push(`${sentence(status(run.status))} after ${span(line.end)}.`);
  return text.join(" ");
}

function silence({ ms }) {
  return ms >= 200 ? `, the longest silence ${span(ms)}` : "";
}

function sentence(words) {
  return words[0].toUpperCase() + words.slice(1);
}
