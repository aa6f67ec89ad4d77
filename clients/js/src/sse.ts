// The transport for where WebSockets do not get through: an EventSource for what comes, POSTs for what goes.
//
// The stream begins without channels; subscriptions go by POST like everything else, so that both transports work alike.
// POSTs go one after the other, which keeps the order, and each takes what has gathered meanwhile. An EventSource tries
// again by itself; here the link does that, with its own delays.

import { BATCH, BUSY_MS, CLOSED, POST_MS } from "./constants.js";
import type { Transport, TransportEvents } from "./transport.js";
import type { EventSourceLike, RealtimeOptions } from "./types.js";
import { address } from "./url.js";

export function openSse(
  base: string,
  token: string | undefined,
  EventSourceClass: new (url: string) => EventSourceLike,
  fetch: NonNullable<RealtimeOptions["fetch"]>,
  events: TransportEvents,
): Transport {
  const url = address(base, "http", "/sse", "token", token)!;
  const source = new EventSourceClass(url);
  let connection: string | undefined;
  let waiting: string[] = [];
  let posting = false;
  let over = false;

  const stop = () => {
    over = true;
    source.onmessage = source.onerror = null;
    source.close();
  };
  const end = (code: number, reason: string) => {
    stop();
    events.closed(code, reason);
  };

  source.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if (event.type === "close") return end(event.data.code, event.data.reason);
    if (event.type === "welcome") {
      connection = event.data.id;
      events.opened();
    }
    events.event(event);
  };
  source.onerror = async () => {
    let code = 1006;
    let reason = "the event stream broke";
    if (!connection && source.readyState === CLOSED) {
      // It was refused, and an EventSource does not say why. Ask again, to know whether to come back. Only a bad token
      // is final: anything else a proxy may say for a while.
      const response = await fetch(url).catch(() => undefined);
      const after = response?.headers.get("retry-after");
      if (response?.status === 401) code = 4001;
      reason = `the event stream was refused: HTTP ${response?.status}${after ? `, retry in ${after} s` : ""}`;
      void response?.body?.cancel();
    }
    end(code, reason);
  };

  const post = async () => {
    while (waiting.length && !over) {
      const batch = waiting.splice(0, BATCH);
      const body = batch.length > 1 ? `[${batch}]` : batch[0]!;
      // Text, which it is by default, needs no preflight at another origin.
      const signal = AbortSignal.timeout(POST_MS);
      const sending = fetch(address(base, "http", "/send", "connection", connection)!, { method: "POST", body, signal });
      const response = await sending.catch(() => undefined);
      const status = response?.status;
      if (status === 429) {
        // Nothing of it was taken: there is too much that the server has not done yet.
        waiting.unshift(...batch);
        await new Promise((resolve) => setTimeout(resolve, BUSY_MS));
      } else if (!response?.ok && status !== 400) end(1006, `a POST was refused: HTTP ${status}`);
      // 400: one of them cannot be read, and none was taken. Requests are asked again when no answer comes, and in the end
      // fail; whereas on another connection, that one would come at once, and again.
    }
    posting = false;
  };

  return {
    send(text) {
      waiting.push(text);
      if (posting) return;
      posting = true;
      queueMicrotask(post); // after the burst of an opening, which then is one request
    },
    close: stop,
  };
}
