// @vitest-environment jsdom

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { type App, createApp, createSSRApp, defineComponent, h, nextTick, ref, type Ref } from "vue";
import { renderToString } from "vue/server-renderer";
import type { Realtime, RealtimeOptions } from "../src/index.js";
import {
  provideRealtime,
  realtimePlugin,
  useChannel,
  useConnectionState,
  usePresence,
  useRealtime,
  useTyping,
} from "../src/vue.js";
import { connected, FakeSocket, message, pass, standStill } from "./fakes.js";

const OPTIONS: RealtimeOptions = { WebSocket: FakeSocket, transports: ["websocket"] };

let apps: App[] = [];
beforeEach(standStill);
afterEach(async () => {
  for (const app of apps.splice(0)) app.unmount();
  await pass(10);
});

/** Runs `setup` in a component of an app with the client; gives what it returned. */
function mount<T>(setup: () => T, client?: Realtime): { result: T; unmount: () => void; html: () => string } {
  let result!: T;
  const Inner = defineComponent({
    setup() {
      result = setup();
      return () => h("p");
    },
  });
  const app = createApp(Inner);
  if (client) app.use(realtimePlugin(client));
  const root = document.createElement("div");
  app.mount(root);
  apps.push(app);
  return { result, unmount: () => apps.splice(apps.indexOf(app), 1)[0]!.unmount(), html: () => root.innerHTML };
}

test("provideRealtime connects when the component is mounted and closes with it", async () => {
  const { result: rt, unmount } = mount(() => provideRealtime("wss://example.org/realtime", OPTIONS));
  expect(FakeSocket.all.length).toBe(1);
  FakeSocket.last.open().welcome();
  unmount();
  expect(rt.state).toBe("closed");
  expect(FakeSocket.last.closedWith).toBe(1000);
});

test("what is provided is there for the component itself and for those below", () => {
  const seen: Realtime[] = [];
  const { rt } = connected();
  const Child = defineComponent({
    setup() {
      seen.push(useRealtime());
      return () => null;
    },
  });
  const Parent = defineComponent({
    setup() {
      provideRealtime(rt);
      seen.push(useRealtime());
      return () => h(Child);
    },
  });
  const app = createApp(Parent);
  app.mount(document.createElement("div"));
  apps.push(app);
  expect(seen).toEqual([rt, rt]);
});

test("without one it says what is missing", () => {
  vi.spyOn(console, "warn").mockImplementation(() => {});
  expect(() => mount(useRealtime)).toThrow("useRealtime needs provideRealtime()");
});

test("the plugin makes a client of an address", () => {
  const app = createApp({ render: () => null });
  app.use(realtimePlugin("wss://example.org/realtime", OPTIONS));
  expect(FakeSocket.last.url).toBe("wss://example.org/realtime");
});

test("useChannel follows a ref, and ends with the component", async () => {
  const { rt, socket } = connected();
  const channel: Ref<string | null> = ref(null);
  const got: unknown[] = [];
  const { unmount } = mount(() => useChannel<number>(channel, ({ data }) => got.push(data)), rt);
  expect(socket.sent).toEqual([]);
  channel.value = "a";
  await nextTick();
  socket.reply("subscribe").receive(message("a", 1));
  channel.value = "b";
  await pass(1);
  socket.reply("subscribe").receive(message("a", 2)).receive(message("b", 3));
  expect(got).toEqual([1, 3]);
  unmount();
  await pass(1);
  expect(socket.sent.map(({ type, channel }) => `${type} ${channel}`)).toEqual([
    "subscribe a",
    "subscribe b",
    "unsubscribe a",
    "unsubscribe b",
  ]);
  channel.value = "c";
  await pass(1);
  expect(socket.sent.length).toBe(4);
});

test("useChannel tells a refusal", () => {
  const { rt, socket } = connected();
  const onError = vi.fn();
  mount(() => useChannel("secret", () => {}, { onError }), rt);
  socket.refuse("subscribe", "forbidden");
  expect(onError).toHaveBeenCalledOnce();
});

test("usePresence", async () => {
  const { rt, socket } = connected();
  const channel = ref<string | null>("chat");
  const { result } = mount(() => usePresence(channel), rt);
  expect(result.memberCount.value).toBe(0);
  socket.reply("subscribe", { members: [{ memberId: "ada" }] });
  expect(result.members.value).toEqual([{ memberId: "ada" }]);
  expect(result.memberCount.value).toBe(1);
  channel.value = null;
  await pass(1);
  expect([result.members.value, result.memberCount.value]).toEqual([[], 0]);
  expect(socket.sentOf("unsubscribe").length).toBe(1);
});

test("useTyping", async () => {
  const { rt, socket } = connected();
  const channel = ref<string | null>("chat");
  const { result } = mount(() => useTyping(channel), rt);
  socket.reply("subscribe", { typing: ["ada", "me"] });
  expect(result.typing.value).toEqual(["ada"]);
  result.setTyping(true);
  expect(socket.sentOf("typing")).toEqual([{ type: "typing", channel: "chat", data: { typing: true } }]);
  channel.value = null;
  await pass(1);
  expect(result.typing.value).toEqual([]);
  expect(socket.sentOf("unsubscribe").length).toBe(1);
  result.setTyping(true);
  expect(socket.sentOf("typing").length).toBe(1);
});

test("useConnectionState", () => {
  const { rt, socket } = connected();
  const { result, unmount } = mount(useConnectionState, rt);
  expect(result.value).toBe("open");
  socket.lose();
  expect(result.value).toBe("reconnecting");
  unmount();
  rt.close();
  expect(result.value).toBe("reconnecting");
});

test("on a server it renders as connecting with nobody there, and touches no network", async () => {
  vi.stubGlobal("WebSocket", FakeSocket);
  const Page = defineComponent({
    setup() {
      const state = useConnectionState();
      const { memberCount } = usePresence("chat");
      useChannel("chat", () => {});
      return () => h("p", `${state.value} ${memberCount.value}`);
    },
  });
  const Root = defineComponent({
    setup() {
      provideRealtime("/realtime");
      return () => h(Page);
    },
  });
  expect(await renderToString(createSSRApp(Root))).toBe("<p>connecting 0</p>");
  expect(FakeSocket.all).toEqual([]);
});
