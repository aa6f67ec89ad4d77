// When the next message may go, so that the server never has to drop one: its bucket, seen from this side.
//
// Right after the opening the server grants as many messages more as a client may have channels, to resubscribe. The
// bucket here is a quarter of a second smaller than the server's, because a network bunches what was sent spaced.

import type { ServerLimits } from "./types.js";

export function createPacer() {
  // Until the first welcome: the server's defaults.
  let perSecond = 20;
  let burst = 35;
  let channels = 0;

  let tokens = 0;
  let opening = 0;
  let filledAt = 0;

  const fill = () => {
    const now = Date.now();
    // A clock that was set back earns nothing.
    tokens = Math.min(burst, tokens + (Math.max(0, now - filledAt) * perSecond) / 1000);
    filledAt = now;
  };

  return {
    opened(): void {
      tokens = burst;
      opening = channels;
      filledAt = Date.now();
    },

    /** The limits of the welcome, for this connection too. */
    learn(limits: ServerLimits): void {
      fill();
      perSecond = limits.messagesPerSecond ?? 1e9;
      const smaller = Math.max(1, limits.messagesBurst - Math.ceil(perSecond / 4));
      tokens += smaller - burst;
      opening += limits.channels - channels;
      burst = smaller;
      channels = limits.channels;
    },

    /** Takes one message out of the bucket; or the milliseconds after which to ask again, and nothing is taken. */
    take(): number {
      fill();
      if (tokens >= 1) tokens -= 1;
      else if (opening > 0) opening -= 1;
      else return Math.ceil(((1 - tokens) / perSecond) * 1000);
      return 0;
    },

    /** A message that went out of turn: it counts, and what comes next waits for it. */
    force(): void {
      fill();
      tokens -= 1;
    },

    /** The server has dropped a message for our rate: its bucket is empty. */
    empty(): void {
      tokens = opening = 0;
      filledAt = Date.now();
    },
  };
}
