// A run that waits for a person: what it asks, and the form that answers.
//
// Tool calls that wait are asked for in the shape of LangChain's human-in-the-loop middleware (docs/tools.md): approve,
// edit or reject, a decision for each call in their order. Any other `interrupt` is shown as it is, and answered by a text
// or by JSON.

import { el } from "./dom.js";
import { asTree } from "./values.js";

/** The form for these interrupts. `answer(resume, said)` takes the value to go on with, and what it means in words. */
export function approval(interrupts, answer) {
  const asked = interrupts.map((one) => ({ id: one.id, ...form(one.value) }));
  const problem = el("p", { class: "problem-line", role: "alert", hidden: true });
  const send = () => {
    try {
      const values = asked.map((one) => [one.id, one.value()]);
      const said = asked.map((one) => one.said()).join("; ");
      answer(values.length === 1 ? values[0][1] : Object.fromEntries(values), said);
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
  };
  const submit = (event) => {
    event.preventDefault();
    send();
  };
  const go = el("button", { class: "primary" }, "Go on");
  return el(
    "form",
    { class: "approval", "aria-label": "The run waits for you", onsubmit: submit },
    el("h3", {}, "This waits for you"),
    ...asked.map((one) => one.element),
    problem,
    el("p", { class: "approval-send" }, go),
  );
}

function form(value) {
  return Array.isArray(value?.action_requests) && value.action_requests.length ? calls(value) : free(value);
}

function calls(value) {
  const requests = value.action_requests.map((request, at) => {
    const allowed = value.review_configs?.find((one) => one.action_name === request.name)?.allowed_decisions;
    return call(request, allowed ?? ["approve", "edit", "reject"], at);
  });
  const problem = value.problem ? el("p", { class: "problem-line" }, String(value.problem)) : null;
  return {
    element: el("div", {}, problem, ...requests.map((one) => one.element)),
    value: () => ({ decisions: requests.map((one) => one.decision()) }),
    said: () => requests.map((one) => one.said()).join("; "),
  };
}

const DECISIONS = { approve: "Approve", edit: "Edit", reject: "Reject" };
const SAID = { approve: "Approved", edit: "Edited", reject: "Rejected" };

let named = 0;

function call(request, allowed, at) {
  const group = `decision-${++named}`;
  const label = `Arguments of ${request.name}, as JSON`;
  const edited = el("textarea", { rows: 6, spellcheck: "false", "aria-label": label, hidden: true });
  edited.value = JSON.stringify(request.args, null, 2);
  const why = el("input", {
    type: "text",
    placeholder: "Why not? The model is told.",
    "aria-label": "Why not",
    hidden: true,
  });
  const shown = el("div", { class: "approval-args" }, asTree(request.args));
  let chosen = allowed[0];
  const choose = (decision) => {
    chosen = decision;
    edited.hidden = decision !== "edit";
    shown.hidden = decision === "edit";
    why.hidden = decision !== "reject";
  };
  const choices = allowed.map((decision, index) =>
    el(
      "label",
      {},
      el("input", {
        type: "radio",
        name: group,
        value: decision,
        checked: index === 0,
        onchange: () => choose(decision),
      }),
      DECISIONS[decision] ?? decision,
    ),
  );
  const legend = el("legend", {}, el("code", {}, request.name), ` (${at + 1})`);
  return {
    element: el("fieldset", {}, legend, shown, edited, el("div", { class: "approval-choices" }, ...choices), why),
    decision: () => {
      if (chosen === "edit") return { type: "edit", edited_action: { name: request.name, args: json(edited.value) } };
      if (chosen === "reject" && why.value.trim()) return { type: "reject", message: why.value.trim() };
      return { type: chosen };
    },
    said: () => `${SAID[chosen] ?? chosen}: ${request.name}`,
  };
}

function free(value) {
  const field = el("textarea", { rows: 2, "aria-label": "Your answer" });
  return {
    element: el("div", {}, el("div", { class: "approval-args" }, asTree(value)), field),
    value: () => textOrJson(field.value),
    said: () => field.value.trim(),
  };
}

function textOrJson(text) {
  if (!text.trim()) throw new Error("Write an answer first.");
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function json(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The arguments are no JSON: ${error.message}`);
  }
}
