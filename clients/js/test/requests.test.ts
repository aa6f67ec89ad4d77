// Publishing and asking, over connections that come and go.

import { beforeEach, expect, test, vi } from "vitest";
import { RealtimeError } from "../src/index.js";
import { comeBack, connected, FakeSocket, LIMITS, pass, record, standStill, start } from "./fakes.js";

beforeEach(standStill);

const failure = (promise: Promise<unknown>) => promise.then(() => undefined, (error: RealtimeError) => error);
const data = (socket: FakeSocket) => socket.sentOf("publish").map((envelope) => envelope.data);

test("a publish resolves with the reply", async () => {
  const { rt, socket } = connected();
  const published = rt.publish("chat", { text: "hi" });
  expect(socket.sent).toEqual([
    { type: "publish", channel: "chat", data: { text: "hi" }, key: expect.any(String), id: expect.any(Number) },
  ]);
  socket.reply("publish", { ts: 5, position: "e:1:t" });
  expect(await published).toEqual({ ts: 5, position: "e:1:t" });
});

test("send is the same, and nothing is null", () => {
  const { rt, socket } = connected();
  void rt.send("chat", undefined, { key: "mine" });
  expect(socket.sent[0]).toMatchObject({ data: null, key: "mine" });
});

test("each publish has a random key of at most 64 bytes", () => {
  const { rt, socket } = connected();
  for (let count = 0; count < 20; count++) void rt.publish("chat", count);
  const keys = socket.sentOf("publish").map(({ key }) => key);
  expect(new Set(keys).size).toBe(20);
  for (const key of keys) expect(key).toMatch(/^[a-z0-9-]{8,64}$/);
});

test("the server's refusal rejects with its code", async () => {
  const { rt, socket } = connected();
  const failed = failure(rt.publish("chat", 1));
  socket.refuse("publish", "forbidden");
  const error = await failed;
  expect(error).toBeInstanceOf(RealtimeError);
  expect(error).toMatchObject({ code: "forbidden", channel: "chat", message: "it is forbidden" });
  expect(String(error)).toBe("RealtimeError: it is forbidden");
});

test("data that is no JSON rejects", async () => {
  const { rt } = connected();
  await expect(rt.publish("chat", 1n)).rejects.toThrow(TypeError);
});

test("what is published before the connection is there goes out with it, in order", () => {
  const rt = start();
  for (const text of ["a", "b", "c"]) void rt.publish("chat", text);
  const socket = FakeSocket.last;
  expect(socket.sent).toEqual([]);
  socket.open(); // not before the welcome is too early
  expect(data(socket)).toEqual(["a", "b", "c"]);
});

test("an unanswered publish is sent again after a reconnect, with the same key, before newer ones", async () => {
  const { rt, socket } = connected();
  const first = rt.publish("chat", "a");
  const second = rt.publish("chat", "b");
  socket.receive({ type: "reply", id: socket.sent[0].id, data: { ts: 1 } });
  await first;
  socket.lose();
  void rt.publish("chat", "c");
  const next = await comeBack();
  expect(data(next)).toEqual(["b", "c"]);
  expect(next.sent[0].key).toBe(socket.sent[1].key);
  next.receive({ type: "reply", id: next.sent[0].id, data: { ts: 2, duplicate: true } });
  expect(await second).toEqual({ ts: 2, duplicate: true });
  next.lose();
  expect(data(await comeBack())).toEqual(["c"]); // what was answered is not sent again
});

test("the queue has a bound, and says so", async () => {
  const rt = start({ queueSize: 3 });
  for (let count = 0; count < 3; count++) void rt.publish("chat", count);
  const error = await failure(rt.publish("chat", 3));
  expect(error).toMatchObject({ code: "queue_full", channel: "chat" });
  expect(error!.message).toContain("queueSize");
  FakeSocket.last.open().welcome();
  expect(data(FakeSocket.last)).toEqual([0, 1, 2]);
  void rt.publish("chat", 4); // what is under way does not count
  expect(data(FakeSocket.last)).toEqual([0, 1, 2, 4]);
});

