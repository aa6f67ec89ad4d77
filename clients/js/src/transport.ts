// What the link needs of a transport. There are two: websocket.ts and sse.ts.

/** An event as it came over the wire. */
export interface Incoming {
  type: string;
  channel?: string;
  data?: any;
  id?: number | string;
}

export interface TransportEvents {
  /** From here on it can send. */
  opened(): void;
  event(event: Incoming): void;
  /** The code is that of a WebSocket. Whatever comes after it is of no interest. */
  closed(code: number, reason: string): void;
}

export interface Transport {
  /** One envelope. */
  send(text: string): void;
  /** No event comes after this, whatever the network does. */
  close(): void;
}
