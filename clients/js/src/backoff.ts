// How long to wait before the next attempt: full jitter under a ceiling that doubles, so that ten thousand pages that
// lost the same server do not come back in the same second. A server that restarts spreads its clients itself and says
// how in the reason of the close; that goes first.

const HINT = /retry in ([0-9.]+) s$/;

export function createBackoff({ firstMs = 500, longestMs = 30_000 } = {}) {
  let attempts = 0;
  return {
    /** After a connection that lived for a while; not at its opening, or a server that accepts and dies is hammered. */
    reset(): void {
      attempts = 0;
    },

    next(reason: string): number {
      const ceiling = Math.min(longestMs, firstMs * 2 ** attempts++);
      const hint = HINT.exec(reason);
      return hint ? +hint[1]! * 1000 : Math.random() * ceiling;
    },
  };
}
