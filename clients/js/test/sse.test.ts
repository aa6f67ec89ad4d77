// Server-Sent Events, for where WebSockets do not get through.

import { beforeEach, expect, test, vi } from "vitest";
import { createRealtime, type Realtime, type RealtimeOptions } from "../src/index.js";
import { FakeSocket, LIMITS, message, pass, record, standStill } from "./fakes.js";

class FakeEventSource {
  static all: FakeEventSource[] = [];
  readyState = 0;
  onmessage: ((event: any) => void) | null = null;
  onerror: ((event: any) => void) | null = null;
  closed = false;
  readonly url: string;

  constructor(url: string) {
    this.url = url;
    FakeEventSource.all.push(this);
  }

  static get last(): FakeEventSource {
    return FakeEventSource.all.at(-1)!;
  }

  close(): void {
    this.closed = true;
  }

  receive(event: object): this {
    this.onmessage?.({ data: JSON.stringify(event) });
    return this;
  }

  welcome(id = "s1"): this {
    this.readyState = 1;
    return this.receive({ type: "welcome", data: { id, heartbeatMs: 15_000, limits: LIMITS } });
  }

  fail(readyState: number): this {
    this.readyState = readyState;
    this.onerror?.({});
    return this;
  }
}

interface Request {
  url: string;
  envelopes: any[];
  answer: (status: number) => void;
}

let got: unknown[] = [];
let posts: Request[] = [];
let probes: string[] = [];
let refusal: Response | Error = new Error("offline");

const fakeFetch: NonNullable<RealtimeOptions["fetch"]> = (url, init) => {
  if (init?.method !== "POST") {
    probes.push(url);
    return refusal instanceof Error ? Promise.reject(refusal) : Promise.resolve(refusal);
  }
  return new Promise((resolve, reject) => {
    const envelopes = [JSON.parse(String(init.body))].flat();
    init.signal!.addEventListener("abort", () => reject(new Error("given up")));
    posts.push({
      url,
      envelopes,
      answer: (status) => (status ? resolve(new Response(null, { status })) : reject(new Error("offline"))),
    });
  });
};

beforeEach(() => {
  standStill();
  FakeEventSource.all = [];
  got = [];
  posts = [];
  probes = [];
});

function start(options: RealtimeOptions = {}): Realtime {
  return createRealtime("wss://example.org/realtime?app=1", {
    WebSocket: FakeSocket,
    EventSource: FakeEventSource,
    fetch: fakeFetch,
    ...options,
  });
}

/** A client that is connected by an event stream. */
function streaming(options: RealtimeOptions = {}) {
  const rt = start({ transports: ["sse"], ...options });
  return { rt, source: FakeEventSource.last.welcome() };
}

async function until(condition: () => boolean): Promise<void> {
  for (let ms = 0; ms < 60_000; ms += 50) {
    if (condition()) return;
    await pass(50);
  }
  throw new Error("it did not happen within a minute");
}

test("after two WebSockets that never opened comes an event stream", async () => {
  const rt = start();
  FakeSocket.last.lose();
  await until(() => FakeSocket.all.length === 2);
  expect(FakeEventSource.all).toEqual([]);
  FakeSocket.last.open(); // the handshake goes through, and nothing after it
  await until(() => FakeEventSource.all.length === 1);
  expect(FakeSocket.last.closedWith).toBe(1000);
  FakeEventSource.last.welcome();
  expect(rt.state).toBe("open");
});

test("the next reconnect tries the WebSocket again, and falls back after one failure", async () => {
  start();
  FakeSocket.last.lose();
  await until(() => FakeSocket.all.length === 2);
  FakeSocket.last.lose();
  await until(() => FakeEventSource.all.length === 1);
  FakeEventSource.last.welcome().fail(0);
  await until(() => FakeSocket.all.length === 3);
  FakeSocket.last.lose();
  await until(() => FakeEventSource.all.length === 2);
  FakeEventSource.last.fail(0);
  await until(() => FakeSocket.all.length === 4);
  FakeSocket.last.open().welcome().lose();
  await until(() => FakeSocket.all.length === 5);
  FakeSocket.last.lose(); // it has worked before, so once is no proof
  await until(() => FakeSocket.all.length === 6);
});

