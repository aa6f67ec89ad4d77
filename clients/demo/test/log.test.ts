import type { Message } from "street-fast";
import { expect, test } from "vitest";
import { EMPTY, type Log, type LogEvent, next, readable } from "../src/log";

const ME = "Ada~1";

const message = (offset: number, { from = "Ben~2", epoch = "e", nonce = `n${offset}` } = {}): Message => ({
  type: "message",
  channel: "room:x",
  data: { text: `text ${offset}`, nonce },
  ts: 1_000 + offset,
  from,
  position: `${epoch}:${offset}:t${offset}`,
});

const event = (...args: Parameters<typeof message>): LogEvent => ({ type: "message", message: message(...args) });
const loaded = (...offsets: number[]): LogEvent => ({ type: "loaded", messages: offsets.map((offset) => message(offset)) });
const said = (nonce: string): LogEvent => ({ type: "said", said: { channel: "room:x", text: nonce, nonce, ts: 5 } });
const away: LogEvent = { type: "reader", me: ME, looks: false };
const here: LogEvent = { type: "reader", me: ME, looks: true };

const after = (...events: LogEvent[]): Log => events.reduce(next, EMPTY);

/** What stands there, in short: "1" a message by its offset, "+n" one that waits, "-" a gap, anything else a note. */
const shown = (log: Log): string[] =>
  log.entries.map((entry) =>
    entry.kind === "message" ? entry.position!.split(":")[1]!
    : entry.kind === "waiting" ? `+${entry.said.nonce}`
    : entry.kind === "gap" ? "-"
    : entry.text,
  );

test("a message stands there once, wherever it comes from", () => {
  expect(shown(after(here, event(1), loaded(1, 2), event(2), event(2), loaded(1, 2)))).toEqual(["1", "2"]);
});

test("the same message from a server that has forgotten it is not a second one", () => {
  expect(after(here, event(1), event(1, { epoch: "later" })).entries).toHaveLength(1);
});

test("another person may use the same nonce", () => {
  expect(after(here, event(1, { nonce: "n" }), event(2, { nonce: "n", from: "Eve~3" })).entries).toHaveLength(2);
});

test("the order is that of the server, whatever came first", () => {
  expect(shown(after(here, event(5), loaded(1, 2, 3, 4, 5), event(7), event(6)))).toEqual(["1", "2", "3", "4", "5", "6", "7"]);
});

test("what waits stands below all else until it is published, and then in its place", () => {
  const before = after(here, event(1), said("a"), said("b"), event(2));
  expect(shown(before)).toEqual(["1", "2", "+a", "+b"]);
  const done = next(before, event(3, { from: ME, nonce: "a" }));
  expect(shown(done)).toEqual(["1", "2", "3", "+b"]);
  expect(done.entries[2]!.key).toBe(before.entries[2]!.key); // the same element
  expect(shown(next(done, said("b")))).toEqual(["1", "2", "3", "+b"]);
});

test("somebody else's message is not taken for mine", () => {
  expect(shown(after(here, said("a"), event(1, { nonce: "a" })))).toEqual(["1", "+a"]);
});

test("what was said before anybody knew who I am is mine", () => {
  expect(shown(after(said("a"), here, event(1, { from: ME, nonce: "a" })))).toEqual(["1"]);
});

test("a problem is shown, and goes with the next try", () => {
  const problem = (problem: string): LogEvent => ({ type: "problem", nonce: "a", problem });
  expect(after(here, said("a"), problem("no")).entries).toMatchObject([{ kind: "waiting", problem: "no" }]);
  expect(after(here, said("a"), problem("no"), problem("")).entries).toMatchObject([{ kind: "waiting", problem: "" }]);
  expect(after(here, said("a"), problem("no"), { type: "discarded", nonce: "a" }).entries).toEqual([]);
});

test("a gap stays where messages are missing", () => {
  const gap: LogEvent = { type: "gap" };
  expect(shown(after(here, event(1), gap, loaded(4, 5)))).toEqual(["1", "-", "4", "5"]);
  expect(shown(after(here, event(1), gap, gap, said("a")))).toEqual(["1", "-", "+a"]);
  expect(shown(after(here, event(1), gap, loaded(), event(2, { epoch: "later" })))).toEqual(["1", "-", "2"]);
});

test("a gap is closed by the messages that were missing", () => {
  expect(shown(after(here, event(1), { type: "gap" }, event(4), loaded(1, 2, 3, 4)))).toEqual(["1", "2", "3", "4"]);
});

test("notes stay behind the message they came after", () => {
  const note: LogEvent = { type: "note", text: "Ben left" };
  expect(shown(after(here, loaded(1), event(3), note, said("a"), event(4), loaded(1, 2, 3)))).toEqual(
    ["1", "2", "3", "Ben left", "4", "+a"],
  );
});

test("only what others say while I look away is unread, and looking reads it", () => {
  const log = after(here, loaded(1), away, event(2), event(3, { from: ME }), event(4), loaded(1, 2, 3, 4, 5));
  expect(log.unread).toBe(3);
  expect(log.firstUnread).toBe("Ben~2 n2");
  expect(next(log, here)).toMatchObject({ unread: 0, firstUnread: "Ben~2 n2" });
  expect(next(next(log, here), away).firstUnread).toBeUndefined();
  expect(next(next(log, here), said("a")).firstUnread).toBeUndefined();
});

test("the history that a room is opened with is not news", () => {
  expect(after(away, loaded(1, 2, 3)).unread).toBe(0);
});

test("old messages go, what is not sent stays", () => {
  const many = Array.from({ length: 600 }, (_, index) => event(index + 1));
  const log = after(here, said("a"), ...many);
  expect(log.entries).toHaveLength(500);
  expect(shown(log).slice(-2)).toEqual(["600", "+a"]);
});

test.each<[string, unknown]>([
  ["nothing", null],
  ["a number", 7],
  ["no text", { nonce: "n" }],
  ["no nonce", { text: "t" }],
  ["white space", { text: " \n", nonce: "n" }],
  ["text that is none", { text: { toString: "x" }, nonce: "n" }],
])("what is no message of ours is nothing: %s", (_, data) => {
  expect(readable({ ...message(1), data })).toBeUndefined();
});

test("nobody can flood the page with one text", () => {
  expect(readable({ ...message(1), data: { text: "x".repeat(10_000), nonce: "n" } })!.text).toHaveLength(2_000);
});

test("however the events arrive, every message is there once and in order", () => {
  const seed = Date.now() % 1_000_000;
  let state = seed;
  const random = (below: number) => (state = (state * 1_103_515_245 + 12_345) % 2 ** 31) % below;
  for (let round = 0; round < 300; round += 1) {
    const count = 1 + random(8);
    const sayings: LogEvent[] = [];
    const arrivals: LogEvent[] = [];
    const arrives = (one: LogEvent) => arrivals.splice(random(arrivals.length + 1), 0, one);
    for (let offset = 1; offset <= count; offset += 1) {
      const from = random(2) ? ME : "Ben~2";
      if (from === ME) sayings.push(said(`n${offset}`));
      for (let times = 0; times <= random(3); times += 1) arrives(event(offset, { from }));
      if (random(4) === 0) arrives({ type: "gap" });
      if (random(4) === 0) arrives(random(2) ? here : away);
    }
    const offsets = shown(after(here, ...sayings, ...arrivals)).filter((one) => one !== "-");
    expect(offsets, `seed ${seed}, round ${round}`).toEqual(Array.from({ length: count }, (_, index) => `${index + 1}`));
  }
});
