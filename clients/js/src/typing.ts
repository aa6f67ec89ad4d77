// "I am typing", from one call per keystroke: sent at once, again every 2.5 s as long as calls keep coming (the server
// forgets it after five), and ended 5 s after the last of them. It is worth nothing later, so it is never queued.

import { TYPING_END_MS, TYPING_REFRESH_MS } from "./constants.js";

interface Typing {
  calledAt: number;
  /** Called since it was sent. */
  again?: boolean;
  timer: ReturnType<typeof setInterval>;
}

export function createTyping(send: (channel: string, typing: boolean) => void) {
  const channels = new Map<string, Typing>();

  const forget = (channel: string) => {
    clearInterval(channels.get(channel)?.timer);
    return channels.delete(channel);
  };

  const set = (channel: string, typing: boolean): void => {
    const current = channels.get(channel);
    const now = Date.now();
    if (!typing) {
      if (forget(channel)) send(channel, false);
    } else if (current) {
      current.calledAt = now;
      current.again = true;
    } else {
      const timer = setInterval(() => check(channel), TYPING_REFRESH_MS);
      channels.set(channel, { calledAt: now, timer });
      send(channel, true);
    }
  };

  const check = (channel: string) => {
    const current = channels.get(channel)!;
    if (Date.now() - current.calledAt >= TYPING_END_MS) set(channel, false);
    else if (current.again) {
      current.again = false;
      send(channel, true);
    }
  };

  return {
    set,
    /** Without a word to the server: the channel was left. */
    forget,
    /** The connection was lost. */
    lost: () => [...channels.keys()].forEach(forget),
  };
}