/** A page that was on a WebSocket until the server went away, and found it again when it tried an event stream. */
async function fallen() {
  const rt = start();
  FakeSocket.last.open().welcome();
  rt.subscribe("chat", ({ data }) => got.push(data));
  FakeSocket.last.reply("subscribe", { position: "e:0:0" }).receive(message("chat", 1, "e:1:a")).lose();
  for (let count = 2; count <= 6; count++) {
    await until(() => FakeSocket.all.length === count);
    FakeSocket.last.lose();
  }
  await until(() => FakeEventSource.all.length === 1);
  const source = FakeEventSource.last.welcome();
  await pass(0);
  posts[0]!.answer(204);
  source.receive({ type: "reply", id: posts[0]!.envelopes[0].id, channel: "chat", data: { recovered: true, messages: [] } });
  return { rt, source };
}

/** Time goes by on an event stream. */
async function heartbeats(source: FakeEventSource, ms: number): Promise<void> {
  for (let passed = 0; passed < ms; passed += 15_000) {
    await pass(15_000);
    source.receive({ type: "ping" });
  }
}

test("where the last connection was a WebSocket, five must fail before an event stream is tried, once", async () => {
  start();
  FakeSocket.last.open().welcome().lose();
  for (let round = 1; round <= 2; round++) {
    for (let count = 1; count <= 5; count++) {
      await until(() => FakeSocket.all.length === (round - 1) * 5 + count + 1);
      expect(FakeEventSource.all.length).toBe(round - 1);
      FakeSocket.last.lose();
    }
    await until(() => FakeEventSource.all.length === round);
    FakeEventSource.last.fail(0);
  }
});

test("a page that fell to an event stream while the server was away comes back to the WebSocket", async () => {
  const { rt, source } = await fallen();
  const states = record(rt, "state");
  const gaps = record(rt, "gap");
  await heartbeats(source, 45_000);
  expect(FakeSocket.all.length).toBe(6);
  await heartbeats(source, 15_000);
  expect(FakeSocket.all.length).toBe(7);
  const scout = FakeSocket.last.open();
  expect(states).toEqual([]); // the stream goes on meanwhile
  source.receive(message("chat", 2, "e:2:b"));
  const published = rt.publish("chat", 3);
  await pass(0);

  scout.welcome();
  expect([scout.closedWith, source.closed]).toEqual([1000, true]);
  expect(scout.sent).toEqual([]);
  const socket = FakeSocket.last.open().welcome();
  expect(FakeSocket.all.length).toBe(8);
  expect(states.map(({ state }) => state)).toEqual(["reconnecting", "open"]);
  expect(socket.sentOf("subscribe")).toMatchObject([{ channel: "chat", since: "e:2:b" }]);
  expect(socket.sentOf("publish")[0].key).toBe(posts[1]!.envelopes[0].key);
  const missed = [message("chat", 2, "e:2:b"), message("chat", 3, "e:3:c")];
  socket.reply("subscribe", { position: "e:3:c", recovered: true, messages: missed }).reply("publish", { ts: 9 });
  expect(await published).toEqual({ ts: 9 });
  expect(got).toEqual([1, 2, 3]);
  expect(gaps).toEqual([]);
  await pass(30_000);
  expect(FakeSocket.all.length).toBe(8);
});

test("where WebSockets are blocked it is tried more and more rarely, and the stream notices nothing of it", async () => {
  const rt = start();
  FakeSocket.last.lose();
  await until(() => FakeSocket.all.length === 2);
  FakeSocket.last.lose();
  await until(() => FakeEventSource.all.length === 1);
  const source = FakeEventSource.last.welcome();
  const states = record(rt, "state");
  const tries = [];
  for (let seconds = 15; seconds <= 600; seconds += 15) {
    await heartbeats(source, 15_000);
    if (FakeSocket.all.length > tries.length + 2) tries.push(seconds);
    if (tries.length === 1) FakeSocket.last.lose();
  }
  expect(tries).toEqual([60, 120, 240, 480]);
  expect(FakeSocket.all.slice(-3).map(({ closedWith }) => closedWith)).toEqual([1000, 1000, undefined]);
  expect(states).toEqual([]);
  expect(posts).toEqual([]);
  rt.close();
  expect(FakeSocket.last.closedWith).toBe(1000);
  expect(vi.getTimerCount()).toBe(0);
});