test("the pace is that of the server, and the queue bounds what waits for it", async () => {
  const { rt, socket } = connected({ queueSize: 10 });
  const errors: unknown[] = [];
  for (let count = 0; count < 200; count++) rt.publish("chat", count).catch((error) => errors.push(error.code));
  expect(socket.sent.length).toBe(35 + 128);
  await pass(0);
  expect(errors).toEqual(Array(200 - 163 - 10).fill("queue_full"));
  await pass(250);
  expect(socket.sent.length).toBe(163 + 5);
  await pass(250);
  expect(data(socket)).toEqual(Array.from({ length: 173 }, (_, index) => index));
});

test("the welcome lets go what waits for it", () => {
  const rt = start();
  for (let count = 0; count < 50; count++) void rt.publish("chat", count);
  const socket = FakeSocket.last.open();
  expect(socket.sent.length).toBe(35);
  socket.welcome();
  expect(socket.sent.length).toBe(50);
});

test("what waits when the connection is lost goes with the next one, once", async () => {
  const { rt, socket } = connected();
  for (let count = 0; count < 170; count++) void rt.publish("chat", count);
  expect(socket.sent.length).toBe(163);
  socket.lose();
  const next = await comeBack();
  await pass(1_000);
  expect(data(next)).toEqual([...Array(170).keys()]);
});

test("what nobody waits for any more is not sent", async () => {
  const { rt, socket } = connected({ requestTimeoutMs: 100, queueSize: 1_000 });
  for (let count = 0; count < 173; count++) rt.publish("chat", count).catch(() => {});
  const late = failure(rt.history("chat"));
  await pass(100);
  expect(await late).toMatchObject({ code: "timeout" });
  await pass(5_000);
  expect(socket.sentOf("history")).toEqual([]);
});

test("pings of the server are answered at once and paid for", async () => {
  const { rt, socket } = connected();
  for (let count = 0; count < 165; count++) void rt.publish("chat", count).catch(() => {});
  expect(socket.sent.length).toBe(163);
  socket.receive({ type: "ping" }).receive({ type: "ping" });
  expect(socket.sentOf("pong").length).toBe(2);
  await pass(149);
  expect(socket.sentOf("publish").length).toBe(163);
  await pass(1);
  expect(socket.sentOf("publish").length).toBe(164);
});

test("what is sent but not answered waits again after a loss, and counts", async () => {
  const { rt, socket } = connected({ queueSize: 2 });
  for (let count = 0; count < 3; count++) void rt.publish("chat", count);
  expect(data(socket)).toEqual([0, 1, 2]);
  socket.lose();
  expect(await failure(rt.publish("chat", 3))).toMatchObject({ code: "queue_full" });
});

test("what waits to be sent again counts, too", async () => {
  const { rt, socket } = connected({ queueSize: 1 });
  rt.on("error", () => {});
  void rt.publish("chat", 1);
  socket.refuse("publish", "unknown");
  await pass(990);
  socket.receive({ type: "error", data: { code: "rate_limited", message: "too fast" } });
  await pass(10);
  expect(data(socket)).toEqual([1]);
  expect(await failure(rt.publish("chat", "x"))).toMatchObject({ code: "queue_full" });
});

test("a new connection is a new chance: three attempts", async () => {
  const { rt, socket } = connected();
  const failed = failure(rt.publish("chat", "a"));
  await pass(20_000);
  expect(data(socket).length).toBe(3);
  socket.lose();
  const next = await comeBack();
  await pass(20_000);
  expect(data(next).length).toBe(3);
  await pass(10_000);
  expect(await failed).toMatchObject({ code: "timeout" });
});

