// Reads one run with the npm package `eventsource` until it stops by itself; prints what it sees, one JSON a line.
import { EventSource } from "eventsource";

const TYPES = ["run.started", "message.started", "token", "message.finished", "usage", "run.finished"];

const source = new EventSource(process.argv[2]);
const print = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);

for (const type of TYPES) {
  source.addEventListener(type, (event) => print([event.lastEventId, event.type, event.data]));
}
source.onerror = (event) => {
  if (event.data === undefined && source.readyState === EventSource.CLOSED) print({ stopped: event.code ?? null });
};
