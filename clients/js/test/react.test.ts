// @vitest-environment jsdom

import { act, cleanup, render, renderHook } from "@testing-library/react";
import { Activity, createElement, type ReactNode, StrictMode } from "react";
import { renderToString } from "react-dom/server";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { Message, Realtime, RealtimeOptions } from "../src/index.js";
import {
  RealtimeProvider,
  useChannel,
  useConnectionState,
  usePresence,
  useRealtime,
  useTyping,
} from "../src/react.js";
import { comeBack, connected, FakeSocket, message, pass, standStill } from "./fakes.js";

const OPTIONS: RealtimeOptions = { WebSocket: FakeSocket, transports: ["websocket"] };
const URL = "wss://example.org/realtime";

beforeEach(standStill);
afterEach(async () => {
  cleanup();
  await pass(10);
});

const later = (ms = 0) => act(() => pass(ms));

function withUrl({ children }: { children: ReactNode }) {
  return createElement(RealtimeProvider, { url: URL, options: OPTIONS }, children);
}

function strictly({ children }: { children: ReactNode }) {
  return createElement(StrictMode, null, createElement(RealtimeProvider, { url: URL, options: OPTIONS }, children));
}

function withClient(client: Realtime) {
  return ({ children }: { children: ReactNode }) => createElement(RealtimeProvider, { client }, children);
}

test("the provider connects when it is mounted and closes when it is gone", async () => {
  const { unmount, result } = renderHook(useRealtime, { wrapper: withUrl });
  expect(FakeSocket.all.length).toBe(1);
  act(() => void FakeSocket.last.open().welcome());
  unmount();
  await later();
  expect(FakeSocket.last.closedWith).toBe(1000);
  expect(result.current.state).toBe("closed");
});

test("strict mode: one connection, one subscription", async () => {
  const { unmount } = renderHook(() => useChannel("chat", () => {}), { wrapper: strictly });
  await later(10);
  expect(FakeSocket.all.length).toBe(1);
  const socket = FakeSocket.last.open().welcome();
  await later(10);
  expect(socket.sent.map(({ type }) => type)).toEqual(["subscribe"]);
  expect(socket.closedWith).toBeUndefined();
  unmount();
  await later();
  expect(socket.closedWith).toBe(1000);
});

test("another url is another connection", async () => {
  const view = (url: string) => createElement(RealtimeProvider, { url, options: OPTIONS }, createElement(Show));
  const Show = () => useConnectionState();
  const { rerender } = render(view("wss://a/realtime"));
  rerender(view("wss://a/realtime"));
  expect(FakeSocket.all.length).toBe(1);
  rerender(view("wss://b/realtime"));
  await later();
  expect(FakeSocket.all.map(({ url, closedWith }) => [url, closedWith])).toEqual([
    ["wss://a/realtime", 1000],
    ["wss://b/realtime", undefined],
  ]);
});

test("a client that was given is neither opened nor closed", async () => {
  const { rt, socket } = connected();
  const { unmount, result } = renderHook(useRealtime, { wrapper: withClient(rt) });
  expect(result.current).toBe(rt);
  unmount();
  await later();
  expect(socket.closedWith).toBeUndefined();
});

test("useRealtime outside of a provider, and a provider of nothing, say what is missing", () => {
  expect(() => renderHook(useRealtime)).toThrow("useRealtime needs a RealtimeProvider");
  expect(() => render(createElement(RealtimeProvider, {}))).toThrow("either url or client");
});

test("useChannel calls the newest handler, and subscribes once", async () => {
  const { rt, socket } = connected();
  const got: string[] = [];
  const { rerender, unmount } = renderHook(
    ({ name }) => useChannel<{ text: string }>("chat", ({ data }) => got.push(`${name}: ${data.text}`)),
    { wrapper: withClient(rt), initialProps: { name: "first" } },
  );
  socket.reply("subscribe").receive(message("chat", { text: "a" }));
  rerender({ name: "second" });
  socket.receive(message("chat", { text: "b" }));
  expect(got).toEqual(["first: a", "second: b"]);
  unmount();
  await later();
  expect(socket.sent.map(({ type }) => type)).toEqual(["subscribe", "unsubscribe"]);
});

test("useChannel follows the channel, and null is none", async () => {
  const { rt, socket } = connected();
  const { rerender } = renderHook(({ channel }) => useChannel(channel, () => {}), {
    wrapper: withClient(rt),
    initialProps: { channel: null as string | null },
  });
  expect(socket.sent).toEqual([]);
  rerender({ channel: "a" });
  rerender({ channel: "b" });
  await later();
  rerender({ channel: null });
  await later();
  expect(socket.sent.map(({ type, channel }) => `${type} ${channel}`)).toEqual([
    "subscribe a",
    "subscribe b",
    "unsubscribe a",
    "unsubscribe b",
  ]);
});

test("a page that replaces another keeps the channel", async () => {
  const { rt, socket } = connected();
  const Page = ({ name }: { name: string }) => {
    useChannel("chat", () => {});
    return name;
  };
  const view = (name: string) => createElement(RealtimeProvider, { client: rt }, createElement(Page, { key: name, name }));
  const { rerender } = render(view("one"));
  rerender(view("two"));
  await later(10);
  expect(socket.sent.map(({ type }) => type)).toEqual(["subscribe"]);
});

