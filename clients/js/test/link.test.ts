// The connection that comes back. What a page tells it (online, visible) is in page.test.ts.

import { beforeEach, expect, test, vi } from "vitest";
import type { RealtimeError } from "../src/index.js";
import { comeBack, connected, FakeSocket, LIMITS, nextSocket, pass, record, standStill, start } from "./fakes.js";

beforeEach(standStill);

test("connecting, open with the welcome, reconnecting, open, closed", async () => {
  const rt = start();
  const states = record(rt, "state");
  expect(rt.state).toBe("connecting");
  const socket = FakeSocket.last.open();
  expect(rt.state).toBe("connecting"); // a proxy may take the handshake and then swallow everything
  socket.welcome();
  expect(rt.state).toBe("open");
  await pass(10_000);
  socket.lose(1012, "service restart, retry in 3.4 s");
  expect(rt.state).toBe("reconnecting");
  await comeBack();
  rt.close();
  expect(states).toEqual([
    { type: "state", state: "open" },
    {
      type: "state",
      state: "reconnecting",
      code: 1012,
      reason: "service restart, retry in 3.4 s",
      retryAt: 1_764_000_013_400,
    },
    { type: "state", state: "open" },
    { type: "state", state: "closed", code: 1000, reason: "closed here" },
  ]);
});

test("until it was open once it is connecting, and each failure is told", async () => {
  const rt = start();
  const states = record(rt, "state");
  FakeSocket.last.lose();
  await nextSocket();
  expect(states).toEqual([{ type: "state", state: "connecting", code: 1006, reason: "", retryAt: expect.any(Number) }]);
});

test("the delays grow, with the whole of them random, and have an end", async () => {
  start();
  const delays = [];
  for (let attempt = 0; attempt < 8; attempt++) {
    const lostAt = Date.now();
    FakeSocket.last.lose();
    await nextSocket();
    delays.push(Date.now() - lostAt);
  }
  expect(delays).toEqual([250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000]);
});

test("a server that accepts and dies is not hammered: only a connection that lived resets the delay", async () => {
  const { socket } = connected();
  socket.lose();
  for (let round = 0; round < 4; round++) (await comeBack()).lose();
  let lostAt = Date.now();
  await nextSocket();
  expect(Date.now() - lostAt).toBe(4_000);

  FakeSocket.last.open().welcome();
  await pass(9_999);
  FakeSocket.last.lose();
  lostAt = Date.now();
  await nextSocket();
  expect(Date.now() - lostAt).toBeGreaterThanOrEqual(8_000);

  FakeSocket.last.open().welcome();
  await pass(10_000);
  FakeSocket.last.lose();
  lostAt = Date.now();
  await nextSocket();
  expect(Date.now() - lostAt).toBe(250);
});

test("the clients of a server that restarts come back spread out", async () => {
  let state = 7;
  vi.spyOn(Math, "random").mockImplementation(() => (state = (state * 16_807) % 2_147_483_647) / 2_147_483_647);
  for (let count = 0; count < 300; count++) start();
  for (let attempt = 0; attempt < 4; attempt++) {
    for (const socket of FakeSocket.all.splice(0)) socket.lose();
    const lostAt = Date.now();
    const perTenth = new Map<number, number>();
    while (FakeSocket.all.length < 300) {
      const before = FakeSocket.all.length;
      await pass(50 * 2 ** attempt);
      const tenth = Math.floor((Date.now() - lostAt) / (50 * 2 ** attempt));
      perTenth.set(tenth, (perTenth.get(tenth) ?? 0) + FakeSocket.all.length - before);
    }
    expect(perTenth.size).toBeGreaterThanOrEqual(10);
    expect(Math.max(...perTenth.values())).toBeLessThan(60); // of 300 in ten parts
  }
});

