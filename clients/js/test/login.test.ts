import { beforeEach, expect, test, vi } from "vitest";
import { comeBack, connected, FakeSocket, nextSocket, pass, record, standStill, start } from "./fakes.js";

beforeEach(standStill);

const tokens = (socket: FakeSocket) => socket.sentOf("auth").map(({ data }) => data.token);

/** A callback that gives t1, t2, ... */
function counting() {
  let count = 0;
  return vi.fn(async () => `t${++count}`);
}

test("the token is the first message, before the subscriptions, and not in the address", () => {
  const rt = start({ token: "secret" });
  rt.subscribe("chat", () => {});
  const socket = FakeSocket.last.open();
  expect(socket.url).toBe("wss://example.org/realtime");
  expect(socket.sent.map(({ type }) => type)).toEqual(["auth", "subscribe"]);
  expect(tokens(socket)).toEqual(["secret"]);
});

test("the member is that of the welcome, or with a token that of the login", async () => {
  expect(connected().rt.member).toEqual({ id: "me" });
  const ada = { id: "ada", info: { name: "Ada" } };
  const token = vi.fn().mockReturnValueOnce("t1").mockReturnValueOnce("t2").mockReturnValue(null);
  const { rt, socket } = connected({ token });
  expect(rt.member).toBeUndefined(); // the welcome was a guest's
  socket.reply("auth", { member: ada }).lose();
  const next = await comeBack();
  expect(rt.member).toEqual(ada); // still, until the server says otherwise
  next.reply("auth", { member: ada }).lose();
  await comeBack();
  expect(rt.member).toEqual({ id: "me" }); // logged out
});

test.each([undefined, "", () => null, () => undefined, async () => ""])("no token: a guest (%s)", async (token) => {
  const rt = start(token === undefined ? {} : { token });
  await pass(0);
  const socket = FakeSocket.last.open().welcome();
  expect(socket.sent).toEqual([]);
  expect(rt.state).toBe("open");
});

test("the callback is asked for each connection", async () => {
  const token = counting();
  start({ token });
  expect(FakeSocket.all).toEqual([]);
  await pass(0);
  FakeSocket.last.open().welcome().lose();
  const next = await comeBack();
  expect(tokens(next)).toEqual(["t2"]);
});

test("a callback that fails is told, and asked again with the next attempt", async () => {
  const token = vi.fn().mockRejectedValueOnce(new Error("offline")).mockResolvedValue("t");
  const rt = start({ token });
  const errors = record(rt, "error");
  await pass(0);
  expect(errors).toMatchObject([{ code: "token", message: "the token callback failed: Error: offline" }]);
  await pass(500);
  expect(FakeSocket.last.open().sentOf("auth").length).toBe(1);
});

test("a callback that throws at once is no different", async () => {
  const rt = start({
    autoConnect: false,
    token() {
      throw new Error("mine");
    },
  });
  const errors = record(rt, "error");
  rt.connect();
  expect(errors).toMatchObject([{ code: "token" }]);
  expect(rt.state).toBe("connecting");
});

test("a callback that never answers is given up like any opening", async () => {
  const token = vi.fn().mockReturnValueOnce(new Promise(() => {})).mockResolvedValue("t");
  start({ token });
  await pass(10_000);
  await nextSocket();
  expect(token).toHaveBeenCalledTimes(2);
});

test("a token that comes too late is not used", async () => {
  let resolve!: (token: string) => void;
  const token = vi.fn().mockReturnValueOnce(new Promise<string>((done) => (resolve = done))).mockResolvedValue("new");
  start({ token });
  await pass(10_000);
  await nextSocket();
  resolve("old");
  await pass(0);
  expect(FakeSocket.all.length).toBe(1);
  expect(tokens(FakeSocket.last.open())).toEqual(["new"]);
});

test.each([
  ["an hour: 30 s before", 3_600_000, 3_570_000],
  ["a minute: at 80 %", 60_000, 48_000],
  ["a clock that is wrong: not in a loop", -3_600_000, 10_000],
])("renewal of a token of %s", async (_, life, at) => {
  const token = counting();
  start({ token });
  await pass(0);
  const socket = FakeSocket.last.open().welcome({ heartbeatMs: 1e9 });
  socket.reply("auth", { member: { id: "ada" }, expiresAt: Date.now() + life });
  await pass(at - 1);
  expect(tokens(socket)).toEqual(["t1"]);
  await pass(1);
  expect(tokens(socket)).toEqual(["t1", "t2"]);
  socket.reply("auth", { member: { id: "ada" }, expiresAt: Date.now() + 60_000 });
  await pass(48_000);
  expect(tokens(socket)).toEqual(["t1", "t2", "t3"]);
});

test("a token of the welcome (a cookie, say) is renewed with one of the callback", async () => {
  start({ token: vi.fn().mockReturnValueOnce("").mockReturnValue("t") });
  FakeSocket.last.open().welcome({ heartbeatMs: 1e9, expiresAt: Date.now() + 60_000 });
  await pass(48_000);
  expect(tokens(FakeSocket.last)).toEqual(["t"]);
});

