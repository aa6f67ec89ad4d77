// Subscriptions: one at the server for many here, over reconnects, in order and once.

import { beforeEach, expect, test, vi } from "vitest";
import type { Message, RealtimeError } from "../src/index.js";
import { comeBack, connected, FakeSocket, message, pass, record, standStill, start } from "./fakes.js";

beforeEach(standStill);

function listen(rt: ReturnType<typeof start>, channel: string, options = {}) {
  const got: unknown[] = [];
  const off = rt.subscribe(channel, ({ data }: Message) => got.push(data), options);
  return { got, off };
}

test("one subscription at the server for many handlers", async () => {
  const { rt, socket } = connected();
  const one = listen(rt, "chat");
  const two = listen(rt, "chat");
  expect(socket.sent).toEqual([{ type: "subscribe", channel: "chat", id: 1 }]);
  socket.reply("subscribe").receive(message("chat", "a")).receive(message("other", "b"));
  expect([one.got, two.got]).toEqual([["a"], ["a"]]);
  one.off();
  one.off();
  await pass(1);
  expect(socket.sentOf("unsubscribe")).toEqual([]);
  socket.receive(message("chat", "c"));
  expect([one.got, two.got]).toEqual([["a"], ["a", "c"]]);
  two.off();
  expect(socket.sentOf("unsubscribe")).toEqual([]);
  await pass(1);
  expect(socket.sentOf("unsubscribe")).toEqual([{ type: "unsubscribe", channel: "chat" }]);
});

test("left and entered again in one go is nothing to the server", async () => {
  const { rt, socket } = connected();
  listen(rt, "chat").off();
  const { got } = listen(rt, "chat");
  await pass(10);
  socket.reply("subscribe").receive(message("chat", 1));
  expect(socket.sent.map(({ type }) => type)).toEqual(["subscribe"]);
  expect(got).toEqual([1]);
});

test("left and entered again later is a new subscription", async () => {
  const { rt, socket } = connected();
  const gaps = record(rt, "gap");
  const { off } = listen(rt, "chat");
  socket.reply("subscribe", { position: "e:5:t" });
  off();
  await pass(1);
  listen(rt, "chat");
  expect(socket.sent.map(({ type, since }) => [type, since])).toEqual([
    ["subscribe", undefined],
    ["unsubscribe", undefined],
    ["subscribe", undefined],
  ]);
  socket.reply("subscribe", { position: "e:7:t" });
  expect(gaps).toEqual([]);
});

test("a reply to a subscription that was left meanwhile is nobody's", async () => {
  const { rt, socket } = connected();
  const { off, got } = listen(rt, "chat");
  off();
  await pass(1);
  socket.reply("subscribe", { members: [] }).receive(message("chat", 1));
  expect(got).toEqual([]);
  expect(rt.state).toBe("open");
});

test("subscriptions made before the opening go out with it, without waiting for the welcome", () => {
  const rt = start();
  listen(rt, "a");
  listen(rt, "b");
  const socket = FakeSocket.last.open();
  expect(socket.sent.map(({ channel }) => channel)).toEqual(["a", "b"]);
});

test("a handler that throws disturbs nobody", () => {
  const { rt, socket } = connected();
  rt.subscribe("chat", () => {
    throw new Error("mine");
  });
  const { got } = listen(rt, "chat");
  socket.reply("subscribe").receive(message("chat", 1));
  expect(got).toEqual([1]);
  expect(console.error).toHaveBeenCalledOnce();
});

