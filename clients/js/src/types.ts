// What the user of the client sees. The fields have the names of the wire.

import type { RealtimeError } from "./errors.js";

/**
 * `connecting` until the first welcome of the server, `open` from a welcome on, `reconnecting` after a loss, `closed`
 * after `close()` or when the server said that coming back makes no sense.
 */
export type ConnectionState = "connecting" | "open" | "reconnecting" | "closed";

/** Who the server takes this client for. */
export interface Member {
  id: string;
  info?: unknown;
}

/** A member of a channel, in presence. */
export interface PresentMember {
  memberId: string;
  info?: unknown;
}

/** What somebody published. */
export interface Message<T = unknown> {
  type: "message";
  channel: string;
  data: T;
  /** When the server took it, in milliseconds since the epoch. */
  ts: number;
  /** The id of the member who published it; absent if it was the server. */
  from?: string;
  /** Its place in the history of the channel, if the channel has one. */
  position?: string;
}

/** Any event of the server; `on` gives known types their own shape. */
export interface RealtimeEvent<T = unknown> {
  type: string;
  channel?: string;
  data?: T;
  ts?: number;
}

/** What the server allows a client; it keeps to these by itself. */
export interface ServerLimits {
  messageBytes: number;
  channels: number;
  channelNameBytes: number;
  messagesPerSecond: number | null;
  messagesBurst: number;
}

export interface Welcome {
  id: string;
  member?: Member;
  /** Null if the server sends no pings. */
  heartbeatMs: number | null;
  /** Milliseconds since the epoch. */
  expiresAt?: number;
  limits: ServerLimits;
}

export interface StateEvent {
  type: "state";
  state: ConnectionState;
  /** Why the connection was lost or ended: a close code and a sentence. */
  code?: number;
  reason?: string;
  /** When it is tried again, in milliseconds since the epoch. */
  retryAt?: number;
}

export interface PresenceState {
  members: PresentMember[];
  memberCount: number;
  /** False if `members` is not told: above 1,000 of them, and where presence is not allowed. */
  listed: boolean;
}

export interface RealtimeEvents {
  welcome: { type: "welcome"; data: Welcome };
  state: StateEvent;
  message: Message;
  presence: RealtimeEvent<{ joined?: PresentMember[]; left?: PresentMember[]; memberCount: number }> & {
    channel: string;
  };
  typing: RealtimeEvent<{ memberId: string; typing: boolean }> & { channel: string };
  /** A subscription is live, for the first time or again; `data` is the reply of the server. */
  subscribed: RealtimeEvent<SubscribeReply> & { channel: string };
  unsubscribed: RealtimeEvent<{ code: string; message: string }> & { channel: string };
  /** Messages of the channel are missing here: load anew what you show. */
  gap: RealtimeEvent<{ position?: string }> & { channel: string };
  error: RealtimeError;
}

export interface SubscribeReply {
  members?: PresentMember[];
  memberCount?: number;
  typing?: string[];
  position?: string;
  recovered?: boolean;
  messages?: Message[];
}

export interface SubscribeOptions {
  /** The position to begin after, for whoever subscribes first on this page. */
  since?: string;
  /** A token for this channel, where the application gives them out. A function is asked at each subscribe. */
  token?: string | (() => string | Promise<string>);
  /** The subscription was refused, or ended by the server. It is not tried again until somebody subscribes anew. */
  onError?: (error: RealtimeError) => void;
}

export interface Published {
  ts: number;
  position?: string;
  /** The server had this message already; it was not sent twice. */
  duplicate?: boolean;
}

export interface HistoryReply<T = unknown> {
  /** Oldest first. */
  messages: Message<T>[];
  position: string;
  recovered?: boolean;
}

/** Ends what was begun; calling it again does nothing. */
export type Off = () => void;