test.each([1000, 1002, 1003, 1007, 1008, 1009, 1010, 1015, 4001, 4029])("%i ends it for good", async (code) => {
  const { rt, socket } = connected();
  const errors = record(rt, "error");
  const states = record(rt, "state");
  socket.lose(code, "why");
  expect(states).toEqual([{ type: "state", state: "closed", code, reason: "why" }]);
  expect(errors).toMatchObject([{ code: code === 4001 ? "unauthorized" : "closed", message: expect.stringContaining("why") }]);
  await pass(120_000);
  expect(FakeSocket.all.length).toBe(1);
  rt.connect();
  expect(FakeSocket.all.length).toBe(1);
  rt.reconnect();
  expect(FakeSocket.all.length).toBe(2);
  FakeSocket.last.open().welcome();
  expect(rt.state).toBe("open");
});

test.each([1001, 1005, 1006, 1011, 1012, 1013, 1014, 4008, 3000, 4500])("%i is worth another try", async (code) => {
  const { socket } = connected();
  socket.lose(code);
  await comeBack();
});

test("an opening that takes too long is given up", async () => {
  start();
  const slow = FakeSocket.last;
  await pass(9_999);
  expect(slow.closedWith).toBeUndefined();
  await pass(1);
  expect(slow.closedWith).toBe(1000);
  (await nextSocket()).open();
  await pass(10_000); // opened, but no welcome
  expect(FakeSocket.last.closedWith).toBe(1000);
});

test("silence beyond the heartbeat and a grace is the end of a connection", async () => {
  const { rt, socket } = connected();
  await pass(34_999);
  expect(rt.state).toBe("open");
  await pass(1);
  expect(rt.state).toBe("reconnecting");
  expect(socket.closedWith).toBe(1000);
  await nextSocket();
});

test("anything that comes is a sign of life", async () => {
  const { rt, socket } = connected();
  for (let round = 0; round < 10; round++) {
    await pass(30_000);
    socket.receive(round % 2 ? { type: "ping" } : { type: "message", channel: "x", data: 1, ts: 1 });
    expect(rt.state).toBe("open");
  }
});

test("each server has its own heartbeat", async () => {
  const { rt, socket } = connected();
  socket.lose();
  await comeBack({ heartbeatMs: 1_000 });
  await pass(11_000);
  expect(rt.state).toBe("reconnecting");
});

test("a server without a heartbeat: our own pings are", async () => {
  const { rt, socket } = connected();
  socket.lose();
  const next = await comeBack({ heartbeatMs: null });
  for (let round = 0; round < 3; round++) {
    await pass(round === 0 ? 1_000 : 25_000);
    expect(next.sentOf("ping").length).toBe(round + 1);
    next.reply("ping", { ts: 1 });
  }
  await pass(35_000);
  expect(rt.state).toBe("reconnecting");
});

test("a dead connection may say what it likes later", async () => {
  const { rt, socket } = connected();
  const { onclose } = socket; // an implementation that has its handler in hand already
  await pass(35_000);
  expect([socket.onopen, socket.onmessage, socket.onclose]).toEqual([null, null, null]);
  await comeBack();
  onclose!({ code: 1008, reason: "" });
  expect(rt.state).toBe("open");
});

test("the laptop slept for an hour: one timer rings late, and the connection is gone", async () => {
  const { rt } = connected();
  vi.setSystemTime(Date.now() + 3_600_000); // the clock goes on, timers do not
  const states = record(rt, "state");
  await pass(35_000);
  expect(states[0]).toMatchObject({ state: "reconnecting", reason: "nothing came for 3635 s" });
});

test("reconnect drops the connection and connects at once", () => {
  const { rt, socket } = connected();
  const states = record(rt, "state");
  rt.reconnect();
  expect(socket.closedWith).toBe(1000);
  expect(FakeSocket.all.length).toBe(2);
  expect(rt.state).toBe("reconnecting");
  FakeSocket.last.open().welcome();
  expect(states.map(({ state }) => state)).toEqual(["reconnecting", "open"]);
});