test("without an answer it is sent again with the same key, three times in all", async () => {
  const { rt, socket } = connected();
  const failed = failure(rt.publish("chat", "a"));
  await pass(9_999);
  expect(data(socket)).toEqual(["a"]);
  await pass(1);
  expect(data(socket)).toEqual(["a", "a"]);
  await pass(10_000);
  expect(data(socket)).toEqual(["a", "a", "a"]);
  expect(new Set(socket.sentOf("publish").map(({ key }) => key)).size).toBe(1);
  socket.receive({ type: "ping" });
  await pass(10_000);
  expect(await failed).toMatchObject({ code: "timeout" });
  expect(data(socket).length).toBe(3);
});

test("a late answer to the first is an answer", async () => {
  const { rt, socket } = connected();
  const published = rt.publish("chat", "a");
  await pass(10_500);
  socket.receive({ type: "reply", id: socket.sentOf("publish")[0].id, data: { ts: 3 } });
  expect(await published).toEqual({ ts: 3 });
  socket.reply("publish", { ts: 3, duplicate: true }); // to the second: nobody waits any more
});

test("an unknown outcome is tried again with the same key", async () => {
  const { rt, socket } = connected();
  const failed = failure(rt.publish("chat", "a"));
  for (let round = 1; round < 3; round++) {
    socket.refuse("publish", "unknown");
    await pass(1_000);
    expect(data(socket).length).toBe(round + 1);
  }
  socket.refuse("publish", "unknown");
  expect(await failed).toMatchObject({ code: "unknown" });
});

test("after an unknown outcome the time runs anew", async () => {
  const { rt, socket } = connected();
  void rt.publish("chat", "a");
  await pass(5_000);
  socket.refuse("publish", "unknown");
  await pass(1_000);
  expect(data(socket).length).toBe(2);
  await pass(9_999);
  expect(data(socket).length).toBe(2);
  await pass(1);
  expect(data(socket).length).toBe(3);
});

test("an unknown outcome that is waiting is sent once after a reconnect", async () => {
  const { rt, socket } = connected();
  void rt.publish("chat", "a");
  socket.refuse("publish", "unknown").lose();
  expect(data(await comeBack())).toEqual(["a"]);
});

test("what the server cannot do now is the caller's to try again", async () => {
  const { rt, socket } = connected();
  const failed = failure(rt.publish("chat", "a"));
  socket.refuse("publish", "unavailable");
  expect(await failed).toMatchObject({ code: "unavailable" });
});

test("sent, and back only after the server has forgotten the key: nobody knows", async () => {
  const { rt, socket } = connected();
  const sent = failure(rt.publish("chat", "sent"));
  socket.lose();
  const waiting = rt.publish("chat", "waiting");
  await pass(290_000);
  rt.reconnect();
  const next = FakeSocket.last.open().welcome();
  expect(await sent).toMatchObject({ code: "unknown" });
  expect(data(next)).toEqual(["waiting"]); // never sent: it may wait as long as it takes
  next.reply("publish", { ts: 1 });
  expect(await waiting).toEqual({ ts: 1 });
});

test("a message that is too large for the server is not sent: it would end the connection", async () => {
  const { rt, socket } = connected();
  socket.welcome({ limits: { ...LIMITS, messageBytes: 1_000 } });
  expect(await failure(rt.publish("chat", "x".repeat(1_000)))).toMatchObject({ code: "limit_exceeded" });
  expect(await failure(rt.publish("chat", "€".repeat(400)))).toMatchObject({ code: "limit_exceeded" });
  void rt.publish("chat", "x".repeat(850));
  expect(socket.sent.length).toBe(1);
});