export interface Realtime {
  readonly state: ConnectionState;
  /** How it is connected, if it is. */
  readonly transport: "websocket" | "sse" | undefined;
  /** Whom the server takes this client for: from the welcome on, or with a token from the login on. */
  readonly member: Member | undefined;
  /** Round trip to the server in milliseconds, from the last ping. */
  readonly latency: number | undefined;

  /** Messages of the channel. Many handlers of one channel are one subscription at the server. */
  subscribe<T = unknown>(channel: string, handler: (message: Message<T>) => void, options?: SubscribeOptions): Off;
  /**
   * Resolves when the server has taken the message. While there is no connection it waits; after a reconnect it is sent
   * again with the same key, so it never arrives twice.
   *
   * @throws RealtimeError `queue_full`, `limit_exceeded`, `timeout`, `closed`, or the server's own code
   */
  publish(channel: string, data: unknown, options?: { key?: string }): Promise<Published>;
  /** The same as `publish`. */
  send(channel: string, data: unknown, options?: { key?: string }): Promise<Published>;
  /** An event for the application's own handlers on the server; false if there is no connection: it is not kept. */
  emit(type: string, data?: unknown, channel?: string): boolean;
  /**
   * Call it at each keystroke; it is sent at most every 2.5 s, and ends by itself 5 s after the last call, or when a
   * message is published to the channel.
   */
  typing(channel: string, typing: boolean): void;
  /** Who is there: the members, or only their number. */
  presence(channel: string): Promise<{ members?: PresentMember[]; memberCount?: number }>;
  /** The newest messages of a channel that keeps history, 50 unless it is told; with `since` the oldest after it. */
  history<T = unknown>(channel: string, options?: { limit?: number; since?: string }): Promise<HistoryReply<T>>;
  /** Subscribes, and calls back with who is there: now, if known, and after each change. */
  trackPresence(channel: string, callback: (presence: PresenceState) => void, options?: SubscribeOptions): Off;
  /** Subscribes, and calls back with the ids of the other members that are typing. */
  trackTyping(channel: string, callback: (memberIds: string[]) => void, options?: SubscribeOptions): Off;
  /** Milliseconds to the server and back. */
  ping(): Promise<number>;

  on<K extends keyof RealtimeEvents>(type: K, handler: (event: RealtimeEvents[K]) => void): Off;
  on<T = any>(type: string, handler: (event: RealtimeEvent<T>) => void): Off;
  onState(handler: (event: StateEvent) => void): Off;

  /** Connects, if it is not connected or on its way. Needed after `autoConnect: false` only. */
  connect(): void;
  /** Drops the connection and connects at once: after a login, for instance. Also after `close()`. */
  reconnect(): void;
  /** Ends it. What was not answered is rejected with `closed`; handlers stay for a later `reconnect()`. */
  close(): void;
}

/** The part of a WebSocket that is used. */
export interface WebSocketLike {
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

/** The part of an EventSource that is used. */
export interface EventSourceLike {
  readonly readyState: number;
  onmessage: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  close(): void;
}

export interface RealtimeOptions {
  /** A token, or what gets one: asked at each connect and before it expires. Nothing (null, "") connects as a guest. */
  token?: string | (() => string | null | undefined | Promise<string | null | undefined>);
  /** Which ways to use, default both. Server-Sent Events are used when the WebSocket does not get through. */
  transports?: ("websocket" | "sse")[];
  /** Default: true in a page or a worker; elsewhere (a server that renders) the first use connects. */
  autoConnect?: boolean;
  /** Delays of reconnects, default 500 and 30,000 ms: a random part of a delay that doubles up to the longest. */
  backoff?: { firstMs?: number; longestMs?: number };
  /** Publishes that may wait to be sent, default 100. */
  queueSize?: number;
  /** How long an answer may take, default 10,000 ms. */
  requestTimeoutMs?: number;
  WebSocket?: new (url: string) => WebSocketLike;
  EventSource?: new (url: string) => EventSourceLike;
  fetch?: (url: string, init?: RequestInit) => Promise<Response>;
}
