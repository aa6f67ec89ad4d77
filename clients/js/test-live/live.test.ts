// The client against a real server: that both mean the same by the protocol.

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { createHmac, randomUUID } from "node:crypto";
import { once } from "node:events";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { createRealtime, type Message, type Realtime, type RealtimeError, type RealtimeOptions } from "../src/index.js";

const PYTHON = process.env.PYTHON ?? "python3";
const SECRET = "only for tests, and long enough for HS256";
const isThere = spawnSync(PYTHON, ["-c", "import street_fast.realtime"]).status === 0;
if (!isThere && process.env.PYTHON) throw new Error(`${PYTHON} has no street_fast`);

let server: ChildProcess;
let port = 0;
let clients: Realtime[] = [];

async function serve(): Promise<void> {
  server = spawn(PYTHON, [join(import.meta.dirname, "server.py"), String(port)], { stdio: ["ignore", "pipe", "inherit"] });
  const line = await Promise.race([once(server.stdout!, "data"), once(server, "exit").then(() => undefined)]);
  if (!line) throw new Error("the server did not start");
  port = Number(/:(\d+)\//.exec(line[0])![1]);
}

async function kill(signal: NodeJS.Signals): Promise<void> {
  if (server.exitCode !== null) return;
  const gone = once(server, "exit");
  server.kill(signal);
  await gone;
}

function connect(options: RealtimeOptions = {}): Realtime {
  const rt = createRealtime(`ws://127.0.0.1:${port}/realtime`, { autoConnect: true, ...options });
  clients.push(rt);
  return rt;
}

function token(id: string, seconds: number): string {
  const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const claims = { sub: id, exp: Math.floor(Date.now() / 1000) + seconds };
  const text = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
  return `${text}.${createHmac("sha256", SECRET).update(text).digest("base64url")}`;
}

async function until(condition: () => unknown): Promise<void> {
  for (let tries = 0; tries < 2_000; tries++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`it did not happen within 20 s: ${condition}`);
}

/** Subscribes; when it resolves, the subscription is live. */
async function listen(rt: Realtime, channel: string): Promise<unknown[]> {
  const got: unknown[] = [];
  const subscribed = new Promise((resolve) => rt.on("subscribed", resolve));
  rt.subscribe(channel, ({ data }: Message) => got.push(data));
  await subscribed;
  return got;
}

function record(rt: Realtime, type: string): any[] {
  const events: any[] = [];
  rt.on(type, (event) => events.push(event));
  return events;
}

describe.skipIf(!isThere).each(["websocket", "sse"] as const)("%s", (transport) => {
  const transports = [transport];
  const room = () => `room:${randomUUID()}`;

  beforeAll(() => (port = 0, serve()));
  afterEach(() => {
    for (const rt of clients.splice(0)) rt.close();
  });
  afterAll(() => kill("SIGTERM"));

  test("publish and subscribe, presence, typing, history, ping", async () => {
    const ada = connect({ transports, token: token("ada", 3_600) });
    const ben = connect({ transports, token: token("ben", 3_600) });
    const channel = room();
    const got = await listen(ada, channel);
    let here: string[] = [];
    let typing: string[] = [];
    ada.trackPresence(channel, ({ members }) => (here = members.map(({ memberId }) => memberId)));
    ada.trackTyping(channel, (ids) => (typing = ids));
    await listen(ben, channel);
    await until(() => here.join() === "ada,ben");
    expect([ada.member, ben.member]).toEqual([{ id: "ada" }, { id: "ben" }]);
    expect(await ben.presence(channel)).toEqual({ members: [{ memberId: "ada" }, { memberId: "ben" }] });

    ben.typing(channel, true);
    await until(() => typing.join() === "ben");
    expect(await ben.publish(channel, { text: "hi" })).toMatchObject({ ts: expect.any(Number), position: expect.any(String) });
    await until(() => got.length === 1 && typing.length === 0);
    expect(got).toEqual([{ text: "hi" }]);
    const { messages } = await ada.history(channel);
    expect(messages).toMatchObject([{ type: "message", channel, data: { text: "hi" }, from: "ben" }]);
    expect(await ada.ping()).toBeGreaterThan(0);
    ben.close();
    await until(() => here.join() === "ada");
  });

  test("what was missed comes in order, once: little and much", async () => {
    const [ada, ben] = [connect({ transports }), connect({ transports })];
    const channel = room();
    const got = await listen(ada, channel);
    const gaps = record(ada, "gap");
    await ben.publish(channel, 0);
    await until(() => got.length === 1);
    ada.reconnect();
    for (let count = 1; count < 20; count++) void ben.publish(channel, count);
    await until(() => got.length === 20);
    ada.close();
    const padding = "x".repeat(1_000); // beyond what the reply to a subscribe holds
    for (let count = 20; count < 60; count++) await ben.publish(channel, { count, padding });
    ada.reconnect();
    void ben.publish(channel, "newest");
    await until(() => got.length === 61);
    expect(got.map((data: any) => data.count ?? data)).toEqual([...Array(60).keys(), "newest"]);
    expect(gaps).toEqual([]);
  });

  test("publishes of a connection that was lost arrive once", async () => {
    const [ada, ben] = [connect({ transports }), connect({ transports })];
    const channel = room();
    const got = await listen(ada, channel);
    await until(() => ben.state === "open");
    const published = [];
    for (let count = 0; count < 30; count++) {
      published.push(ben.publish(channel, count));
      if (count % 10 === 9) {
        await new Promise((resolve) => setTimeout(resolve, count)); // some are answered, some are not
        ben.reconnect();
      }
    }
    await Promise.all(published);
    await until(() => got.length >= 30);
    expect(got.sort((a: any, b: any) => a - b)).toEqual([...Array(30).keys()]);
  });

  test("the pace keeps to the limits: nothing is dropped", async () => {
    const ada = connect({ transports, queueSize: 1_000 });
    const errors = record(ada, "error");
    const channels = Array.from({ length: 128 }, room);
    const subscribed = record(ada, "subscribed");
    for (const channel of channels) ada.subscribe(channel, () => {});
    await until(() => subscribed.length === 128);
    await Promise.all(Array.from({ length: 120 }, (_, count) => ada.publish(channels[count]!, count)));
    expect(errors).toEqual([]);
  });

  test("refusals", async () => {
    const rt = connect({ transports });
    const refused = new Promise<RealtimeError>((onError) => void rt.subscribe("secret", () => {}, { onError }));
    expect(await refused).toMatchObject({ code: "forbidden", channel: "secret" });
    await expect(rt.publish("secret", 1)).rejects.toMatchObject({ code: "forbidden" });
    await expect(rt.history("lobby")).rejects.toMatchObject({ code: "bad_request" });
    await expect(rt.publish("lobby", "x".repeat(70_000))).rejects.toMatchObject({ code: "limit_exceeded" });
    expect(rt.state).toBe("open");
  });

  test("a bad token is the end, and a callback gets a second chance", async () => {
    const bad = connect({ transports, token: "bad" });
    const errors = record(bad, "error");
    await until(() => bad.state === "closed");
    expect(errors.at(-1)).toMatchObject({ code: "unauthorized" });
    let asked = 0;
    const good = connect({ transports, token: () => (asked++ ? token("cy", 3_600) : "bad") });
    good.on("error", () => {});
    await until(() => good.member?.id === "cy");
  });

  test("a token is renewed before it expires", async () => {
    let asked = 0;
    const rt = connect({ transports, token: () => token("di", asked++ ? 3_600 : 12) });
    const states = record(rt, "state");
    await until(() => rt.member?.id === "di");
    await new Promise((resolve) => setTimeout(resolve, 14_000)); // beyond expiry and grace
    expect(states.map(({ state }) => state)).toEqual(["open"]);
    expect(asked).toBe(2);
  });

  test("a server that is stopped, and one that is killed: it comes back, and tells of the gap", async () => {
    const rt = connect({ transports });
    const channel = room();
    const got = await listen(rt, channel);
    const gaps = record(rt, "gap");
    const states = record(rt, "state");
    await rt.publish(channel, 1);
    await kill("SIGTERM");
    await until(() => rt.state === "reconnecting");
    const waiting = rt.publish(channel, 2);
    await serve();
    await waiting;
    await kill("SIGKILL");
    await serve();
    await until(() => gaps.length === 2);
    await rt.publish(channel, 3);
    await until(() => got.length === 3);
    expect(got).toEqual([1, 2, 3]);
    expect(states[0]).toMatchObject({ state: "reconnecting", code: 1012, reason: expect.stringMatching(/retry in [\d.]+ s$/) });
  });
});

test.skipIf(!isThere)("where the WebSocket does not get through, the event stream does", async () => {
  port = 0;
  await serve();
  class Blocked {
    onopen = null;
    onmessage = null;
    onclose: ((event: any) => void) | null = null;
    onerror = null;
    constructor() {
      setTimeout(() => this.onclose?.({ code: 1006, reason: "" }), 1);
    }
    send() {}
    close() {}
  }
  const rt = connect({ WebSocket: Blocked, backoff: { firstMs: 10 } });
  const got = await listen(rt, "lobby");
  await rt.publish("lobby", 1);
  await until(() => got.length === 1);
  rt.close();
  await kill("SIGTERM");
});