test("after a reconnect it asks for what it missed and hands it on in order, once", async () => {
  const { rt, socket } = connected();
  const { got } = listen(rt, "chat");
  const gaps = record(rt, "gap");
  socket.reply("subscribe", { position: "e:0:0" });
  socket.receive(message("chat", 1, "e:1:a")).receive(message("chat", 2, "e:2:b"));
  socket.lose();
  const next = await comeBack();
  expect(next.sentOf("subscribe")).toMatchObject([{ channel: "chat", since: "e:2:b" }]);
  next.receive(message("chat", 5, "e:5:e")); // overtakes the reply
  expect(got).toEqual([1, 2]);
  next.reply("subscribe", {
    position: "e:5:e",
    recovered: true,
    messages: [message("chat", 3, "e:3:c"), message("chat", 4, "e:4:d")],
  });
  expect(got).toEqual([1, 2, 3, 4, 5]);
  next.receive(message("chat", 5, "e:5:e")).receive(message("chat", 6, "e:6:f"));
  expect(got).toEqual([1, 2, 3, 4, 5, 6]);
  expect(gaps).toEqual([]);
});

test("the rest of a long recovery follows the reply, whose position is further on", async () => {
  const { rt, socket } = connected();
  const { got } = listen(rt, "chat");
  socket.reply("subscribe", { position: "e:0:0" }).lose();
  const next = await comeBack();
  next.reply("subscribe", { position: "e:9:x", recovered: true, messages: [message("chat", 1, "e:1:a")] });
  next.receive(message("chat", 2, "e:2:b")).receive(message("chat", 3, "e:3:c"));
  next.lose();
  expect((await comeBack()).sentOf("subscribe")).toMatchObject([{ since: "e:3:c" }]);
  expect(got).toEqual([1, 2, 3]);
});

test("the position is that of the last message handed on, also before there was one", async () => {
  const { rt, socket } = connected();
  listen(rt, "chat");
  socket.reply("subscribe", { position: "e:41:t" }).lose();
  expect((await comeBack()).sentOf("subscribe")).toMatchObject([{ since: "e:41:t" }]);
});

test("lost before the recovery was answered: what overtook it does not count as had", async () => {
  const { rt, socket } = connected();
  const { got } = listen(rt, "chat");
  socket.reply("subscribe", { position: "e:1:a" }).lose();
  const second = await comeBack();
  second.receive(message("chat", 9, "e:9:z")).lose();
  const third = await comeBack();
  expect(third.sentOf("subscribe")).toMatchObject([{ since: "e:1:a" }]);
  third.reply("subscribe", { recovered: true, messages: [message("chat", 2, "e:2:b")], position: "e:2:b" });
  expect(got).toEqual([2]);
});

test("duplicates and old ones are dropped, within an epoch", () => {
  const { rt, socket } = connected();
  const { got } = listen(rt, "chat");
  const all = record(rt, "message");
  socket.reply("subscribe", { position: "e:10:t" });
  for (const position of ["e:11:a", "e:11:a", "e:9:b", "e:10:t", "e:12:c"]) {
    socket.receive(message("chat", position, position));
  }
  expect(got).toEqual(["e:11:a", "e:12:c"]);
  expect(all.map(({ data }) => data)).toEqual(got);
});

test("offsets are numbers", () => {
  const { rt, socket } = connected();
  const { got } = listen(rt, "chat");
  socket.reply("subscribe", { position: "e:8:t" });
  for (const offset of [9, 10, 11]) socket.receive(message("chat", offset, `e:${offset}:t`));
  expect(got).toEqual([9, 10, 11]);
});

test("not recovered: a gap, and on from the server's position", async () => {
  const { rt, socket } = connected();
  const { got } = listen(rt, "chat");
  const gaps = record(rt, "gap");
  socket.reply("subscribe", { position: "e:1:a" }).lose();
  const next = await comeBack();
  next.reply("subscribe", { position: "f:7:b", recovered: false, messages: [] });
  expect(gaps).toEqual([{ type: "gap", channel: "chat", data: { position: "f:7:b" } }]);
  next.receive(message("chat", 8, "f:8:c")).receive(message("chat", 7, "f:7:b"));
  expect(got).toEqual([8]);
  expect(gaps.length).toBe(1);
});

