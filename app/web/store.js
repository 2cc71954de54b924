// Conversations as this browser remembers them: which runs, on which thread, with which agent.
//
// The runs' events, and what a thread knows, are the server's. What is kept here is what it does not keep for long: an
// answer's text after its run is gone. Other tabs hear of every change, and so follow the same runs.

const PREFIX = "millrace.conversation.";
const THEME = "millrace.theme";
const MOST = 40;
const TEXT = 20_000;

/**
 * A new conversation with an agent: {id, agent, at, turns: [{question, runId, text, status}]}. A turn's `runId` is null
 * until its run is heard of, its `status` until that is over; of one that was "refused" nothing is kept.
 */
export function begun(agent) {
  return { id: identifier(), agent, at: Date.now(), turns: [] };
}

/** The conversation of this id, or null. */
export function recall(id) {
  return read(PREFIX + id);
}

/** Keep a conversation, and let go of the oldest when there are too many. */
export function keep(conversation) {
  const heard = conversation.turns.filter((turn) => turn.status !== "refused");
  const turns = heard.map((turn) => ({ ...turn, text: turn.text.slice(0, TEXT) }));
  const kept = { ...conversation, at: Date.now(), turns };
  try {
    for (const old of remembered().slice(MOST)) localStorage.removeItem(PREFIX + old.id);
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(kept));
  } catch {
    // Full, or not allowed here: the page works, and forgets at a reload.
  }
}

/** All conversations, the newest first. */
export function remembered() {
  try {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
    return keys
      .map(read)
      .filter(Boolean)
      .sort((one, other) => other.at - one.at);
  } catch {
    return [];
  }
}

/** The theme that was chosen: "light", "dark", or "" for the system's. */
export function theme() {
  try {
    const found = localStorage.getItem(THEME);
    return found === "light" || found === "dark" ? found : "";
  } catch {
    return "";
  }
}

/** Keep the theme that was chosen. */
export function keepTheme(chosen) {
  try {
    localStorage.setItem(THEME, chosen);
  } catch {
    // It holds until a reload.
  }
}

/** Have `changed(id)` called when another tab has changed a conversation. */
export function watch(changed) {
  addEventListener("storage", (event) => {
    if (event.key?.startsWith(PREFIX)) changed(event.key.slice(PREFIX.length));
  });
}

/** 128 bits by chance, as text. (`crypto.randomUUID` is there on https and localhost only.) */
export function identifier() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function read(key) {
  try {
    const found = JSON.parse(localStorage.getItem(key));
    return PREFIX + found.id === key && typeof found.agent === "string" && found.turns.every(isTurn) ? found : null;
  } catch {
    return null; // not there, not allowed, or not ours
  }
}

function isTurn({ question, runId, text, status }) {
  return typeof question === "string" && typeof text === "string" && [runId, status].every(isTextOrNull);
}

function isTextOrNull(value) {
  return value === null || typeof value === "string";
}
