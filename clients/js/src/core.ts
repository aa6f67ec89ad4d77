// createRealtime: the parts put together. Each event of the server goes to whom it is for, then to `on` handlers.
//
// Right after the opening, and without waiting for the welcome, go the login, then the subscriptions, then what waits.

import { createChannels } from "./channels.js";
import { ANSWER, CALL, CONNECTION, FIRST_PING_MS, HEARTBEAT_MS, type Life } from "./constants.js";
import { createEmitter } from "./emitter.js";
import { RealtimeError } from "./errors.js";
import { createLink } from "./link.js";
import { createLogin } from "./login.js";
import { createOutbox } from "./outbox.js";
import { createRequests, type Envelope } from "./requests.js";
import type { Incoming } from "./transport.js";
import type { Member, Off, Realtime, RealtimeOptions, StateEvent, Welcome } from "./types.js";
import { createTyping } from "./typing.js";

/**
 * A connection to a `Realtime` of street_fast.
 *
 * @param url ws(s)://, http(s)://, or a path of this page such as "/realtime"
 */
export function createRealtime(url: string, options: RealtimeOptions = {}): Realtime {
  let member: Member | undefined;
  /** The welcome names a guest, and the answer to the login whom it really is. */
  let loggingIn = false;
  let latency: number | undefined;
  let pingTimer: ReturnType<typeof setTimeout> | undefined;

  const failed = (error: RealtimeError) => {
    if (!events.emit(error)) console.error(error);
  };
  const events = createEmitter();
  const outbox = createOutbox();
  const requests = createRequests(outbox, options.requestTimeoutMs, options.queueSize);
  const typing = createTyping((channel, typing) => {
    if (channels.isLive(channel)) emit("typing", { typing }, channel);
  });
  const channels = createChannels(requests, outbox, events, () => member?.id, failed, typing.forget);
  const login = createLogin(options.token, requests, (me) => (member = me), failed, (reason) => link.broken(reason));

  const emit = (type: string, data?: unknown, channel?: string) =>
    outbox.tryNow(JSON.stringify({ type, channel, data }));

  const ping = async () => {
    const sentAt = performance.now();
    await requests.ask(CONNECTION, { type: "ping" });
    return (latency = performance.now() - sentAt);
  };

  /** Whether it is answered is watched by the link. */
  const probe = () => void ping().catch(() => {});

  const welcomed = (welcome: Welcome) => {
    if (!loggingIn) member = welcome.member;
    outbox.learn(welcome.limits);
    login.expires(welcome.expiresAt, link.isSse()); // where the token was in the address
    const measure = () => {
      probe();
      pingTimer = setTimeout(measure, welcome.heartbeatMs ?? HEARTBEAT_MS);
    };
    if (!link.isSse()) pingTimer = setTimeout(measure, FIRST_PING_MS); // there it would be a POST each time
  };

  const received = (event: Incoming) => {
    const { type, channel, id, data } = event;
    switch (type) {
      case "reply":
        return requests.reply(id, data);
      case "error": {
        const error = new RealtimeError(data.code, data.message, channel);
        if (requests.error(id, error)) return;
        // Without an id and a channel, it is the rate of this connection that was exceeded.
        if (data.code === "rate_limited" && !channel) outbox.slowDown();
        return failed(error);
      }
      case "ping":
        // The server of an event stream expects no answer: it sees the connection itself.
        if (!link.isSse()) outbox.now('{"type":"pong"}');
        return;
      case "welcome":
        welcomed(data);
      // and then, as all else:
      default:
        channels.received(event);
    }
  };

  const link = createLink(url, options, {
    mayRetry: login.mayRetry,
    opened(send, token) {
      outbox.open(send);
      loggingIn = !!token;
      if (token) login.send(token, true);
      channels.opened();
      requests.opened();
    },
    event: received,
    lost() {
      clearTimeout(pingTimer);
      outbox.close();
      typing.lost();
      login.lost();
      channels.lost();
      requests.lost();
    },
    ping: probe,
    state: events.emit,
    error: failed,
  });

  const ask = (life: Life, envelope: Envelope) => {
    const answer = requests.ask(life, envelope);
    if (link.state() === "closed") requests.closed();
    link.start();
    return answer;
  };

  const add = (...args: Parameters<typeof channels.add>): Off => {
    const off = channels.add(...args);
    link.start();
    return off;
  };

  const publish: Realtime["publish"] = (channel, data, { key = crypto.getRandomValues(new Uint32Array(4)).join("-") } = {}) => {
    typing.set(channel, false);
    return ask(ANSWER, { type: "publish", channel, data: data ?? null, key });
  };

  if (options.autoConnect ?? (globalThis.location || options.WebSocket)) link.start();

  return {
    get state() {
      return link.state();
    },
    get transport() {
      return link.state() === "open" ? (link.isSse() ? "sse" : "websocket") : undefined;
    },
    get member() {
      return member;
    },
    get latency() {
      return latency;
    },
    subscribe: (channel, message, options) => add(channel, { ...options, message }),
    trackPresence: (channel, presence, options) => add(channel, { ...options, presence }),
    trackTyping: (channel, typing, options) => add(channel, { ...options, typing }),
    publish,
    send: publish,
    emit,
    typing: typing.set,
    presence: (channel) => ask(CALL, { type: "presence", channel }),
    history: (channel, data) => ask(CALL, { type: "history", channel, data }),
    ping,
    on: events.on,
    onState: (handler: (event: StateEvent) => void) => events.on("state", handler),
    connect: link.start,
    reconnect() {
      channels.forgive();
      link.restart();
    },
    close() {
      link.close(1000, "closed here");
      requests.closed();
    },
  };
}