test("without history every reconnect is a gap, but the first connection is none", async () => {
  const { rt, socket } = connected();
  const { got } = listen(rt, "chat");
  const gaps = record(rt, "gap");
  socket.reply("subscribe").receive(message("chat", 1)).receive(message("chat", 1));
  expect(gaps).toEqual([]);
  socket.lose();
  const next = await comeBack();
  expect(next.sentOf("subscribe")[0].since).toBeUndefined();
  next.receive(message("chat", 2)).reply("subscribe");
  expect(gaps).toMatchObject([{ channel: "chat" }]);
  expect(got).toEqual([1, 1, 2]);
});

test("lost before it was ever subscribed: nothing can have been missed", async () => {
  const { rt, socket } = connected();
  const gaps = record(rt, "gap");
  listen(rt, "chat");
  socket.lose();
  (await comeBack()).reply("subscribe");
  expect(gaps).toEqual([]);
});

test("the server's gap: from there on", async () => {
  const { rt, socket } = connected();
  const { got } = listen(rt, "chat");
  const gaps = record(rt, "gap");
  socket.reply("subscribe", { position: "e:1:a" });
  socket.receive({ type: "gap", channel: "chat", data: { position: "e:7:b" } });
  socket.receive(message("chat", 7, "e:7:b")).receive(message("chat", 8, "e:8:c"));
  expect(got).toEqual([8]);
  expect(gaps).toEqual([{ type: "gap", channel: "chat", data: { position: "e:7:b" } }]);
});

test("a hole that the server does not tell of is told all the same", () => {
  const { rt, socket } = connected();
  const { got } = listen(rt, "chat");
  const gaps = record(rt, "gap");
  socket.reply("subscribe", { position: "e:1:a" });
  socket.receive(message("chat", 2, "e:2:b")).receive(message("chat", 4, "e:4:d"));
  expect(gaps.length).toBe(1);
  socket.receive(message("chat", 1, "f:1:a")); // another epoch
  expect(gaps.length).toBe(2);
  expect(got).toEqual([2, 4, 1]);
});

test("a message before the reply to the first subscribe is newer than it", async () => {
  const { rt, socket } = connected();
  const { got } = listen(rt, "chat");
  socket.receive(message("chat", 6, "e:6:x")).reply("subscribe", { position: "e:5:t" });
  socket.receive(message("chat", 6, "e:6:x")).receive(message("chat", 7, "e:7:y"));
  expect(got).toEqual([6, 7]);
});

test("since: the application knows where to begin", () => {
  const { rt, socket } = connected();
  const gaps = record(rt, "gap");
  const { got } = listen(rt, "chat", { since: "e:3:c" });
  expect(socket.sent).toMatchObject([{ type: "subscribe", since: "e:3:c" }]);
  socket.reply("subscribe", { position: "e:4:d", recovered: true, messages: [message("chat", 4, "e:4:d")] });
  expect(got).toEqual([4]);
  listen(rt, "room", { since: "e:1:a" });
  socket.reply("subscribe", { position: "f:1:a", recovered: false });
  expect(gaps).toMatchObject([{ channel: "room" }]);
});

test("since is where it goes on from, before there was a message", async () => {
  const { rt, socket } = connected();
  const { got } = listen(rt, "chat", { since: "e:3:c" });
  socket.reply("subscribe", { position: "e:3:c", recovered: true, messages: [message("chat", 3, "e:3:c")] }).lose();
  expect(got).toEqual([]);
  expect((await comeBack()).sentOf("subscribe")).toMatchObject([{ since: "e:3:c" }]);
});

test("since is for the first subscription only", async () => {
  const { rt, socket } = connected();
  listen(rt, "chat", { since: "e:3:c" });
  socket.reply("subscribe", { recovered: false, messages: [] }).lose(); // the channel keeps no history
  expect((await comeBack()).sentOf("subscribe")[0].since).toBeUndefined();
});

test("a refusal is told, and not asked again by itself", async () => {
  const { rt, socket } = connected();
  const onError = vi.fn();
  const errors = record(rt, "error");
  listen(rt, "secret", { onError });
  socket.refuse("subscribe", "forbidden");
  expect(onError).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ code: "forbidden", channel: "secret" }));
  expect(errors).toEqual([onError.mock.calls[0]![0]]);
  expect(console.error).not.toHaveBeenCalled();
  socket.lose();
  expect((await comeBack()).sentOf("subscribe")).toEqual([]);
  listen(rt, "secret");
  expect(FakeSocket.last.sentOf("subscribe").length).toBe(1);
});

