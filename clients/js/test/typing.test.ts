import { beforeEach, expect, test } from "vitest";
import { comeBack, connected, pass, standStill } from "./fakes.js";

beforeEach(standStill);

function subscribed() {
  const { rt, socket } = connected();
  const off = rt.subscribe("chat", () => {});
  socket.reply("subscribe");
  const sent = () => socket.sentOf("typing").map(({ data }) => data.typing);
  return { rt, socket, off, sent };
}

test("at once, then every 2.5 s as long as keys are pressed, and over 5 s after the last", async () => {
  const { rt, socket, sent } = subscribed();
  for (let ms = 0; ms < 6_000; ms += 100) {
    rt.typing("chat", true);
    await pass(100);
  }
  expect(sent()).toEqual([true, true, true]);
  expect(socket.sentOf("typing")[0]).toEqual({ type: "typing", channel: "chat", data: { typing: true } });
  await pass(10_000);
  expect(sent()).toEqual([true, true, true, true, false]);
});

test("one key: over after 5 s, without a refresh", async () => {
  const { rt, sent } = subscribed();
  rt.typing("chat", true);
  await pass(4_999);
  expect(sent()).toEqual([true]);
  await pass(1);
  expect(sent()).toEqual([true, false]);
  await pass(60_000);
  expect(sent()).toEqual([true, false]);
});

test("false ends it at once, and once", async () => {
  const { rt, sent } = subscribed();
  rt.typing("chat", false);
  expect(sent()).toEqual([]);
  rt.typing("chat", true);
  rt.typing("chat", false);
  rt.typing("chat", false);
  await pass(10_000);
  expect(sent()).toEqual([true, false]);
});

test("a message ends it", () => {
  const { rt, sent } = subscribed();
  rt.typing("chat", true);
  void rt.publish("other", 1);
  expect(sent()).toEqual([true]);
  void rt.publish("chat", 1);
  expect(sent()).toEqual([true, false]);
});

test("without a subscription nothing is sent", () => {
  const { rt, socket } = connected();
  rt.typing("chat", true);
  rt.subscribe("chat", () => {});
  rt.typing("chat", true);
  expect(socket.sentOf("typing")).toEqual([]);
});

test("it is never sent late", async () => {
  const { rt, socket, sent } = subscribed();
  for (let count = 0; count < 200; count++) rt.publish("other", count).catch(() => {});
  rt.typing("chat", true);
  await pass(2_000);
  expect(sent()).toEqual([]);
  rt.typing("chat", true);
  socket.lose();
  const next = await comeBack();
  rt.typing("chat", true); // not subscribed yet
  rt.typing("chat", false);
  next.reply("subscribe");
  await pass(10_000);
  expect(next.sentOf("typing")).toEqual([]);
});

test("leaving the channel is the end of it", async () => {
  const { rt, off, sent } = subscribed();
  rt.typing("chat", true);
  off();
  await pass(10_000);
  expect(sent()).toEqual([true]);
});
