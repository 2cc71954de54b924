// The page: joins its parts, and keeps the address in step with what is shown.
//
//   #/chat/AGENT/CONVERSATION   a conversation       #/runs        the list of runs
//   #/run/RUN                   one run by itself    #/usage       what it cost

import { takesText } from "./agents.js";
import { Chat } from "./chat.js";
import { byId, el } from "./dom.js";
import { Events } from "./events.js";
import { Lanes } from "./lanes.js";
import { RunsView } from "./runs.js";
import { Socket } from "./socket.js";
import { keepTheme, remembered, theme, watch } from "./store.js";
import { Trial } from "./trial.js";
import { UsageView } from "./usage.js";
import { moment } from "./words.js";

const base = new URL(".", document.baseURI);
const WIDE = matchMedia("(min-width: 1100px)");

// -- the server -------------------------------------------------------------------------------------------------------

/** Ask the server for JSON. Throws an error whose message is for people, with the answer's `status` and `code`. */
async function api(path, options = {}) {
  let answer;
  try {
    answer = await fetch(new URL(path, base), options);
  } catch {
    throw Object.assign(new Error("The server cannot be reached. Is it running?"), { status: 0, code: "unreachable" });
  }
  const body = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (answer.ok) return body;
  if (answer.status === 401) await opened();
  if (answer.status === 401) return api(path, options);
  const { message = `The server answered ${answer.status}.`, code = "unknown" } = body?.error ?? {};
  throw Object.assign(new Error(message), { status: answer.status, code });
}

let opening = null;

/** Trade a key for a session. One question at a time, however many requests want it. */
function opened() {
  opening ??= new Promise((resolve) => {
    const dialog = byId("key");
    byId("key-form").onsubmit = async (event) => {
      event.preventDefault();
      const key = byId("key-field").value.trim();
      if (!/^[!-~]+$/.test(key)) {
        byId("key-problem").textContent = "A key has Latin letters, digits and signs, and no spaces.";
        return;
      }
      const headers = { "x-api-key": key };
      const answer = await fetch(new URL("session", base), { method: "POST", headers }).catch(() => null);
      if (!answer?.ok) {
        const body = await answer?.json().catch(() => null);
        byId("key-problem").textContent = body?.error?.message ?? "The server cannot be reached.";
        return;
      }
      byId("key-field").value = "";
      byId("key-problem").textContent = "";
      opening = null;
      dialog.close();
      socket.reopen();
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault(); // without a key there is nothing to show
    dialog.onclose = () => opening && dialog.showModal(); // a browser lets a second Escape through
    dialog.showModal();
  });
  return opening;
}

const address = new URL("ws", base);
address.protocol = address.protocol.replace("http", "ws");
const socket = new Socket(address);

const CONNECTION = {
  connecting: "Connecting…",
  open: "Connected",
  waiting: "Lost; trying again…",
  offline: "Offline",
  refused: "Refused",
};

socket.addEventListener("state", ({ detail: { state, unauthorized } }) => {
  byId("connection").dataset.state = state;
  byId("connection-word").textContent = CONNECTION[state];
  byId("connection").title = state === "refused" ? socket.why : "The connection, and ways to try it";
  if (state === "waiting" || state === "offline") say("The connection is lost.");
  if (state === "open" && socket.lost) say("Connected again.");
  if (unauthorized) void opened();
});

// -- the views --------------------------------------------------------------------------------------------------------

let agents = [];

/** Tell people who listen and do not look. */
function say(text) {
  byId("said").textContent = text;
}

const chat = new Chat(socket, api, {
  say,
  inspect: (run, asked = false) => inspect(run, asked),
  drew: () => drawInspected(),
  went: (conversation) => {
    history.replaceState(null, "", addressOf(conversation));
    comeBackHere();
  },
});
const views = {
  runs: new RunsView(api, { open: (row) => (location.hash = `#/run/${row.run_id}`) }),
  usage: new UsageView(api),
};
for (const [name, view] of Object.entries(views)) byId(name).append(view.element);
new Trial(byId("trial"), { socket, chat, api, address, agent: () => current() });

function current() {
  return agents.find((one) => one.name === byId("agent").value) ?? agents[0];
}

function addressOf({ agent, id }) {
  return `#/chat/${encodeURIComponent(agent)}/${encodeURIComponent(id)}`;
}

/** Have the way to the chat lead to the conversation that is shown now. */
function comeBackHere() {
  document.querySelector("nav [data-view=chat]").href = location.hash || "#/chat";
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // typed, or cut off: it names nothing, and that is then said
  }
}

async function route() {
  const [view, first, second] = location.hash.split("/").slice(1).map(decoded);
  const shown = Object.hasOwn(views, view) ? view : "chat";
  for (const section of document.querySelectorAll("main > .view")) section.hidden = section.id !== shown;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.dataset.view === (view === "run" ? "runs" : shown);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const [name, one] of Object.entries(views)) if (name !== shown) one.hide();
  if (shown !== "chat") {
    await views[shown].show();
  } else if (view === "run") {
    await openRun(first);
  } else {
    await openChat(first, second);
  }
}

