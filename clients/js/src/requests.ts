// Requests with ids: what was asked, who waits for the answer, and for how long.
//
// A publish is kept until it is answered: over reconnects, and again when no answer came in time (the server drops what
// is above its rate without an answer), each time with its key, so that it is never taken twice. The server knows a key
// for five minutes after it has seen it; a publish that was sent longer ago and is still unanswered fails as `unknown`.
// Everything else is answered in time or fails.

import { ANSWER, ATTEMPTS, CALL, CONNECTION, KEY_LIFE_MS, type Life, UNKNOWN_RETRY_MS } from "./constants.js";
import { RealtimeError } from "./errors.js";
import type { Outbox, Outgoing } from "./outbox.js";

const NO_CONNECTION = "no connection";

export interface Envelope {
  type: string;
  channel?: string | undefined;
  data?: unknown;
  token?: string | undefined;
  since?: string | undefined;
  key?: string;
}

type Done = (error: RealtimeError | undefined, data?: any) => void;

interface Pending extends Outgoing {
  life: Life;
  /** To be sent, or sent again. */
  waiting: boolean;
  attempts: number;
  firstSentAt?: number;
  timer?: ReturnType<typeof setTimeout>;
  settle: Done;
  fail(code: string, message: string): void;
}

export type Requests = ReturnType<typeof createRequests>;

export function createRequests(outbox: Outbox, timeoutMs = 10_000, queueSize = 100) {
  const pending = new Map<unknown, Pending>();
  let lastId = 0;

  /** `done` is called once, from within the event that settled it: no message overtakes the reply before it. */
  const call = (life: Life, envelope: Envelope, done: Done): void => {
    const id = ++lastId;
    const startTimer = () => {
      request.timer = setTimeout(() => {
        if (life === ANSWER && request.attempts < ATTEMPTS) again(request);
        else request.fail("timeout", `no answer within ${timeoutMs / 1000} s`);
      }, timeoutMs);
    };
    const request: Pending = {
      text: JSON.stringify({ ...envelope, id }),
      life,
      waiting: true,
      attempts: 0,
      sent() {
        request.waiting = false;
        request.attempts += 1;
        request.firstSentAt ||= Date.now();
        if (life !== CALL) startTimer();
      },
      settle(error, data) {
        clearTimeout(request.timer);
        request.gone = true;
        pending.delete(id);
        done(error, data);
      },
      fail: (code, message) => request.settle(new RealtimeError(code, message, envelope.channel)),
    };
    if (life === CONNECTION && !outbox.isOpen()) return request.fail("disconnected", NO_CONNECTION);
    if (life === ANSWER && [...pending.values()].filter((other) => other.life === life && other.waiting).length >= queueSize)
      return request.fail("queue_full", `${queueSize} messages wait already (queueSize)`);
    pending.set(id, request);
    if (life === CALL) startTimer();
    if (outbox.isOpen()) outbox.push(request);
  };

  const again = (request: Pending) => {
    request.waiting = true;
    outbox.push(request);
  };

  return {
    call,

    /** The same as a promise. */
    ask: (life: Life, envelope: Envelope): Promise<any> =>
      new Promise((resolve, reject) => call(life, envelope, (error, data) => (error ? reject(error) : resolve(data)))),

    reply(id: unknown, data: unknown): void {
      pending.get(id)?.settle(undefined, data);
    },

    /** True if the id was one of ours. */
    error(id: unknown, error: RealtimeError): boolean {
      const request = pending.get(id);
      if (request && error.code === "unknown" && request.life === ANSWER && request.attempts < ATTEMPTS) {
        clearTimeout(request.timer);
        request.timer = setTimeout(() => again(request), UNKNOWN_RETRY_MS);
      } else request?.settle(error);
      return !!request;
    },

    opened(): void {
      pending.forEach((request) => {
        const { life, firstSentAt } = request;
        if (life === ANSWER && firstSentAt && Date.now() - firstSentAt > KEY_LIFE_MS)
          request.fail("unknown", "the answer was lost");
        else if (life !== CONNECTION) outbox.push(request);
      });
    },

    lost(): void {
      pending.forEach((request) => {
        request.waiting = true;
        request.attempts = 0;
        if (request.life === ANSWER) clearTimeout(request.timer);
        if (request.life === CONNECTION) request.fail("disconnected", NO_CONNECTION);
      });
    },

    closed(): void {
      pending.forEach((request) => request.fail("closed", NO_CONNECTION));
    },
  };
}
