// Numbers and errors as people read them. An unknown value is an en dash.

const whole = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 1 });

/** A count, with thousands set apart. */
export function count(value) {
  return value === null || value === undefined ? "–" : whole.format(value);
}

/** A span of time given in milliseconds. */
export function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (Math.round(ms) < 1000) return `${whole.format(ms)} ms`;
  if (ms < 59_950) return `${tenths.format(ms / 1000)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  const minutes = Math.round(seconds / 60);
  return `${whole.format(Math.floor(minutes / 60))} h ${minutes % 60} min`;
}

/** Tokens in a second. */
export function speed(perSecond) {
  return perSecond === null || perSecond === undefined ? "–" : `${tenths.format(perSecond)} tokens/s`;
}

/** US dollars: as many digits as it takes to show something. Null is a price that nobody knows. */
export function money(dollars) {
  if (dollars === null || dollars === undefined) return "price unknown";
  if (dollars === 0) return "$0";
  const digits = dollars >= 1 ? 2 : Math.min(8, 1 - Math.floor(Math.log10(dollars)));
  return `$${dollars.toFixed(digits)}`;
}

/** A moment, given in milliseconds since the epoch: the time, and the day where it is not today. */
export function moment(ms) {
  const when = new Date(ms);
  const time = when.toLocaleTimeString("en-GB");
  return when.toDateString() === new Date().toDateString() ? time : `${when.toLocaleDateString("en-GB")} ${time}`;
}

/** "1 token", "2 tokens". */
export function many(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

const STATUS = {
  queued: "queued",
  running: "running",
  paused: "paused",
  completed: "completed",
  cancelled: "stopped",
  failed: "failed",
  timed_out: "out of time",
  interrupted: "waits for you",
};

/** A run's status in a word or two. */
export function status(name) {
  return STATUS[name] ?? name;
}
