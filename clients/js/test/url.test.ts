import { afterEach, expect, test, vi } from "vitest";
import { addresses } from "../src/url.js";

afterEach(() => vi.unstubAllGlobals());

test.each([
  ["wss://example.org/realtime", "wss://example.org/realtime", "https://example.org/realtime"],
  ["ws://localhost:3000/realtime", "ws://localhost:3000/realtime", "http://localhost:3000/realtime"],
  ["https://example.org/realtime/", "wss://example.org/realtime", "https://example.org/realtime"],
  ["http://[::1]:8000/a/b", "ws://[::1]:8000/a/b", "http://[::1]:8000/a/b"],
])("%s", (url, websocket, http) => {
  expect(addresses(url)).toMatchObject({ websocket, http });
});

test("the query stays", () => {
  const both = addresses("ws://h/realtime?user=ada%20l")!;
  expect(both.websocket).toBe("ws://h/realtime?user=ada%20l");
  expect(both.query.get("user")).toBe("ada l");
});

test("a path is of this page", () => {
  vi.stubGlobal("location", { href: "https://example.org/chat/room?x=1#y" });
  expect(addresses("/realtime")).toMatchObject({
    websocket: "wss://example.org/realtime",
    http: "https://example.org/realtime",
  });
  expect(addresses("realtime")).toMatchObject({ websocket: "wss://example.org/chat/realtime" });
  expect(addresses("wss://other.example/realtime")).toMatchObject({ websocket: "wss://other.example/realtime" });
});

test("without a page a path leads nowhere", () => {
  expect(addresses("/realtime")).toBeUndefined();
});