async function openChat(name, id) {
  const named = (wanted) => agents.find((one) => one.name === wanted);
  if (name && !named(name)) {
    document.querySelector("nav [data-view=chat]").href = "#/chat";
    return trouble(new Error(`This server has no agent “${name}”, or has it no longer.`));
  }
  const agent =
    named(name) ?? named(remembered()[0]?.agent) ?? named("assistant") ?? agents.find(takesText) ?? agents[0];
  byId("agent").value = agent.name;
  byId("chat").classList.remove("alone");
  comeBackHere();
  await chat.open(agent, id || null);
  if (chat.newest) inspect(chat.newest);
  else inspect(null);
  if (WIDE.matches) chat.focus();
}

async function openRun(runId) {
  const there = location.hash;
  const row = await api(`runs/${encodeURIComponent(runId)}`).catch((error) => error);
  if (location.hash !== there) return;
  if (row instanceof Error) return trouble(row);
  if (!row?.run_id) return trouble(new Error("There is no such run."));
  const agent = agents.find((one) => one.name === row.agent) ?? agents[0];
  byId("chat").classList.add("alone");
  chat.openRun(row, agent);
  inspect(chat.newest, true);
}

function trouble(error) {
  for (const section of document.querySelectorAll("main > .view")) section.hidden = section.id !== "trouble";
  byId("trouble-words").textContent = error.message;
}

// -- the lanes --------------------------------------------------------------------------------------------------------

let inspected = null;

function inspect(run, asked = false) {
  if (asked && byId("inspector").hidden) showInspector(true);
  if (inspected?.run === run) return;
  inspected?.lanes?.close();
  inspected?.events?.close();
  inspected = run === null ? null : { run, lanes: null, events: null, frames: -1 };
  const nothing = el("p", { class: "quiet" }, "Ask something: what the run does is drawn here as it happens.");
  byId("inspector-body").replaceChildren(nothing);
  drawInspected();
}

function drawInspected() {
  if (!inspected || byId("inspector").hidden || inspected.frames === inspected.run.frames.length) return;
  if (inspected.lanes === null) {
    Object.assign(inspected, { lanes: new Lanes(inspected.run), events: new Events(inspected.run) });
    byId("inspector-body").replaceChildren(inspected.lanes.element, inspected.events.element);
  }
  inspected.frames = inspected.run.frames.length;
  inspected.lanes.update();
  inspected.events.update();
}

function showInspector(shown) {
  byId("inspector").hidden = !shown;
  byId("inspect").setAttribute("aria-pressed", String(shown));
  byId("chat").classList.toggle("inspecting", shown);
  if (inspected) inspected.frames = -1;
  drawInspected();
}

byId("inspect").addEventListener("click", () => showInspector(byId("inspector").hidden));
byId("inspector-close").addEventListener("click", () => {
  showInspector(false);
  byId("inspect").focus();
});

// -- what stands around it --------------------------------------------------------------------------------------------

byId("agent").addEventListener("change", () => (location.hash = `#/chat/${encodeURIComponent(byId("agent").value)}`));
byId("fresh").addEventListener("click", () => {
  const there = `#/chat/${encodeURIComponent(byId("agent").value)}`;
  if (location.hash === there) void route();
  else location.hash = there;
});
byId("trouble-again").addEventListener("click", () => void start());
byId("conversations").addEventListener("beforetoggle", (event) => {
  if (event.newState !== "open") return;
  const found = remembered().filter((one) => one.turns.length);
  byId("conversations").replaceChildren(
    ...(found.length ? found.map(link) : [el("p", { class: "quiet" }, "None yet.")]),
  );
});

function link(conversation) {
  const title = conversation.turns[0].question || "a run";
  const about = el("span", { class: "quiet" }, `${conversation.agent}, ${moment(conversation.at)}`);
  const close = () => byId("conversations").hidePopover();
  return el("a", { href: addressOf(conversation), onclick: close }, el("span", {}, title), about);
}

const THEMES = { "": "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

function dress(chosen) {
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
  byId("theme").dataset.theme = chosen;
  byId("theme").setAttribute("aria-label", `${THEMES[chosen]}; change`);
  byId("theme").title = THEMES[chosen];
}

byId("theme").addEventListener("click", () => {
  const order = Object.keys(THEMES);
  const next = order[(order.indexOf(byId("theme").dataset.theme) + 1) % order.length];
  keepTheme(next);
  dress(next);
});

async function start() {
  try {
    agents = (await api("agents")).agents;
  } catch (error) {
    trouble(error);
    return;
  }
  if (agents.length === 0) return trouble(new Error("This server has no agents."));
  byId("agent").replaceChildren(...agents.map((one) => el("option", { value: one.name }, one.name)));
  const simulated = agents.some((one) => one.model === "simulated");
  byId("notice").hidden = !simulated;
  byId("notice").textContent =
    "No model provider is set: answers are simulated. Set OPENAI_API_KEY or OPENAI_BASE_URL for a model.";
  await route();
}

dress(theme());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the conversation, and not a place on the page
  chat.focus();
});
addEventListener("hashchange", () => void route());
watch((id) => chat.changedElsewhere(id));
showInspector(WIDE.matches);
void start();
