// What stands in a room, from the oldest to the newest: messages, lines about people, and lines where messages may be
// missing. Pure: a log and an event make the next log.
//
// Every message is here once, however often it comes: by the event, with the history, as the answer to publishing it,
// and from a server that has forgotten that it had it. It is known by who wrote it and the nonce that it carries. The
// order is that of the server; what is not published yet stands below all else.

import type { Message } from "street-fast";
import type { Said } from "./storage";

const KEPT = 500;
const LONGEST_TEXT = 2_000;

export interface Published {
  kind: "message";
  key: string;
  from: string;
  text: string;
  ts: number;
  position: string | undefined;
}

/** Mine, and not published yet. With a problem it is not tried again before the next connection. */
export interface Waiting {
  kind: "waiting";
  key: string;
  said: Said;
  problem: string;
}

/** About people; or that messages may be missing here. */
export interface Line {
  kind: "note" | "gap";
  key: string;
  text: string;
}

export type Entry = Published | Waiting | Line;

export interface Log {
  /** My id, when it is known. */
  me: string | undefined;
  /** Whether I look at the room: then nothing in it is unread. */
  looks: boolean;
  entries: Entry[];
  unread: number;
  /** Above this one stands "New". */
  firstUnread: string | undefined;
  /** The history was loaded before. */
  known: boolean;
}

export type LogEvent =
  | { type: "reader"; me: string | undefined; looks: boolean }
  | { type: "message"; message: Message }
  /** The history, from the oldest. What is newer than all that was here before is news. */
  | { type: "loaded"; messages: Message[] }
  | { type: "gap" }
  | { type: "note"; text: string }
  | { type: "said"; said: Said }
  | { type: "problem"; nonce: string; problem: string }
  | { type: "discarded"; nonce: string };

export const EMPTY: Log = {
  me: undefined,
  looks: false,
  entries: [],
  unread: 0,
  firstUnread: undefined,
  known: false,
};

let lines = 0;

export function next(log: Log, event: LogEvent): Log {
  const { entries } = log;
  switch (event.type) {
    case "reader": {
      const { me, looks } = event;
      return {
        ...log,
        me,
        looks,
        entries: me === log.me ? entries : entries.map((entry) => (entry.kind === "waiting" ? waiting(me, entry.said) : entry)),
        unread: looks ? 0 : log.unread,
        firstUnread: looks ? log.firstUnread : undefined, // who looks away has seen where the new ones began
      };
    }
    case "message":
      return received(log, [event.message], log.looks);
    case "loaded":
      return { ...withoutClosedGaps(received(log, event.messages, log.looks || !log.known)), known: true };
    case "gap": {
      const isThere = entries.findLast((entry) => entry.kind === "message" || entry.kind === "gap")?.kind === "gap";
      return isThere ? log : appended(log, { kind: "gap", key: `line ${++lines}`, text: "" });
    }
    case "note":
      return appended(log, { kind: "note", key: `line ${++lines}`, text: event.text });
    case "said":
      if (entries.some((entry) => entry.key === keyOf(log.me, event.said.nonce))) return log;
      return { ...log, firstUnread: undefined, entries: [...entries, waiting(log.me, event.said)] };
    case "problem":
      return {
        ...log,
        entries: entries.map((entry) =>
          entry.kind === "waiting" && entry.said.nonce === event.nonce ? { ...entry, problem: event.problem } : entry,
        ),
      };
    case "discarded":
      return {
        ...log,
        entries: entries.filter((entry) => entry.kind !== "waiting" || entry.said.nonce !== event.nonce),
      };
  }
}

/** The same before it is published and after. */
const keyOf = (from: string | undefined, nonce: string): string => `${from} ${nonce}`;

const waiting = (me: string | undefined, said: Said): Waiting => ({
  kind: "waiting",
  key: keyOf(me, said.nonce),
  said,
  problem: "",
});

/** What a message says. Anybody can publish anything: what is not of our kind is nothing. */
export function readable({ from, data, ts, position }: Message): Published | undefined {
  const { text, nonce } = (data ?? {}) as { text?: unknown; nonce?: unknown };
  if (typeof from !== "string" || typeof text !== "string" || !text.trim() || typeof nonce !== "string") return undefined;
  return { kind: "message", key: keyOf(from, nonce), from, text: text.slice(0, LONGEST_TEXT), ts, position };
}

function received(log: Log, messages: Message[], isRead: boolean): Log {
  const here = new Map<string, Entry>(log.entries.map((entry) => [entry.key, entry]));
  const newest = log.entries.findLast((entry) => entry.kind === "message");
  const fresh: Published[] = [];
  let count = 0;
  let firstUnread: string | undefined;
  for (const message of messages) {
    const entry = readable(message);
    if (!entry || here.get(entry.key)?.kind === "message") continue;
    here.set(entry.key, entry);
    fresh.push(entry);
    if (!isRead && entry.from !== log.me && (!newest || isAfter(entry, newest))) {
      count += 1;
      firstUnread ??= entry.key;
    }
  }
  if (!fresh.length) return log;
  const rest = log.entries.filter((entry) => entry.kind !== "waiting");
  const unsent = log.entries.filter((entry) => entry.kind === "waiting" && here.get(entry.key) === entry);
  return trimmed({
    ...log,
    entries: [...merged(rest, fresh), ...unsent],
    unread: log.unread + count,
    firstUnread: log.firstUnread ?? firstUnread,
  });
}

/** Both in the order of the server. Lines stay behind the message that they came after. */
function merged(entries: Entry[], fresh: Published[]): Entry[] {
  const result = [...entries];
  for (const message of fresh) {
    let place = result.length;
    for (let index = result.length - 1; index >= 0; index -= 1) {
      const other = result[index]!;
      if (other.kind !== "message") continue;
      if (!isAfter(other, message)) break;
      place = index;
    }
    result.splice(place, 0, message);
  }
  return result;
}

/** Of one history they are in its order; of two, what one says of when they were. */
function isAfter(one: Published, other: Published): boolean {
  const steps = stepsBetween(other, one);
  return Number.isNaN(steps) ? one.ts > other.ts : steps > 0;
}

/** How many messages `later` is behind `earlier`; NaN if they are not of one history. */
function stepsBetween(earlier: Published, later: Published): number {
  const [epoch, offset] = (earlier.position ?? "").split(":");
  const [laterEpoch, laterOffset] = (later.position ?? "").split(":");
  return epoch && epoch === laterEpoch ? Number(laterOffset) - Number(offset) : NaN;
}

/** What was missing may be there now. */
function withoutClosedGaps(log: Log): Log {
  const { entries } = log;
  const isClosed = (entry: Entry, index: number) => {
    if (entry.kind !== "gap") return false;
    const before = entries.findLast((other, at): other is Published => at < index && other.kind === "message");
    const after = entries.find((other, at): other is Published => at > index && other.kind === "message");
    return before !== undefined && after !== undefined && stepsBetween(before, after) === 1;
  };
  return { ...log, entries: entries.filter((entry, index) => !isClosed(entry, index)) };
}

function appended(log: Log, line: Line): Log {
  const place = log.entries.findIndex((entry) => entry.kind === "waiting");
  return trimmed({ ...log, entries: log.entries.toSpliced(place < 0 ? log.entries.length : place, 0, line) });
}

/** The oldest go first; what is not sent is never among them. */
function trimmed(log: Log): Log {
  const tooMany = log.entries.length - KEPT;
  return tooMany > 0 ? { ...log, entries: log.entries.filter((e, index) => e.kind === "waiting" || index >= tooMany) } : log;
}
