import { beforeEach, expect, test, vi } from "vitest";
import { createRealtime } from "../src/index.js";
import { comeBack, connected, FakeSocket, pass, record, standStill, start } from "./fakes.js";

beforeEach(standStill);

test("on a server that renders it stays idle", async () => {
  expect(globalThis.WebSocket).toBeUndefined(); // of this Node; newer ones have one, hence autoConnect and the test below
  const rt = createRealtime("/realtime");
  const off = rt.subscribe("chat", () => {});
  rt.connect();
  off();
  await pass(60_000);
  expect(rt.state).toBe("connecting");
  expect(vi.getTimerCount()).toBe(0);
});

test("where there is a WebSocket but no page, the first use connects", () => {
  vi.stubGlobal("WebSocket", FakeSocket);
  const rt = createRealtime("wss://example.org/realtime");
  expect(FakeSocket.all).toEqual([]);
  rt.on("message", () => {});
  expect(FakeSocket.all).toEqual([]);
  rt.subscribe("chat", () => {});
  void rt.publish("chat", 1);
  expect(FakeSocket.all.length).toBe(1);
  void createRealtime("wss://example.org/realtime").publish("chat", 1);
  expect(FakeSocket.all.length).toBe(2);
});

test("what was idle connects when it can", () => {
  const rt = createRealtime("wss://example.org/realtime");
  rt.connect();
  vi.stubGlobal("WebSocket", FakeSocket);
  rt.connect();
  expect(FakeSocket.all.length).toBe(1);
});

test("in a page it connects at once, unless told not to", () => {
  vi.stubGlobal("WebSocket", FakeSocket);
  vi.stubGlobal("location", { href: "https://example.org/page" });
  createRealtime("/realtime");
  expect(FakeSocket.last.url).toBe("wss://example.org/realtime");
  const rt = createRealtime("/realtime", { autoConnect: false });
  expect(FakeSocket.all.length).toBe(1);
  rt.connect();
  rt.connect();
  expect(FakeSocket.all.length).toBe(2);
});

test("events of the application, and those that are not known", () => {
  const { rt, socket } = connected();
  const all = record(rt, "*");
  const mine = record(rt, "score");
  socket.receive({ type: "score", data: { home: 1 }, ts: 3 }).receive({ type: "new-in-version-1", future: true });
  expect(mine).toEqual([{ type: "score", data: { home: 1 }, ts: 3 }]);
  expect(all.map(({ type }) => type)).toEqual(["score", "new-in-version-1"]);
});

test("pings and replies are not told", () => {
  const { rt, socket } = connected();
  const all = record(rt, "*");
  socket.receive({ type: "ping" }).receive({ type: "reply", id: 77, data: {} });
  expect(all).toEqual([]);
  expect(socket.sent).toEqual([{ type: "pong" }]);
});

test("welcome and state are told", () => {
  const rt = start();
  const welcomes = record(rt, "welcome");
  const states: string[] = [];
  const off = rt.onState(({ state }) => states.push(state));
  FakeSocket.last.open().welcome();
  expect(welcomes).toMatchObject([{ type: "welcome", data: { id: "c1" } }]);
  off();
  rt.close();
  expect(states).toEqual(["open"]);
});

test("emit sends an event to the application's handlers, now or not at all", async () => {
  const rt = start();
  expect(rt.emit("vote", { for: 1 })).toBe(false);
  const socket = FakeSocket.last.open().welcome();
  expect(rt.emit("vote", { for: 1 })).toBe(true);
  expect(rt.emit("vote", undefined, "chat")).toBe(true);
  expect(socket.sent).toEqual([
    { type: "vote", data: { for: 1 } },
    { type: "vote", channel: "chat" },
  ]);
});

test("latency is measured a second after the welcome, and with each heartbeat", async () => {
  const { rt, socket } = connected();
  expect(rt.latency).toBeUndefined();
  await pass(1_000);
  expect(socket.sentOf("ping").length).toBe(1);
  await pass(40);
  socket.reply("ping", { ts: 1 });
  await pass(0);
  expect(rt.latency).toBe(40);
  socket.receive({ type: "ping" });
  await pass(24_960);
  expect(socket.sentOf("ping").length).toBe(2);
  socket.lose();
  const next = await comeBack();
  await pass(1_000);
  expect(next.sentOf("ping").length).toBe(1);
});

test("ping on demand", async () => {
  const { rt, socket } = connected();
  const round = rt.ping();
  await pass(7);
  socket.reply("ping", { ts: 1 });
  expect(await round).toBe(7);
  expect(rt.latency).toBe(7);
});

test("methods need no this", () => {
  const { rt, socket } = connected();
  const { subscribe, send } = rt;
  subscribe("chat", () => {});
  void send("chat", 1);
  expect(socket.sent.length).toBe(2);
});