test("presence and history are asked for and answered", async () => {
  const { rt, socket } = connected();
  const presence = rt.presence("chat");
  const history = rt.history("chat", { limit: 2, since: "e:1:t" });
  expect(socket.sentOf("presence")).toMatchObject([{ channel: "chat" }]);
  expect(socket.sentOf("history")).toMatchObject([{ channel: "chat", data: { limit: 2, since: "e:1:t" } }]);
  socket.reply("history", { messages: [], position: "e:1:t", recovered: true });
  socket.reply("presence", { memberCount: 3 });
  expect(await history).toEqual({ messages: [], position: "e:1:t", recovered: true });
  expect(await presence).toEqual({ memberCount: 3 });
});

test("a question is asked again on the next connection, within its time", async () => {
  const { rt, socket } = connected();
  const presence = rt.presence("chat");
  socket.lose();
  await pass(1_000);
  const next = FakeSocket.last.open().welcome();
  next.reply("presence", { memberCount: 1 });
  expect(await presence).toEqual({ memberCount: 1 });

  const late = failure(rt.history("chat"));
  next.lose();
  await pass(10_000);
  expect(await late).toMatchObject({ code: "timeout", channel: "chat" });
  const third = FakeSocket.last.open().welcome();
  expect(third.sentOf("history")).toEqual([]);
});

test("requestTimeoutMs", async () => {
  const { rt } = connected({ requestTimeoutMs: 500 });
  const failed = failure(rt.history("chat"));
  await pass(500);
  expect(await failed).toMatchObject({ code: "timeout", message: "no answer within 0.5 s" });
});

test("an error without an id is an error event", () => {
  const { rt, socket } = connected();
  const errors = record(rt, "error");
  socket.receive({ type: "error", channel: "chat", data: { code: "forbidden", message: "no" } });
  expect(errors).toMatchObject([{ code: "forbidden", channel: "chat" }]);
  expect(console.error).not.toHaveBeenCalled();
});

test("an error that nobody listens for is written down", () => {
  const { socket } = connected();
  socket.receive({ type: "error", data: { code: "bad_request", message: "no" } });
  expect(console.error).toHaveBeenCalledOnce();
});

test("when the server drops something for our rate, the pace slows down", async () => {
  const { rt, socket } = connected();
  rt.on("error", () => {});
  socket.receive({ type: "error", data: { code: "rate_limited", message: "too fast" } });
  void rt.publish("chat", 1);
  expect(data(socket)).toEqual([]);
  await pass(50);
  expect(data(socket)).toEqual([1]);
});

test("other errors do not", () => {
  const { rt, socket } = connected();
  rt.on("error", () => {});
  socket.receive({ type: "error", data: { code: "bad_request", message: "no" } });
  socket.receive({ type: "error", channel: "chat", data: { code: "rate_limited", message: "the channel's" } });
  void rt.publish("chat", 1);
  expect(data(socket)).toEqual([1]);
});

test("an answer stops the clock", () => {
  const { rt, socket } = connected();
  const before = vi.getTimerCount();
  void rt.publish("chat", 1);
  void rt.history("chat");
  expect(vi.getTimerCount()).toBe(before + 2);
  socket.reply("publish", { ts: 1 }).reply("history", { messages: [] });
  expect(vi.getTimerCount()).toBe(before);
});

test("close rejects what is not answered, and what comes after", async () => {
  const { rt, socket } = connected();
  const open = failure(rt.publish("chat", 1));
  rt.close();
  expect(await open).toMatchObject({ code: "closed" });
  expect(await failure(rt.publish("chat", 2))).toMatchObject({ code: "closed" });
  expect(await failure(rt.history("chat"))).toMatchObject({ code: "closed" });
  expect(await failure(rt.ping())).toMatchObject({ code: "disconnected" });
  expect(socket.closedWith).toBe(1000);
});

test("replies to nobody are ignored", () => {
  const { rt, socket } = connected();
  const all = vi.fn();
  rt.on("*", all);
  socket.receive({ type: "reply", id: 99, data: {} });
  socket.receive({ type: "reply", id: "x", data: {} });
  expect(all).not.toHaveBeenCalled();
});
