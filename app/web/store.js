// Conversations as this browser remembers them: which runs, on which thread, with which agent.
//
// The runs' events, and what a thread knows, are the server's. What is kept here is what it does not keep for long: an
// answer's text after its run is gone. Other tabs hear of every change, and so follow the same runs.

const PREFIX = "millrace.conversation.";
const MOST = 40;
const TEXT = 20_000;

/** A new conversation with an agent: {id, agent, at, turns: [{question, runId, text, status}]}. */
export function begun(agent) {
  return { id: identifier(), agent, at: Date.now(), turns: [] };
}

/** The conversation of this id, or null. */
export function recall(id) {
  return read(PREFIX + id);
}

/** Keep a conversation, and let go of the oldest when there are too many. */
export function keep(conversation) {
  const turns = conversation.turns.map((turn) => ({ ...turn, text: (turn.text ?? "").slice(0, TEXT) }));
  const kept = { ...conversation, at: Date.now(), turns };
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(kept));
  } catch {
    // Full, or not allowed here: the page works, and forgets at a reload.
  }
  for (const old of everything().slice(MOST)) forget(old.id);
}

/** Forget a conversation. */
export function forget(id) {
  localStorage.removeItem(PREFIX + id);
}

/** All conversations, the newest first. */
export function remembered() {
  return everything();
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

function everything() {
  try {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
    return keys.map(read).filter(Boolean).sort((one, other) => other.at - one.at);
  } catch {
    return [];
  }
}

function read(key) {
  try {
    const found = JSON.parse(localStorage.getItem(key));
    return found && Array.isArray(found.turns) ? found : null;
  } catch {
    return null;
  }
}
