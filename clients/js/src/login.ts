// The token: asked for before each connection, sent as the first message, and renewed before it expires.
//
// As a message it may be of any size and stays out of the logs of addresses. An event stream cannot begin with a message,
// so there it is in the address.

import { RETRIED, RealtimeError } from "./errors.js";
import { CONNECTION, type Requests } from "./requests.js";
import type { Member, RealtimeOptions } from "./types.js";

const EARLY_MS = 30_000;
const SOONEST_MS = 10_000; // a clock that is wrong must not make a renewal a loop
const AGAIN_MS = 5_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

export function tokenFailed(error: unknown, channel?: string): RealtimeError {
  return new RealtimeError("token", `the token callback failed: ${error}`, channel);
}

export function createLogin(
  token: RealtimeOptions["token"],
  requests: Requests,
  loggedIn: (member: Member | undefined) => void,
  failed: (error: RealtimeError) => void,
) {
  const ask = typeof token === "function" ? token : undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let retried = false;

  const lost = () => {
    clearTimeout(timer);
    timer = undefined;
  };

  const renewIn = (ms: number) => {
    const due = Date.now() + ms;
    const ring = () => (Date.now() < due ? renewIn(due - Date.now()) : void renew());
    if (ask) timer = setTimeout(ring, Math.min(ms, LONGEST_TIMER_MS));
  };

  const renew = async () => {
    const mine = timer;
    try {
      const fresh = await ask!();
      if (fresh && mine === timer) send(fresh);
    } catch (error) {
      if (mine !== timer) return;
      failed(tokenFailed(error));
      renewIn(AGAIN_MS);
    }
  };

  const expires = (at: number | undefined, accepted: boolean) => {
    if (accepted) retried = false;
    lost();
    if (at) renewIn(Math.max((at - Date.now()) * 0.8, at - Date.now() - EARLY_MS, SOONEST_MS));
  };

  const send = (fresh: string): void =>
    requests.call(CONNECTION, { type: "auth", data: { token: fresh } }, (error, reply) => {
      if (!error) {
        loggedIn(reply.member);
        expires(reply.expiresAt, true);
      } else if (error.code !== "disconnected" && error.code !== "closed") {
        failed(error);
        if (RETRIED.includes(error.code)) renewIn(AGAIN_MS);
      }
    });

  return {
    ask: () => (ask ? ask() : (token as string | undefined)),
    send,
    /** When the token expires (milliseconds since the epoch), if it does; and whether the server has just taken it. */
    expires,
    lost,
    /** The server closed with 4001: whether one more connection, with a new token, is worth it. Once. */
    mayRetry(): boolean {
      const may = ask !== undefined && !retried;
      retried = true;
      return may;
    },
  };
}
