// The token: asked for before each connection, sent as the first message, and renewed before it expires.
//
// As a message it may be of any size and stays out of the logs of addresses. An event stream cannot begin with a message,
// so there it is in the address.

import { CONNECTION, EARLY_MS, LONGEST_TIMER_MS, SOONEST_MS, TOKEN_RETRY_MS } from "./constants.js";
import { RETRIED, RealtimeError } from "./errors.js";
import type { Requests } from "./requests.js";
import type { Member, RealtimeOptions } from "./types.js";

/** Gets a token and hands it on, at once where it is there; or what went wrong. To nobody if it is no more `wanted`. */
export async function withToken(
  source: RealtimeOptions["token"],
  wanted: () => boolean,
  use: (token: string | undefined) => void,
  failed: (error: RealtimeError) => void,
  channel?: string,
): Promise<void> {
  let token;
  try {
    token = typeof source === "function" ? source() : source;
    if (typeof token === "object") token = await token;
  } catch (error) {
    if (wanted()) failed(new RealtimeError("token", `the token callback failed: ${error}`, channel));
    return;
  }
  if (wanted()) use(token || undefined);
}

export function createLogin(
  token: RealtimeOptions["token"],
  requests: Requests,
  loggedIn: (member: Member | undefined) => void,
  failed: (error: RealtimeError) => void,
  giveUp: (reason: string) => void,
) {
  const isAsked = typeof token === "function";
  let timer: ReturnType<typeof setTimeout> | undefined;
  let retried = false;

  const lost = () => {
    clearTimeout(timer);
    timer = undefined;
  };

  const renewIn = (ms: number) => {
    const due = Date.now() + ms;
    const ring = () => (Date.now() < due ? renewIn(due - Date.now()) : void renew());
    if (isAsked) timer = setTimeout(ring, Math.min(ms, LONGEST_TIMER_MS));
  };

  const renew = () => {
    const mine = timer;
    return withToken(
      token,
      () => mine === timer,
      (fresh) => fresh && send(fresh),
      later,
    );
  };

  const later = (error: RealtimeError, isFirst?: boolean) => {
    failed(error);
    if (!RETRIED.includes(error.code)) return;
    // What was sent behind the first would be done, or refused, for a guest.
    if (isFirst) giveUp(error.message);
    else renewIn(TOKEN_RETRY_MS);
  };

  const expires = (at = 0, accepted: boolean) => {
    if (accepted) retried = false;
    lost();
    const ms = at - Date.now();
    if (at) renewIn(Math.max(ms * 0.8, ms - EARLY_MS, SOONEST_MS));
  };

  const send = (fresh: string, isFirst?: boolean): void =>
    requests.call(CONNECTION, { type: "auth", data: { token: fresh } }, (error, reply) => {
      if (!error) {
        loggedIn(reply.member);
        expires(reply.expiresAt, true);
      } else if (error.code !== "disconnected" && error.code !== "closed") later(error, isFirst);
    });

  return {
    /** `isFirst`: the connection is worth nothing without it. */
    send,
    /** When the token expires (milliseconds since the epoch), if it does; and whether the server has just taken it. */
    expires,
    lost,
    /** The server closed with 4001: whether one more connection, with a new token, is worth it. Once. */
    mayRetry(): boolean {
      const may = isAsked && !retried;
      retried = true;
      return may;
    },
  };
}
