import { afterEach, expect, test, vi } from "vitest";
import { delay } from "../src/backoff.js";

afterEach(() => vi.restoreAllMocks());

function delays(random: number, count: number): number[] {
  vi.spyOn(Math, "random").mockReturnValue(random);
  return Array.from({ length: count }, (_, attempts) => delay(attempts, ""));
}

test("the ceiling doubles from half a second to thirty", () => {
  expect(delays(1, 8)).toEqual([500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
});

test("the whole of it is random, so that pages do not come back together", () => {
  expect(delays(0, 3)).toEqual([0, 0, 0]);
  expect(delays(0.25, 3)).toEqual([125, 250, 500]);
});

test("floor and ceiling are options", () => {
  vi.spyOn(Math, "random").mockReturnValue(1);
  expect([0, 1, 9].map((attempts) => delay(attempts, "", { firstMs: 100, longestMs: 1_000 }))).toEqual([100, 200, 1_000]);
});

test("the server's own hint goes first, at the end of the reason only", () => {
  vi.spyOn(Math, "random").mockReturnValue(1);
  expect(delay(0, "service restart, retry in 3.4 s")).toBe(3_400);
  expect(delay(1, "retry in 3.4 s, perhaps")).toBe(1_000);
});

test("it does not overflow", () => {
  vi.spyOn(Math, "random").mockReturnValue(1);
  expect(delay(5_000, "")).toBe(30_000);
});