test("who wants event streams only gets no WebSocket", async () => {
  const { source } = streaming();
  await heartbeats(source, 300_000);
  expect(FakeSocket.all).toEqual([]);
});

test.each([1000, 1005])("a WebSocket that is closed before its welcome, with %i and no reason, did not get through", async (code) => {
  start();
  FakeSocket.last.open().lose(code);
  await until(() => FakeSocket.all.length === 2);
  FakeSocket.last.open().lose(code);
  await until(() => FakeEventSource.all.length === 1);
});

test.each([
  [1000, "done"],
  [1008, ""],
  [4001, "unauthorized"],
])("what a server says before the welcome counts: %i %s", (code, reason) => {
  const rt = start();
  FakeSocket.last.open().lose(code, reason);
  expect(rt.state).toBe("closed");
});

test("a WebSocket that is closed with a code got through: no event stream", async () => {
  start();
  for (let count = 1; count <= 4; count++) {
    FakeSocket.last.open().lose(1013, "over capacity");
    await until(() => FakeSocket.all.length === count + 1);
  }
  expect(FakeEventSource.all).toEqual([]);
});

test("without a token there was no WebSocket to fail", async () => {
  const token = vi.fn().mockRejectedValue(new Error("offline")).mockReturnValueOnce(new Promise(() => {}));
  start({ token }).on("error", () => {});
  await until(() => token.mock.calls.length === 3);
  token.mockResolvedValue("t");
  await until(() => FakeSocket.all.length === 1);
  FakeSocket.last.lose();
  await until(() => FakeSocket.all.length === 2);
  expect(FakeEventSource.all).toEqual([]);
});

test("the transport is told while there is a connection", () => {
  const rt = start();
  FakeSocket.last.open();
  expect(rt.transport).toBeUndefined();
  FakeSocket.last.welcome();
  expect(rt.transport).toBe("websocket");
  FakeSocket.last.lose();
  expect(rt.transport).toBeUndefined();
  expect(streaming().rt.transport).toBe("sse");
});

test("transports: websocket only", async () => {
  start({ transports: ["websocket"] });
  for (let count = 1; count <= 4; count++) {
    FakeSocket.last.lose();
    await until(() => FakeSocket.all.length === count + 1);
  }
  expect(FakeEventSource.all).toEqual([]);
});

test("where there is no EventSource, the WebSocket is tried on and on", async () => {
  vi.stubGlobal("EventSource", undefined);
  createRealtime("wss://example.org/realtime", { WebSocket: FakeSocket });
  for (let count = 1; count <= 4; count++) {
    FakeSocket.last.lose();
    await until(() => FakeSocket.all.length === count + 1);
  }
});

test("the address: the query stays, the token is added", () => {
  const { source } = streaming({ token: "a b" });
  expect(source.url).toBe("https://example.org/realtime/sse?app=1&token=a+b");
});

test("subscriptions go by POST to the connection of the welcome, and the token does not go twice", async () => {
  const rt = start({ transports: ["sse"], token: "t" });
  rt.subscribe("chat", () => {});
  rt.subscribe("room", () => {});
  await pass(0);
  expect(posts).toEqual([]);
  FakeEventSource.last.welcome("s 1");
  await pass(0);
  expect(posts.map(({ url }) => url)).toEqual(["https://example.org/realtime/send?app=1&connection=s+1"]);
  expect(posts[0]!.envelopes.map(({ type, channel }) => [type, channel])).toEqual([
    ["subscribe", "chat"],
    ["subscribe", "room"],
  ]);
});

test("replies and messages come by the stream", async () => {
  const { rt, source } = streaming();
  rt.subscribe("chat", ({ data }) => got.push(data));
  await pass(0);
  posts[0]!.answer(204);
  source.receive({ type: "reply", id: posts[0]!.envelopes[0].id, channel: "chat", data: { position: "e:0:0" } });
  source.receive(message("chat", 1, "e:1:a"));
  expect(got).toEqual([1]);
  const published = rt.publish("chat", 2);
  await pass(0);
  source.receive({ type: "reply", id: posts[1]!.envelopes[0].id, data: { ts: 9 } });
  expect(await published).toEqual({ ts: 9 });
});