test("useChannel tells a refusal to onError, the newest, and otherwise the client tells it", () => {
  const { rt, socket } = connected();
  const codes: string[] = [];
  const { rerender } = renderHook(
    ({ name }) => useChannel("secret", () => {}, { onError: ({ code }) => codes.push(`${name} ${code}`) }),
    { wrapper: withClient(rt), initialProps: { name: "first" } },
  );
  rerender({ name: "second" });
  socket.refuse("subscribe", "forbidden");
  expect(codes).toEqual(["second forbidden"]);
  expect(console.error).not.toHaveBeenCalled();
  renderHook(() => useChannel("other", () => {}), { wrapper: withClient(rt) });
  socket.refuse("subscribe", "forbidden");
  expect(console.error).toHaveBeenCalledOnce();
});

test("usePresence", async () => {
  const { rt, socket } = connected();
  const { result, rerender } = renderHook(({ channel }) => usePresence(channel), {
    wrapper: withClient(rt),
    initialProps: { channel: "chat" as string | null },
  });
  expect(result.current).toEqual({ members: [], memberCount: 0, listed: false });
  act(() => void socket.reply("subscribe", { members: [{ memberId: "ada" }] }));
  expect(result.current.members).toEqual([{ memberId: "ada" }]);
  act(() => {
    const data = { joined: [{ memberId: "ben" }], left: [], memberCount: 2 };
    socket.receive({ type: "presence", channel: "chat", data });
  });
  expect(result.current.memberCount).toBe(2);
  rerender({ channel: null });
  expect(result.current.members).toEqual([]);
});

test("two components of one channel see the same, also the one that comes later", () => {
  const { rt, socket } = connected();
  renderHook(() => useChannel("chat", () => {}), { wrapper: withClient(rt) });
  socket.reply("subscribe", { members: [{ memberId: "ada" }], typing: ["ada"] });
  const { result } = renderHook(() => [usePresence("chat").memberCount, useTyping("chat").typing], {
    wrapper: withClient(rt),
  });
  expect(result.current).toEqual([1, ["ada"]]);
  expect(socket.sent.length).toBe(1);
});

test("useTyping", () => {
  const { rt, socket } = connected();
  const { result, rerender } = renderHook(({ channel }) => useTyping(channel), {
    wrapper: withClient(rt),
    initialProps: { channel: "chat" as string | null },
  });
  act(() => void socket.reply("subscribe", { typing: ["me", "ada"] }));
  expect(result.current.typing).toEqual(["ada"]);
  const { setTyping } = result.current;
  setTyping(true);
  rerender({ channel: "chat" });
  expect(result.current.setTyping).toBe(setTyping);
  expect(socket.sentOf("typing")).toEqual([{ type: "typing", channel: "chat", data: { typing: true } }]);
  rerender({ channel: null });
  result.current.setTyping(true);
  expect(socket.sentOf("typing").length).toBe(1);
});

test("useConnectionState", async () => {
  const { rt, socket } = connected();
  const { result } = renderHook(useConnectionState, { wrapper: withClient(rt) });
  expect(result.current).toBe("open");
  act(() => void socket.lose());
  expect(result.current).toBe("reconnecting");
  await act(async () => void (await comeBack()));
  expect(result.current).toBe("open");
});

test("the token callback is the newest; the other options are those of the first render", async () => {
  const view = (name: string) =>
    createElement(RealtimeProvider, { url: URL, options: { ...OPTIONS, token: async () => name } });
  const { rerender } = render(view("one"));
  await later();
  rerender(view("two"));
  FakeSocket.last.open().welcome().lose();
  await later(1_000);
  expect(FakeSocket.all.map((socket) => socket.open().sentOf("auth").at(-1)?.data.token)).toEqual(["one", "two"]);
});

test("what is hidden lets go of the connection, and shown again connects again", async () => {
  const got: unknown[] = [];
  const Page = () => {
    useChannel("chat", ({ data }) => got.push(data));
    return null;
  };
  const view = (mode: "hidden" | "visible") =>
    createElement(Activity, { mode, children: withUrl({ children: createElement(Page) }) });
  const { rerender } = render(view("visible"));
  FakeSocket.last.open().welcome();
  rerender(view("hidden"));
  await later();
  expect(FakeSocket.last.closedWith).toBe(1000);
  rerender(view("visible"));
  await later();
  expect(FakeSocket.all.length).toBe(2);
  FakeSocket.last.open().welcome().reply("subscribe").receive(message("chat", 1));
  expect(got).toEqual([1]);
});

test("on a server it renders as connecting with nobody there, and touches no network", () => {
  vi.stubGlobal("WebSocket", FakeSocket);
  function Page() {
    const state = useConnectionState();
    const { members, memberCount } = usePresence("chat");
    const { typing } = useTyping("chat");
    useChannel("chat", (_: Message) => {});
    return `${state} ${members.length} ${memberCount} ${typing.length}`;
  }
  const html = renderToString(createElement(RealtimeProvider, { url: "/realtime" }, createElement(Page)));
  expect(html).toBe("connecting 0 0 0");
  expect(FakeSocket.all).toEqual([]);
  expect(vi.getTimerCount()).toBe(0);
});
