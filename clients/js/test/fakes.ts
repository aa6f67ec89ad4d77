// A server to hold in one's hand: sockets that do what a test says, and a clock that does the same.

import { vi } from "vitest";
import { createRealtime, type Realtime, type RealtimeOptions } from "../src/index.js";

export const LIMITS = { messageBytes: 65_536, channels: 128, channelNameBytes: 255, messagesPerSecond: 20, messagesBurst: 40 };

export class FakeSocket {
  static all: FakeSocket[] = [];

  onopen: ((event: any) => void) | null = null;
  onmessage: ((event: any) => void) | null = null;
  onclose: ((event: any) => void) | null = null;
  onerror: ((event: any) => void) | null = null;
  sent: any[] = [];
  closedWith: number | undefined;
  readonly url: string;

  constructor(url: string) {
    this.url = url;
    FakeSocket.all.push(this);
  }

  static get last(): FakeSocket {
    return FakeSocket.all.at(-1)!;
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text));
  }

  close(code?: number): void {
    this.closedWith = code ?? 1005;
  }

  open(): this {
    this.onopen?.({});
    return this;
  }

  receive(event: object): this {
    this.onmessage?.({ data: JSON.stringify(event) });
    return this;
  }

  welcome(data: object = {}): this {
    return this.receive({ type: "welcome", data: { id: "c1", member: { id: "me" }, heartbeatMs: 25_000, limits: LIMITS, ...data } });
  }

  lose(code = 1006, reason = ""): this {
    this.onclose?.({ code, reason });
    return this;
  }

  /** What was sent of a type, oldest first. */
  sentOf(type: string): any[] {
    return this.sent.filter((envelope) => envelope.type === type);
  }

  /** Answers the newest message of a type. */
  reply(type: string, data: object = {}): this {
    const { id, channel } = this.sentOf(type).at(-1);
    return this.receive({ type: "reply", id, channel, data });
  }

  refuse(type: string, code: string): this {
    const { id, channel } = this.sentOf(type).at(-1);
    return this.receive({ type: "error", id, channel, data: { code, message: `it is ${code}` } });
  }
}

/** The clock stands still until a test moves it; the next random number is 0.5. To be called in beforeEach. */
export function standStill(): void {
  vi.useFakeTimers({ now: 1_764_000_000_000 });
  vi.spyOn(Math, "random").mockReturnValue(0.5);
  vi.spyOn(console, "error").mockImplementation(() => {});
  FakeSocket.all = [];
}

export const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);

/** A client whose first socket is there, and not open. */
export function start(options: RealtimeOptions = {}, url = "wss://example.org/realtime"): Realtime {
  return createRealtime(url, { WebSocket: FakeSocket, transports: ["websocket"], ...options });
}

/** A client that is connected. */
export function connected(options: RealtimeOptions = {}): { rt: Realtime; socket: FakeSocket } {
  const rt = start(options);
  const socket = FakeSocket.last.open().welcome();
  return { rt, socket };
}

/** The client comes back: waits for its next socket. */
export async function nextSocket(): Promise<FakeSocket> {
  const before = FakeSocket.all.length;
  for (let ms = 0; ms <= 30_000; ms += 50) {
    if (FakeSocket.all.length > before) return FakeSocket.last;
    await pass(50);
  }
  throw new Error("no socket within 30 s");
}

export const comeBack = async (welcome: object = {}) => (await nextSocket()).open().welcome(welcome);

/** All that a client tells, for `expect`. */
export function record(rt: Realtime, type: string): any[] {
  const events: any[] = [];
  rt.on(type, (event) => events.push(event));
  return events;
}

export function message(channel: string, data: unknown, position?: string): object {
  return { type: "message", channel, data, ts: 1, from: "ada", ...(position === undefined ? {} : { position }) };
}