test("a refusal that nobody listens for is written down", () => {
  const { rt, socket } = connected();
  listen(rt, "secret");
  socket.refuse("subscribe", "forbidden");
  expect(console.error).toHaveBeenCalledOnce();
});

test("an explicit reconnect, after a login, asks again for what was refused", () => {
  const { rt, socket } = connected();
  listen(rt, "secret", { onError() {} });
  socket.refuse("subscribe", "forbidden");
  rt.reconnect();
  expect(FakeSocket.last.open().sentOf("subscribe")).toMatchObject([{ channel: "secret" }]);
});

test.each(["unavailable", "rate_limited"])("%s: asked again a little later", async (code) => {
  const { rt, socket } = connected();
  const onError = vi.fn();
  rt.on("error", () => {});
  const { got } = listen(rt, "chat", { onError });
  socket.refuse("subscribe", code);
  expect(onError).not.toHaveBeenCalled();
  await pass(2_999);
  expect(socket.sentOf("subscribe").length).toBe(1);
  await pass(1);
  expect(socket.sentOf("subscribe").length).toBe(2);
  socket.reply("subscribe").receive(message("chat", 1));
  expect(got).toEqual([1]);
});

test("a subscribe without an answer is asked again", async () => {
  const { rt, socket } = connected();
  rt.on("error", () => {});
  listen(rt, "chat");
  await pass(13_000);
  expect(socket.sentOf("subscribe").length).toBe(2);
});

test("a retry that is due does not come on top of a reconnect", async () => {
  const { rt, socket } = connected();
  rt.on("error", () => {});
  listen(rt, "chat");
  socket.refuse("subscribe", "unavailable").lose();
  const next = await comeBack();
  await pass(5_000);
  expect(next.sentOf("subscribe").length).toBe(1);
});

test("left while a retry is due: it does not come", async () => {
  const { rt, socket } = connected();
  rt.on("error", () => {});
  const { off } = listen(rt, "chat");
  socket.refuse("subscribe", "unavailable");
  off();
  await pass(10_000);
  expect(socket.sent.map(({ type }) => type)).toEqual(["subscribe", "unsubscribe", "ping"]);
});

test("unsubscribed: told, and not subscribed again by itself", async () => {
  const { rt, socket } = connected();
  const onError = vi.fn();
  const told = record(rt, "unsubscribed");
  const { got } = listen(rt, "chat", { onError });
  socket.reply("subscribe", { members: [{ memberId: "ada" }] });
  const presence = vi.fn();
  const typing = vi.fn();
  rt.trackPresence("chat", presence);
  rt.trackTyping("chat", typing);
  socket.receive({ type: "typing", channel: "chat", data: { memberId: "ada", typing: true } });
  socket.receive({ type: "unsubscribed", channel: "chat", data: { code: "forbidden", message: "out" } });
  expect(presence).toHaveBeenLastCalledWith({ members: [], memberCount: 0, listed: false });
  expect(typing).toHaveBeenLastCalledWith([]);
  rt.typing("chat", true);
  expect(socket.sentOf("typing")).toEqual([]);
  expect(onError).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ code: "forbidden", message: "out" }));
  expect(told.length).toBe(1);
  socket.lose();
  const next = await comeBack();
  expect(next.sentOf("subscribe")).toEqual([]);
  listen(rt, "chat");
  next.reply("subscribe").receive(message("chat", 1));
  expect(got).toEqual([1]); // the handlers of before are still there
});

test("a token for the channel", () => {
  const { rt, socket } = connected();
  listen(rt, "chat", { token: "t1" });
  expect(socket.sent).toMatchObject([{ type: "subscribe", token: "t1" }]);
});

