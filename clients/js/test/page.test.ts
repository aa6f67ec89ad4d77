// @vitest-environment jsdom
// What a page tells the connection: the network is back, the tab is visible again.

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { Realtime } from "../src/index.js";
import { connected, FakeSocket, pass, record, standStill, start } from "./fakes.js";

let clients: Realtime[] = [];
beforeEach(standStill);
afterEach(() => {
  for (const rt of clients.splice(0)) rt.close(); // they all listen to the one window
  visibility("visible");
});

function page() {
  const { rt, socket } = connected();
  clients.push(rt);
  return { rt, socket };
}

function visibility(state: DocumentVisibilityState) {
  vi.spyOn(document, "visibilityState", "get").mockReturnValue(state);
  document.dispatchEvent(new Event("visibilitychange"));
}

const tell = (type: string) => window.dispatchEvent(new Event(type));

test.each(["online", "pageshow"])("%s: a connection that waits tries at once", async (sign) => {
  const { socket } = page();
  socket.lose(1012, "retry in 9 s");
  await pass(1_000);
  expect(FakeSocket.all.length).toBe(1);
  tell(sign);
  expect(FakeSocket.all.length).toBe(2);
  tell(sign); // it is on its way
  await pass(9_000);
  expect(FakeSocket.all.length).toBe(2);
});

test("visible: a connection that waits tries at once; hidden: it does not", async () => {
  const { socket } = page();
  socket.lose(1012, "retry in 9 s");
  visibility("hidden");
  expect(FakeSocket.all.length).toBe(1);
  visibility("visible");
  expect(FakeSocket.all.length).toBe(2);
});

test("offline is only a hint: a waiting connection goes on waiting, an open one is tested", async () => {
  const { rt, socket } = page();
  tell("offline");
  expect(rt.state).toBe("open");
  expect(socket.sentOf("ping").length).toBe(1);
  await pass(4_999);
  expect(rt.state).toBe("open");
  await pass(1);
  expect(rt.state).toBe("reconnecting");
  tell("offline");
  expect(FakeSocket.all.length).toBe(1);
});

test("a test of a connection that was lost meanwhile is none of the next one's", async () => {
  const { rt, socket } = page();
  tell("offline");
  tell("online");
  socket.lose();
  await pass(1_000);
  expect(FakeSocket.all.length).toBe(2);
  await pass(8_000); // still opening
  expect(FakeSocket.last.closedWith).toBeUndefined();
  rt.close();
  expect(vi.getTimerCount()).toBe(0);
});

test("a connection that answers the test stays", async () => {
  const { rt, socket } = page();
  tell("online");
  await pass(3_000);
  socket.reply("ping", { ts: 1 });
  await pass(10_000);
  expect(rt.state).toBe("open");
});

test("one that says anything else stays, too", async () => {
  const { rt, socket } = page();
  visibility("visible");
  await pass(1);
  socket.receive({ type: "ping" });
  await pass(10_000);
  expect(rt.state).toBe("open");
});

test("the tab slept for an hour: when it is looked at, the connection is known to be dead at once", async () => {
  const { rt, socket } = page();
  rt.subscribe("chat", () => {});
  socket.reply("subscribe", { position: "e:1:a" });
  visibility("hidden");
  vi.setSystemTime(Date.now() + 3_600_000); // no timer has rung meanwhile
  const states = record(rt, "state");
  visibility("visible");
  expect(states).toMatchObject([{ state: "reconnecting", code: 1006, reason: "nothing came for 3600 s" }]);
  expect(socket.closedWith).toBe(1000);
  await pass(250);
  const next = FakeSocket.last.open().welcome();
  expect(next.sentOf("subscribe")).toMatchObject([{ since: "e:1:a" }]);
});

test("the tab slept shortly: it is tested, and what was missed is recovered if it does not answer", async () => {
  const { rt, socket } = page();
  visibility("hidden");
  vi.setSystemTime(Date.now() + 30_000);
  visibility("visible");
  expect(rt.state).toBe("open");
  expect(socket.sentOf("ping").length).toBe(1);
  await pass(5_000);
  expect(rt.state).toBe("reconnecting");
});

test("signs while it connects change nothing", async () => {
  const rt = start();
  clients.push(rt);
  tell("online");
  visibility("visible");
  expect(FakeSocket.all.length).toBe(1);
  expect(FakeSocket.last.sent).toEqual([]);
});

test("a closed connection listens to nothing", () => {
  const signs = new Set<unknown>();
  for (const target of [window, document]) {
    vi.spyOn(target, "addEventListener").mockImplementation((type) => void signs.add(type));
    vi.spyOn(target, "removeEventListener").mockImplementation((type) => void signs.delete(type));
  }
  const rt = start();
  expect([...signs]).toEqual(["online", "offline", "pageshow", "visibilitychange"]);
  rt.close();
  expect(signs.size).toBe(0);
});

test("a closed connection does not come back by itself", () => {
  const { rt, socket } = page();
  rt.close();
  tell("online");
  visibility("visible");
  expect(FakeSocket.all.length).toBe(1);
  expect(socket.sent).toEqual([]);
  rt.reconnect();
  FakeSocket.last.lose();
  tell("online");
  expect(FakeSocket.all.length).toBe(3);
});
