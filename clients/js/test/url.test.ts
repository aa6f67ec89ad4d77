import { afterEach, expect, test, vi } from "vitest";
import { address } from "../src/url.js";

afterEach(() => vi.unstubAllGlobals());

test.each([
  ["wss://example.org/realtime", "wss://example.org/realtime", "https://example.org/realtime/sse"],
  ["ws://localhost:3000/realtime", "ws://localhost:3000/realtime", "http://localhost:3000/realtime/sse"],
  ["https://example.org/realtime/", "wss://example.org/realtime", "https://example.org/realtime/sse"],
  ["HTTP://[::1]:8000/a/b", "ws://[::1]:8000/a/b", "http://[::1]:8000/a/b/sse"],
  ["https://http.example/", "wss://http.example/", "https://http.example/sse"],
])("%s", (url, websocket, sse) => {
  expect(address(url, "ws")).toBe(websocket);
  expect(address(url, "http", "/sse")).toBe(sse);
});

test("the query stays, and may become longer", () => {
  expect(address("ws://h/realtime?user=ada%20l", "ws")).toBe("ws://h/realtime?user=ada%20l");
  expect(address("ws://h/realtime?x=1", "http", "/send", "connection", "a b")).toBe("http://h/realtime/send?x=1&connection=a+b");
  expect(address("ws://h/realtime", "http", "/sse", "token", undefined)).toBe("http://h/realtime/sse");
});

test("a path is of this page", () => {
  vi.stubGlobal("location", { href: "https://example.org/chat/room?x=1#y" });
  expect(address("/realtime", "ws")).toBe("wss://example.org/realtime");
  expect(address("/realtime", "http", "/sse")).toBe("https://example.org/realtime/sse");
  expect(address("realtime", "ws")).toBe("wss://example.org/chat/realtime");
  expect(address("wss://other.example/realtime", "ws")).toBe("wss://other.example/realtime");
});

test("without a page a path leads nowhere", () => {
  expect(address("/realtime", "ws")).toBeUndefined();
});