test("a token callback is asked at each subscribe, and once more when the token is not good", async () => {
  const { rt, socket } = connected();
  let count = 0;
  const onError = vi.fn();
  listen(rt, "chat", { token: async () => `t${++count}`, onError });
  await pass(0);
  socket.refuse("subscribe", "unauthorized");
  await pass(0);
  expect(socket.sentOf("subscribe").map(({ token }) => token)).toEqual(["t1", "t2"]);
  socket.reply("subscribe");
  socket.receive({ type: "unsubscribed", channel: "chat", data: { code: "unauthorized", message: "expired" } });
  await pass(0);
  expect(socket.sentOf("subscribe").map(({ token }) => token)).toEqual(["t1", "t2", "t3"]);
  expect(onError).not.toHaveBeenCalled();
  socket.refuse("subscribe", "unauthorized");
  await pass(0);
  expect(socket.sentOf("subscribe").length).toBe(3);
  expect(onError).toHaveBeenCalledOnce();
});

test("a token callback that fails is asked again later", async () => {
  const { rt, socket } = connected();
  const errors = record(rt, "error");
  const token = vi.fn().mockRejectedValueOnce(new Error("offline")).mockResolvedValue("t");
  listen(rt, "chat", { token });
  await pass(0);
  expect(errors).toMatchObject([{ code: "token", channel: "chat" } satisfies Partial<RealtimeError>]);
  await pass(3_000);
  expect(socket.sentOf("subscribe")).toMatchObject([{ token: "t" }]);
});

test("a token that arrives after the connection was lost is not used on the next", async () => {
  const { rt, socket } = connected();
  let resolve!: (token: string) => void;
  const token = vi.fn(() => new Promise<string>((done) => (resolve = done)));
  listen(rt, "chat", { token });
  const slow = resolve;
  socket.lose();
  const next = await comeBack();
  slow("old");
  await pass(0);
  expect(next.sentOf("subscribe")).toEqual([]);
  resolve("new");
  await pass(0);
  expect(next.sentOf("subscribe")).toMatchObject([{ token: "new" }]);
});

test("subscribed is told with the reply", () => {
  const { rt, socket } = connected();
  const told = record(rt, "subscribed");
  listen(rt, "chat");
  socket.reply("subscribe", { position: "e:1:a" });
  expect(told).toEqual([{ type: "subscribed", channel: "chat", data: { position: "e:1:a" } }]);
});

test("presence: the reply, then differences, and anew after a reconnect", async () => {
  const { rt, socket } = connected();
  const seen: unknown[] = [];
  const off = rt.trackPresence("chat", ({ members, memberCount }) =>
    seen.push([members.map(({ memberId }) => memberId).join(), memberCount]),
  );
  socket.reply("subscribe", { members: [{ memberId: "ada" }] });
  socket.receive({
    type: "presence",
    channel: "chat",
    data: { joined: [{ memberId: "ben" }], left: [{ memberId: "ada" }], memberCount: 1 },
  });
  expect(seen).toEqual([["ada", 1], ["ben", 1]]);
  socket.lose();
  (await comeBack()).reply("subscribe", { members: [{ memberId: "cy" }, { memberId: "di" }] });
  expect(seen.at(-1)).toEqual(["cy,di", 2]);
  off();
  await pass(1);
  expect(FakeSocket.last.sentOf("unsubscribe").length).toBe(1);
});

test("who comes late to a channel sees at once who is there", () => {
  const { rt, socket } = connected();
  listen(rt, "chat");
  socket.reply("subscribe", { members: [{ memberId: "ada" }], typing: ["ada", "me"] });
  const presence = vi.fn();
  const typing = vi.fn();
  rt.trackPresence("chat", presence);
  rt.trackTyping("chat", typing);
  expect(presence).toHaveBeenCalledExactlyOnceWith({ members: [{ memberId: "ada" }], memberCount: 1, listed: true });
  expect(typing).toHaveBeenCalledExactlyOnceWith(["ada"]); // not oneself
  expect(socket.sent.length).toBe(1);
});