test("reconnect after the end is told, also where it was never open", () => {
  const rt = start();
  rt.close();
  const states = record(rt, "state");
  rt.reconnect();
  expect(states).toEqual([{ type: "state", state: "connecting" }]);
});

test("reconnect while waiting does not wait, and leaves no second attempt behind", async () => {
  const { rt, socket } = connected();
  socket.lose();
  rt.reconnect();
  expect(FakeSocket.all.length).toBe(2);
  FakeSocket.last.open().welcome();
  await pass(5_000);
  expect(FakeSocket.all.length).toBe(2);
});

test("close ends everything: no timer is left", () => {
  const { rt, socket } = connected({ token: () => "t" });
  rt.subscribe("chat", () => {});
  socket.reply("subscribe");
  rt.typing("chat", true);
  void rt.publish("chat", 1).catch(() => {});
  void rt.history("chat").catch(() => {});
  rt.close();
  expect(vi.getTimerCount()).toBe(0);
  rt.close();
  expect(rt.state).toBe("closed");
});

test("after a loss, what is left is the next attempt", () => {
  const { rt, socket } = connected({ token: vi.fn().mockReturnValue("t") });
  rt.subscribe("chat", () => {});
  socket.reply("auth", { member: { id: "ada" }, expiresAt: Date.now() + 60_000 }).reply("subscribe");
  rt.typing("chat", true);
  void rt.publish("chat", 1);
  socket.lose();
  expect(vi.getTimerCount()).toBe(1);
});

test("close while waiting for the next attempt, and while connecting", async () => {
  const { rt, socket } = connected();
  socket.lose();
  rt.close();
  const other = start();
  other.close();
  await pass(60_000);
  expect(FakeSocket.all.length).toBe(2);
  expect(FakeSocket.last.closedWith).toBe(1000);
});

test("closed from within a handler, of the welcome or of a token that failed, it stays closed", async () => {
  const rt = start();
  rt.on("welcome", () => rt.close());
  FakeSocket.last.open().welcome();
  expect(rt.state).toBe("closed");
  const other = start({ token: vi.fn().mockRejectedValue(new Error("offline")) });
  other.on("error", () => other.close());
  await pass(60_000);
  expect(other.state).toBe("closed");
  expect(vi.getTimerCount()).toBe(0);
});

test("a socket that cannot be made is a failed attempt", async () => {
  let count = 0;
  class Refusing extends FakeSocket {
    constructor(url: string) {
      if (++count === 1) throw new Error("SecurityError");
      super(url);
    }
  }
  const rt = start({ WebSocket: Refusing });
  const states = record(rt, "state");
  await pass(500);
  FakeSocket.last.open().welcome();
  expect(rt.state).toBe("open");
  expect(states.at(-1)).toEqual({ type: "state", state: "open" });
});

test("an address that is none is a failed attempt that says so", async () => {
  const rt = start({}, "wss://[");
  const states = record(rt, "state");
  await pass(500);
  expect(states[0]).toMatchObject({ state: "connecting", reason: expect.stringContaining("Invalid URL") });
  rt.close();
});

test("backoff is an option", async () => {
  start({ backoff: { firstMs: 10_000, longestMs: 12_000 } });
  FakeSocket.last.lose();
  await pass(4_999);
  expect(FakeSocket.all.length).toBe(1);
  await pass(1);
  expect(FakeSocket.all.length).toBe(2);
});

test("the limits of the last welcome are those of the next opening", async () => {
  const { rt, socket } = connected();
  socket.welcome({ limits: { ...LIMITS, messagesBurst: 10, channels: 2 } }).lose();
  for (let count = 0; count < 20; count++) void rt.publish("chat", count);
  (await nextSocket()).open();
  expect(FakeSocket.last.sent.length).toBe(5 + 2);
});

test("errors say what happened", () => {
  const { rt, socket } = connected();
  const errors: RealtimeError[] = record(rt, "error");
  socket.lose(1008, "malformed messages");
  expect(errors[0]!.message).toBe("the server closed the connection for good (1008: malformed messages)");
});
