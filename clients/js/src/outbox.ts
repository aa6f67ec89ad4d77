// What waits to be sent on this connection, first in, first out, at the pace that the server allows.
//
// It forgets everything when the connection is lost: whoever wants something sent again (subscriptions, publishes) puts
// it in again when the next one opens.

import { RealtimeError } from "./errors.js";
import { createPacer } from "./pacer.js";
import type { ServerLimits } from "./types.js";

export interface Outgoing {
  text: string;
  /** It is on its way. */
  sent?(): void;
  /** It cannot go at all. */
  settle?(error: RealtimeError): void;
  /** Nobody waits for it any more: it need not go. */
  gone?: boolean;
}

export type Outbox = ReturnType<typeof createOutbox>;

export function createOutbox() {
  const pacer = createPacer();
  let queue: Outgoing[] = [];
  let send: ((text: string) => void) | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let messageBytes = 65_536;

  const fits = (text: string) => new TextEncoder().encode(text).length <= messageBytes;

  const drain = () => {
    clearTimeout(timer);
    timer = undefined;
    while (send && queue.length) {
      const item = queue[0]!;
      const goes = !item.gone && fits(item.text);
      const wait = goes ? pacer.take() : 0;
      if (wait > 0) {
        timer = setTimeout(drain, wait);
        return;
      }
      queue.shift();
      if (goes) {
        send(item.text);
        item.sent?.();
      } else if (!item.gone) {
        // Sent, it would end the connection for good (1009).
        item.settle?.(new RealtimeError("limit_exceeded", `the server takes ${messageBytes} bytes at most`));
      }
    }
  };

  return {
    isOpen: () => !!send,

    open(sender: (text: string) => void): void {
      send = sender;
      pacer.opened();
    },

    close(): void {
      send = undefined;
      queue = [];
      drain();
    },

    learn(limits: ServerLimits): void {
      messageBytes = limits.messageBytes;
      pacer.learn(limits);
      drain();
    },

    push(item: Outgoing): void {
      queue.push(item);
      if (!timer) drain();
    },

    /** Sends what cannot wait, past the queue. */
    now(text: string): void {
      pacer.force();
      send?.(text);
    },

    /** For what is worth nothing later: sent if it can go right now, else dropped. Says which. */
    tryNow(text: string): boolean {
      const goes = !!send && !timer && fits(text) && pacer.take() === 0;
      if (goes) send!(text);
      return goes;
    },

    slowDown: pacer.empty,
  };
}