test("a token of two months is not renewed at once: timers hold 24 days", async () => {
  const token = counting();
  start({ token });
  await pass(0);
  const day = 86_400_000;
  const socket = FakeSocket.last.open().welcome({ heartbeatMs: day });
  socket.reply("auth", { member: { id: "ada" }, expiresAt: Date.now() + 60 * day });
  for (let days = 1; days <= 60; days++) {
    expect(token).toHaveBeenCalledTimes(1);
    await pass(day - (days === 60 ? 30_000 : 0));
    socket.receive({ type: "ping" });
  }
  expect(token).toHaveBeenCalledTimes(2);
});

test("a fixed token is not renewed", async () => {
  const { socket } = connected({ token: "t" });
  socket.welcome({ heartbeatMs: 1e9 }).reply("auth", { member: { id: "ada" }, expiresAt: Date.now() + 60_000 });
  await pass(120_000);
  expect(tokens(socket)).toEqual(["t"]);
});

test("a renewal that fails is tried again", async () => {
  const token = vi.fn().mockResolvedValueOnce("t1").mockRejectedValueOnce(new Error("offline")).mockResolvedValue("t2");
  const rt = start({ token });
  const errors = record(rt, "error");
  await pass(0);
  const socket = FakeSocket.last.open().welcome({ heartbeatMs: 1e9 });
  socket.reply("auth", { member: { id: "ada" }, expiresAt: Date.now() + 60_000 });
  await pass(48_000);
  expect(errors).toMatchObject([{ code: "token" }]);
  await pass(5_000);
  expect(tokens(socket)).toEqual(["t1", "t2"]);
  socket.refuse("auth", "unavailable");
  await pass(5_000);
  expect(tokens(socket)).toEqual(["t1", "t2", "t2"]);
});

test("a token without an end is not renewed, also after one that had one", async () => {
  const token = counting();
  start({ token });
  await pass(0);
  const socket = FakeSocket.last.open().welcome({ heartbeatMs: 1e9 });
  socket.reply("auth", { member: { id: "ada" }, expiresAt: Date.now() + 60_000 });
  await pass(48_000);
  socket.reply("auth", { member: { id: "ada" } });
  await pass(600_000);
  expect(token).toHaveBeenCalledTimes(2);
});

test("a renewal that was under way when the connection was lost is not for the next one", async () => {
  let resolve!: (token: string) => void;
  const slow = new Promise<string>((done) => (resolve = done));
  start({ token: vi.fn().mockResolvedValueOnce("t1").mockReturnValueOnce(slow).mockResolvedValue("t2") });
  await pass(0);
  const socket = FakeSocket.last.open().welcome({ heartbeatMs: 1e9 });
  socket.reply("auth", { member: { id: "ada" }, expiresAt: Date.now() + 60_000 });
  await pass(48_000);
  socket.lose();
  const next = await comeBack();
  resolve("old");
  await pass(0);
  expect(tokens(next)).toEqual(["t2"]);
});

test("closed while the token is asked for", async () => {
  const rt = start({ token: counting() });
  rt.close();
  await pass(60_000);
  expect(FakeSocket.all).toEqual([]);
});

test("a server that takes no tokens is told once", async () => {
  const rt = start({ token: counting() });
  const errors = record(rt, "error");
  await pass(0);
  const socket = FakeSocket.last.open().welcome({ heartbeatMs: 1e9 });
  socket.refuse("auth", "bad_request");
  await pass(60_000);
  expect(tokens(socket)).toEqual(["t1"]);
  expect(errors).toMatchObject([{ code: "bad_request" }]);
});

test.each(["t", () => "t"])("without the login of its opening a connection is given up: it would be a guest's", async (token) => {
  const rt = start({ token });
  const refusals: unknown[] = [];
  const errors = record(rt, "error");
  rt.subscribe("room", () => {}, { onError: (error) => refusals.push(error) });
  const socket = FakeSocket.last.open().welcome({ member: undefined });
  socket.refuse("auth", "unavailable").refuse("subscribe", "unauthorized");
  expect(rt.state).toBe("reconnecting");
  expect(errors).toMatchObject([{ code: "unavailable" }]);
  const next = await comeBack({ member: undefined });
  next.reply("auth", { member: { id: "ada" } }).reply("subscribe");
  expect(refusals).toEqual([]);
  expect(rt.member?.id).toBe("ada");
});

test("4001: a callback is asked once for a new token, then it is the end", async () => {
  const token = counting();
  const rt = start({ token });
  const errors = record(rt, "error");
  await pass(0);
  FakeSocket.last.open().welcome().refuse("auth", "unauthorized").lose(4001, "bad token");
  const next = await comeBack();
  expect(tokens(next)).toEqual(["t2"]);
  next.lose(4001, "bad token");
  expect(rt.state).toBe("closed");
  expect(errors.map(({ code }) => code)).toEqual(["unauthorized", "unauthorized"]);
  await pass(60_000);
  expect(token).toHaveBeenCalledTimes(2);
});

test("4001 after a login that worked: the token expired, and another may do", async () => {
  const rt = start({ token: counting() });
  await pass(0);
  for (let round = 0; round < 3; round++) {
    const socket = FakeSocket.last.open().welcome();
    socket.reply("auth", { member: { id: "ada" } }).lose(4001, "the token has expired");
    expect(rt.state).toBe("reconnecting");
    await nextSocket();
  }
});

test("4001 with a fixed token is the end", () => {
  const { rt, socket } = connected({ token: "t" });
  socket.lose(4001, "expired");
  expect(rt.state).toBe("closed");
});
