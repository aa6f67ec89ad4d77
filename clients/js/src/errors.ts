// What can go wrong, as one class with a stable code.

/**
 * `code` is one of the server's (`bad_request`, `unauthorized`, `forbidden`, `rate_limited`, `limit_exceeded`,
 * `not_subscribed`, `unavailable`, `unknown`) or of the client's own: `timeout`, `queue_full`, `closed`,
 * `disconnected`, `token` (the token callback failed). The message is a sentence for people.
 */
export class RealtimeError extends Error {
  readonly type = "error";
  declare readonly code: string;
  declare readonly channel: string | undefined;

  constructor(code: string, message: string, channel?: string) {
    super(message);
    this.name = "RealtimeError";
    this.code = code;
    this.channel = channel;
  }
}

/** What may go well a little later, so that it is worth asking again. */
export const RETRIED = ["unavailable", "unknown", "rate_limited", "timeout", "token"];

/** Tells the developer of an error that nobody caught, without disturbing whoever called. */
export function report(error: unknown): void {
  (globalThis.reportError ?? console.error)(error);
}
