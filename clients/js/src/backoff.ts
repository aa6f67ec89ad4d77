// How long to wait before the next attempt: full jitter under a ceiling that doubles, so that ten thousand pages that
// lost the same server do not come back in the same second. A server that restarts spreads its clients itself and says
// how in the reason of the close; that goes first.

import type { RealtimeOptions } from "./types.js";

const HINT = /retry in ([0-9.]+) s$/;

/** Milliseconds. `attempts` have failed before, since the last connection that lived for a while. */
export function delay(attempts: number, reason: string, { firstMs = 500, longestMs = 30_000 }: RealtimeOptions["backoff"] = {}) {
  const hint = HINT.exec(reason);
  return hint ? +hint[1]! * 1000 : Math.random() * Math.min(longestMs, firstMs * 2 ** attempts);
}
