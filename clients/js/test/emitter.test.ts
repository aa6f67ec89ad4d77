import { beforeEach, expect, test, vi } from "vitest";
import { createEmitter } from "../src/emitter.js";
import { standStill } from "./fakes.js";

beforeEach(standStill);

test("handlers get events of their type, and * gets all", () => {
  const events = createEmitter();
  const seen: string[] = [];
  const off = events.on("a", () => seen.push("a"));
  events.on("*", ({ type }) => seen.push(`*${type}`));
  expect(events.emit({ type: "a" })).toBe(true);
  expect(events.emit({ type: "b" })).toBe(false);
  off();
  off();
  events.emit({ type: "a" });
  expect(seen).toEqual(["a", "*a", "*b", "*a"]);
});

test("the same function twice is called twice, and ends once at a time", () => {
  const events = createEmitter();
  const handler = vi.fn();
  const off = events.on("a", handler);
  events.on("a", handler);
  events.emit({ type: "a" });
  off();
  events.emit({ type: "a" });
  expect(handler).toHaveBeenCalledTimes(3);
});

test("a handler that throws is reported and disturbs nobody", () => {
  const events = createEmitter();
  const second = vi.fn();
  events.on("a", () => {
    throw new Error("mine");
  });
  events.on("a", second);
  events.emit({ type: "a" });
  expect(second).toHaveBeenCalledOnce();
  expect(console.error).toHaveBeenCalledOnce();
});

test("in a page it is reported as an uncaught error is", () => {
  const reportError = vi.fn();
  vi.stubGlobal("reportError", reportError);
  const events = createEmitter();
  events.on("a", () => {
    throw new Error("mine");
  });
  events.emit({ type: "a" });
  expect(reportError).toHaveBeenCalledExactlyOnceWith(new Error("mine"));
});

test("handlers that come or go while an event is told", () => {
  const events = createEmitter();
  const late = vi.fn();
  const off = events.on("a", () => {
    off();
    events.on("a", late);
  });
  events.emit({ type: "a" });
  expect(late).not.toHaveBeenCalled();
  events.emit({ type: "a" });
  expect(late).toHaveBeenCalledOnce();
});