test("one POST at a time keeps the order, and what gathers goes together, eight at most", async () => {
  const { rt } = streaming();
  void rt.publish("chat", 0);
  await pass(0);
  for (let count = 1; count <= 10; count++) void rt.publish("chat", count);
  await pass(0);
  expect(posts.length).toBe(1);
  posts[0]!.answer(204);
  await pass(0);
  expect(posts[1]!.envelopes.map(({ data }) => data)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  posts[1]!.answer(204);
  await pass(0);
  expect(posts[2]!.envelopes.map(({ data }) => data)).toEqual([9, 10]);
});

test.each([404, 413, 500, 0])("a POST that fails (%i) is a lost connection, and the publish goes again", async (status) => {
  const { rt, source } = streaming();
  const published = rt.publish("chat", 1);
  await pass(0);
  posts[0]!.answer(status);
  await pass(0);
  expect(rt.state).toBe("reconnecting");
  expect(source.closed).toBe(true);
  await until(() => FakeEventSource.all.length === 2);
  FakeEventSource.last.welcome("s2");
  await pass(0);
  expect(posts[1]!.url).toContain("connection=s2");
  expect(posts[1]!.envelopes[0].key).toBe(posts[0]!.envelopes[0].key);
  FakeEventSource.last.receive({ type: "reply", id: posts[1]!.envelopes[0].id, data: { ts: 1 } });
  expect(await published).toEqual({ ts: 1 });
});

test("after a pause it sends again", async () => {
  const { rt } = streaming();
  for (let count = 0; count < 3; count++) {
    void rt.publish("chat", count);
    await pass(0);
    posts[count]!.answer(204);
    await pass(100);
  }
  expect(posts.length).toBe(3);
});

test("a stream that is lost sends nothing more to its connection, and says nothing more", async () => {
  const { rt, source } = streaming();
  const states = record(rt, "state");
  void rt.publish("chat", 1);
  await pass(0);
  void rt.publish("chat", 2);
  source.fail(0);
  expect([source.onmessage, source.onerror, source.closed]).toEqual([null, null, true]);
  posts[0]!.answer(404);
  await pass(100);
  expect(posts.length).toBe(1);
  expect(states.length).toBe(1);
});

test("a network that is not there needs no question", async () => {
  start({ transports: ["sse"] });
  FakeEventSource.last.fail(0);
  await until(() => FakeEventSource.all.length === 2);
  expect(probes).toEqual([]);
});

test("after a reconnect the channels come back with their positions", async () => {
  const { rt, source } = streaming();
  rt.subscribe("chat", () => {});
  await pass(0);
  posts[0]!.answer(204);
  source.receive({ type: "reply", id: 1, channel: "chat", data: { position: "e:3:c" } });
  source.fail(0);
  expect(source.closed).toBe(true); // not left to come back by itself
  await until(() => FakeEventSource.all.length === 2);
  FakeEventSource.last.welcome();
  await pass(0);
  expect(posts[1]!.envelopes).toMatchObject([{ type: "subscribe", channel: "chat", since: "e:3:c" }]);
});

test("the close event has the code that a stream has not", async () => {
  const { rt, source } = streaming();
  source.receive({ type: "close", data: { code: 1012, reason: "restart, retry in 3 s" } });
  expect(source.closed).toBe(true);
  await pass(2_999);
  expect(FakeEventSource.all.length).toBe(1);
  await pass(1);
  FakeEventSource.last.welcome().receive({ type: "close", data: { code: 4029, reason: "too fast" } });
  expect(rt.state).toBe("closed");
});

test("the heartbeat needs no answer, and silence is the end", async () => {
  const { rt, source } = streaming();
  for (let round = 0; round < 5; round++) {
    await pass(15_000);
    source.receive({ type: "ping" });
  }
  expect(posts).toEqual([]);
  await pass(25_000);
  expect(rt.state).toBe("reconnecting");
});

test("a stream that is refused for its token is the end, or a new token", async () => {
  refusal = new Response('{"error":{"code":"unauthorized"}}', { status: 401 });
  const token = vi.fn().mockReturnValueOnce("old").mockReturnValue("new");
  const rt = start({ transports: ["sse"], token });
  FakeEventSource.last.fail(2);
  await until(() => FakeEventSource.all.length === 2);
  expect(probes).toEqual(["https://example.org/realtime/sse?app=1&token=old"]);
  expect(FakeEventSource.last.url).toContain("token=new");
  FakeEventSource.last.fail(2);
  await pass(0);
  expect(rt.state).toBe("closed");
});

test("a server that is full says when to come back", async () => {
  refusal = new Response("", { status: 503, headers: { "retry-after": "7" } });
  const rt = start({ transports: ["sse"] });
  const states = record(rt, "state");
  FakeEventSource.last.fail(2);
  await pass(6_999);
  expect(FakeEventSource.all.length).toBe(1);
  expect(states).toMatchObject([{ reason: "the event stream was refused: HTTP 503, retry in 7 s" }]);
  await pass(1);
  expect(FakeEventSource.all.length).toBe(2);
});

test.each([403, 404, 502])("HTTP %i may be a proxy's, and pass", async (status) => {
  refusal = new Response("", { status });
  start({ transports: ["sse"] });
  FakeEventSource.last.fail(2);
  await until(() => FakeEventSource.all.length === 2);
});

test("an answer to a question that nobody asks any more", async () => {
  refusal = new Response("", { status: 401 });
  const rt = start({ transports: ["sse"] });
  FakeEventSource.last.fail(2);
  rt.reconnect();
  await pass(0);
  FakeEventSource.last.welcome();
  expect(rt.state).toBe("open");
});

test("the token of the address is renewed by a message", async () => {
  const rt = start({ transports: ["sse"], token: vi.fn().mockReturnValueOnce("t1").mockReturnValue("t2") });
  FakeEventSource.last.receive({
    type: "welcome",
    data: { id: "s1", heartbeatMs: 1e9, limits: LIMITS, expiresAt: Date.now() + 60_000, member: { id: "ada" } },
  });
  expect(rt.member).toEqual({ id: "ada" });
  await pass(48_000);
  expect(posts[0]!.envelopes).toMatchObject([{ type: "auth", data: { token: "t2" } }]);
});

test("close closes the stream", () => {
  const { rt, source } = streaming();
  rt.close();
  expect(source.closed).toBe(true);
  expect(vi.getTimerCount()).toBe(0);
});

test("what the server cannot read is lost: the connection stays, and what it took with it comes again", async () => {
  const { rt } = streaming();
  const lost = expect(rt.publish("chat", "deep")).rejects.toMatchObject({ code: "timeout" });
  const published = rt.publish("chat", 2);
  await pass(0);
  posts[0]!.answer(400);
  await pass(9_999);
  expect(posts).toHaveLength(1);
  await pass(1);
  posts[1]!.answer(400);
  await pass(0);
  const [again] = posts[2]!.envelopes;
  expect(again.data).toBe(2);
  posts[2]!.answer(204);
  FakeEventSource.last.receive({ type: "reply", id: again.id, data: { ts: 2 } });
  expect(await published).toEqual({ ts: 2 });
  await pass(10_000);
  posts[3]!.answer(400);
  await pass(10_000);
  await lost;
  expect(posts).toHaveLength(4);
  expect(rt.state).toBe("open");
});

test("a POST that nobody answers is given up, and with it the connection", async () => {
  const giveUp = new AbortController();
  const limit = vi.spyOn(AbortSignal, "timeout").mockReturnValue(giveUp.signal);
  const { rt } = streaming();
  void rt.publish("chat", 1);
  await pass(0);
  expect(limit).toHaveBeenCalledWith(20_000);
  giveUp.abort();
  await pass(0);
  expect(rt.state).toBe("reconnecting");
});

test("a server that is busy is asked again a second later, in order", async () => {
  const { rt } = streaming();
  void rt.publish("chat", 1);
  await pass(0);
  void rt.publish("chat", 2);
  posts[0]!.answer(429);
  await pass(999);
  expect(posts.length).toBe(1);
  await pass(1);
  expect(posts[1]!.envelopes.map(({ data }) => data)).toEqual([1, 2]);
  expect(rt.state).toBe("open");
});