test("presence of many: the number only, and the list again when there are few enough", () => {
  const { rt, socket } = connected();
  const presence = vi.fn();
  rt.trackPresence("chat", presence);
  socket.reply("subscribe", { memberCount: 1_001 });
  expect(presence).toHaveBeenLastCalledWith({ members: [], memberCount: 1_001, listed: false });
  socket.receive({ type: "presence", channel: "chat", data: { memberCount: 1_002 } });
  expect(presence).toHaveBeenLastCalledWith({ members: [], memberCount: 1_002, listed: false });
  expect(socket.sentOf("presence")).toEqual([]);
  const fewer = { type: "presence", channel: "chat", data: { joined: [], left: [{ memberId: "x" }], memberCount: 1_000 } };
  socket.receive(fewer).receive(fewer);
  expect(socket.sentOf("presence").length).toBe(1); // not for each difference
  socket.reply("presence", { members: [{ memberId: "ada" }] });
  expect(presence).toHaveBeenLastCalledWith({ members: [{ memberId: "ada" }], memberCount: 1, listed: true });
  socket.receive({ type: "presence", channel: "chat", data: { memberCount: 1_002 } }).receive(fewer);
  expect(socket.sentOf("presence").length).toBe(2);
  socket.refuse("presence", "unavailable").receive(fewer);
  expect(socket.sentOf("presence").length).toBe(3);
});

test("a list that has not as many as there are is asked for anew: an event was dropped", () => {
  const { rt, socket } = connected();
  const presence = vi.fn();
  rt.trackPresence("chat", presence);
  const joined = (memberId: string, memberCount: number) =>
    socket.receive({ type: "presence", channel: "chat", data: { joined: [{ memberId }], left: [], memberCount } });
  joined("zoe", 1); // before the reply, which has her, too
  socket.reply("subscribe", { members: [{ memberId: "zoe" }] });
  joined("ada", 2);
  expect(socket.sentOf("presence")).toEqual([]);
  joined("cy", 4);
  expect(socket.sentOf("presence").length).toBe(1);
  const members = ["zoe", "ada", "ben", "cy"].map((memberId) => ({ memberId }));
  socket.reply("presence", { members });
  expect(presence).toHaveBeenLastCalledWith({ members, memberCount: 4, listed: true });
});

test("typing of others", async () => {
  const { rt, socket } = connected();
  const seen: string[][] = [];
  rt.trackTyping("chat", (ids) => seen.push(ids));
  socket.reply("subscribe", { typing: ["ada"] });
  const typing = (memberId: string, typing: boolean) =>
    socket.receive({ type: "typing", channel: "chat", data: { memberId, typing } });
  typing("ben", true);
  typing("ben", true);
  typing("ada", false);
  typing("me", true);
  expect(seen).toEqual([["ada"], ["ada", "ben"], ["ada", "ben"], ["ben"], ["ben"]]);
  socket.lose();
  (await comeBack()).reply("subscribe");
  expect(seen.at(-1)).toEqual([]);
});

test("events of channels that nobody is subscribed to here go to on handlers", () => {
  const { rt, socket } = connected();
  const all = record(rt, "*");
  socket.receive(message("user:me", 1)).receive({ type: "presence", channel: "x", data: { memberCount: 1 } });
  socket.receive({ type: "gap", channel: "x", data: {} }).receive({ type: "typing", channel: "x", data: {} });
  socket.receive({ type: "unsubscribed", channel: "x", data: { code: "forbidden", message: "" } });
  expect(all.map(({ type }) => type)).toEqual(["message", "presence", "gap", "typing", "unsubscribed"]);
});

test("128 channels come back in one burst", async () => {
  const { rt, socket } = connected();
  for (let count = 0; count < 128; count++) listen(rt, `room:${count}`);
  expect(socket.sentOf("subscribe").length).toBe(128);
  socket.lose();
  const next = await comeBack();
  expect(next.sentOf("subscribe").length).toBe(128);
});
