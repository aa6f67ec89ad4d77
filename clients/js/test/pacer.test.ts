import { beforeEach, expect, test, vi } from "vitest";
import { createPacer } from "../src/pacer.js";
import { LIMITS, standStill } from "./fakes.js";

beforeEach(standStill);

function takeAll(pacer: ReturnType<typeof createPacer>): number {
  let count = 0;
  while (count < 1_000 && pacer.take() === 0) count++;
  return count;
}

test("before the welcome it keeps to the defaults of the server, a little less", () => {
  const pacer = createPacer();
  pacer.opened();
  expect(takeAll(pacer)).toBe(35);
  expect(pacer.take()).toBe(50);
  vi.advanceTimersByTime(1_000);
  expect(takeAll(pacer)).toBe(20);
});

test("after the welcome it may use what the server grants for the opening", () => {
  const pacer = createPacer();
  pacer.opened();
  expect(takeAll(pacer)).toBe(35);
  pacer.learn(LIMITS);
  expect(takeAll(pacer)).toBe(128);
  vi.advanceTimersByTime(10_000);
  expect(takeAll(pacer)).toBe(35); // the grant is for the opening only
  pacer.opened();
  expect(takeAll(pacer)).toBe(35 + 128); // known from the last time
});

test("it never exceeds the server's bucket, whatever the times of the calls", () => {
  const limits = { ...LIMITS, channels: 0, messagesPerSecond: 7, messagesBurst: 11 };
  for (let seed = 1; seed <= 20; seed++) {
    const pacer = createPacer();
    pacer.opened();
    pacer.learn(limits);
    takeAll(pacer);
    let random = seed;
    let bucket = 0; // what the server counts, with a full bucket at the opening
    for (let step = 0; step < 500; step++) {
      random = (random * 16_807) % 2_147_483_647;
      const ms = random % 400;
      vi.advanceTimersByTime(ms);
      bucket = Math.min(11, bucket + (ms * 7) / 1000);
      bucket -= random % 2 ? takeAll(pacer) : pacer.take() === 0 ? 1 : 0;
      expect(bucket, `seed ${seed}, step ${step}`).toBeGreaterThanOrEqual(-1e-6);
    }
  }
});

test("after the wait that it asks for, a message may go, or a millisecond later", () => {
  const pacer = createPacer();
  pacer.opened();
  pacer.learn({ ...LIMITS, channels: 0, messagesPerSecond: 3 });
  takeAll(pacer);
  for (let round = 0; round < 100; round++) {
    vi.advanceTimersByTime(pacer.take());
    const rest = pacer.take();
    if (rest === 0) continue;
    expect(rest).toBe(1);
    vi.advanceTimersByTime(1);
    expect(pacer.take()).toBe(0);
  }
});

test("what went out of turn is paid for", () => {
  const pacer = createPacer();
  pacer.opened();
  takeAll(pacer);
  pacer.force();
  pacer.force();
  expect(pacer.take()).toBe(150);
});

test("without a limit nothing waits", () => {
  const pacer = createPacer();
  pacer.opened();
  pacer.learn({ ...LIMITS, messagesPerSecond: null });
  for (let count = 0; count < 500; count++) {
    expect(pacer.take()).toBeLessThanOrEqual(1);
    vi.advanceTimersByTime(1);
  }
});

test("a server that drops a message has an empty bucket", () => {
  const pacer = createPacer();
  pacer.opened();
  vi.advanceTimersByTime(10_000);
  pacer.empty();
  expect(pacer.take()).toBe(50);
});

test("limits that change count from now on", () => {
  const pacer = createPacer();
  pacer.opened();
  pacer.learn({ ...LIMITS, channels: 0, messagesBurst: 105 });
  expect(takeAll(pacer)).toBe(100);
  vi.advanceTimersByTime(60_000);
  expect(takeAll(pacer)).toBe(100);
  vi.advanceTimersByTime(1_000);
  pacer.learn({ ...LIMITS, channels: 0, messagesPerSecond: 4, messagesBurst: 101 }); // what was earned, was earned at 20
  expect(takeAll(pacer)).toBe(20);
  vi.advanceTimersByTime(1_000);
  expect(takeAll(pacer)).toBe(4);
});

test("a clock that is set back neither gives nor takes", () => {
  const pacer = createPacer();
  pacer.opened();
  takeAll(pacer);
  vi.setSystemTime(0);
  expect(pacer.take()).toBe(50);
  vi.advanceTimersByTime(50);
  expect(pacer.take()).toBe(0);
});
