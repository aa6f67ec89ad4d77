// The WebSocket transport.

import type { Transport, TransportEvents } from "./transport.js";
import type { WebSocketLike } from "./types.js";

export function openWebSocket(
  url: string,
  WebSocketClass: new (url: string) => WebSocketLike,
  events: TransportEvents,
): Transport {
  const socket = new WebSocketClass(url);
  socket.onopen = () => events.opened();
  socket.onmessage = ({ data }) => events.event(JSON.parse(data));
  socket.onclose = ({ code, reason }) => events.closed(code, reason);
  socket.onerror = () => {}; // a close follows; and some implementations throw where nobody listens
  return {
    send: (text) => socket.send(text),
    close() {
      // A browser may take a minute for the closing handshake of a dead connection: nobody waits for it.
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close(1000);
    },
  };
}
