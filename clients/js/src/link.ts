// The connection that comes back: one transport after another, until it is closed or told not to.
//
// It chooses the transport, tries again with growing random delays, and notices a connection that is dead. Times are
// compared, not counted by timers alone: those stand still in a laptop that sleeps and are slow in a background tab, so
// the comparison is also made when the page becomes visible or the network comes back. A connection counts as open from
// the welcome on, since a proxy may take the handshake and then swallow everything.

import { delay } from "./backoff.js";
import { RealtimeError } from "./errors.js";
import { withToken } from "./login.js";
import { openSse } from "./sse.js";
import type { Incoming, Transport } from "./transport.js";
import type { ConnectionState, RealtimeOptions, StateEvent } from "./types.js";
import { address } from "./url.js";
import { openWebSocket } from "./websocket.js";

const CONNECT_MS = 10_000;
/** Of a server that has none: then it is our own pings that are answered. */
export const HEARTBEAT_MS = 25_000;
const GRACE_MS = 10_000; // beyond the heartbeat of the server
const PROBE_MS = 5_000;
const HEALTHY_MS = 10_000;
const FAILURES_BEFORE_SSE = 2;

const LOST = 1006;
const UNAUTHORIZED = 4001;
const FINAL = [1000, 1002, 1003, 1007, 1008, 1009, 1010, 1015, UNAUTHORIZED, 4029];

export interface LinkHooks {
  /** Whether a connection that was refused for its token may be tried once more. */
  mayRetry(): boolean;
  /** It can send; the welcome may be still to come. `token` is to be sent; an event stream had it in the address. */
  opened(send: (text: string) => void, token: string | undefined): void;
  event(event: Incoming): void;
  /** What was sent may be lost. Also called where nothing was sent. */
  lost(): void;
  /** Send something that is answered. */
  ping(): void;
  state(event: StateEvent): void;
  error(error: RealtimeError): void;
}

export function createLink(url: string, options: RealtimeOptions, hooks: LinkHooks) {
  let state: ConnectionState = "connecting";
  let transport: Transport | undefined;
  let isSse = false;
  /** Grows with every attempt and end of one, so that what belongs to an older one is known as such. */
  let turn = 0;
  let running = false;
  /** Since a connection that lived for a while; not reset at an opening, or a server that accepts and dies is hammered. */
  let attempts = 0;
  /** Between two attempts. */
  let resting = false;
  let wasOpen = false;
  /** WebSockets that ended before a welcome, in a row. */
  let failures = 0;
  let openedAt = 0;
  let lastSeen = 0;
  let patienceMs = 0;
  /** Of the attempt, the connection, or the rest. */
  let timer: ReturnType<typeof setTimeout> | undefined;
  let probeTimer: ReturnType<typeof setTimeout> | undefined;

  const setState = (next: ConnectionState, why?: Omit<StateEvent, "type" | "state">) => {
    if (next === state && !why?.retryAt) return;
    state = next;
    hooks.state({ type: "state", state, ...why });
  };

  const away = (why?: Omit<StateEvent, "type" | "state">) => setState(wasOpen ? "reconnecting" : "connecting", why);

  const wait = (ms: number, then: () => void) => {
    clearTimeout(timer);
    timer = setTimeout(then, ms);
  };

  const begin = () => {
    running = true;
    listen("addEventListener");
    attempt();
  };

  const drop = () => {
    turn += 1;
    clearTimeout(timer);
    clearTimeout(probeTimer);
    transport?.close();
    transport = undefined;
    hooks.lost();
  };

  const stop = () => {
    drop();
    running = false;
    listen("removeEventListener");
  };

  const close = (code: number, reason: string) => {
    stop();
    setState("closed", { code, reason });
  };

  const attempt = () => {
    const mine = ++turn;
    resting = false;
    away();
    limit();
    const failed = (error: RealtimeError) => {
      broken("no token");
      hooks.error(error);
    };
    void withToken(options.token, () => mine === turn, open, failed);
  };

  const limit = () => wait(CONNECT_MS, () => broken(`no connection within ${CONNECT_MS / 1000} s`));

  const open = (token: string | undefined) => {
    const { transports = ["websocket", "sse"] } = options;
    const { WebSocket = globalThis.WebSocket, EventSource = globalThis.EventSource, fetch = globalThis.fetch } = options;
    const sse = transports.includes("sse") && EventSource && fetch;
    const websocket = transports.includes("websocket") && WebSocket;
    const mine = turn;
    const events = {
      opened: () => hooks.opened((text) => transport?.send(text), isSse ? undefined : token),
      event: received,
      closed: (code: number, reason: string) => void (mine === turn && lost(code, reason)),
    };
    try {
      const websocketUrl = address(url, "ws");
      // A server that renders this page has nothing to connect with, or to. It stays as it is.
      if (!websocketUrl || !(sse || websocket)) return stop();
      limit();
      isSse = !!sse && !(websocket && failures < FAILURES_BEFORE_SSE);
      transport = isSse
        ? openSse(url, token, EventSource, fetch, events)
        : openWebSocket(websocketUrl, WebSocket, events);
    } catch (error) {
      broken(String(error));
    }
  };

  const received = (event: Incoming) => {
    const mine = turn;
    lastSeen = Date.now();
    hooks.event(event);
    if (event.type !== "welcome" || mine !== turn) return;
    wasOpen = true;
    openedAt = lastSeen;
    patienceMs = (event.data.heartbeatMs ?? HEARTBEAT_MS) + GRACE_MS;
    watch();
    setState("open");
  };

  const watch = () => {
    const silentMs = Date.now() - lastSeen;
    if (silentMs < patienceMs) wait(patienceMs - silentMs, watch);
    else broken(`nothing came for ${Math.round(silentMs / 1000)} s`);
  };

  /** As seen by the window on the way down, since the last one is the document's. */
  const listen = (change: "addEventListener" | "removeEventListener") =>
    ["online", "offline", "pageshow", "visibilitychange"].forEach((sign) => globalThis[change]?.(sign, onSign, true));

  /** Something happened to the page or the network. */
  const onSign = ({ type }: { type: string }) => {
    if (type === "visibilitychange" && document.visibilityState !== "visible") return;
    if (resting && type !== "offline") attempt();
    else if (state === "open") {
      watch();
      if (transport) probe();
    }
  };

  const probe = () => {
    const seen = lastSeen;
    hooks.ping();
    clearTimeout(probeTimer);
    probeTimer = setTimeout(() => {
      if (seen === lastSeen) broken(`no answer within ${PROBE_MS / 1000} s`);
    }, PROBE_MS);
  };

  const broken = (reason: string) => lost(LOST, reason);

  const lost = (code: number, reason: string) => {
    const isOpen = state === "open";
    const hadTransport = transport !== undefined; // else it was the token that was missing
    drop();
    if (isSse) failures = FAILURES_BEFORE_SSE - 1; // the next attempt is a WebSocket again
    else if (hadTransport) failures = isOpen || code !== LOST ? 0 : failures + 1;
    if (FINAL.includes(code) && !(code === UNAUTHORIZED && hooks.mayRetry())) {
      close(code, reason);
      const name = code === UNAUTHORIZED ? "unauthorized" : "closed";
      return hooks.error(new RealtimeError(name, `the server closed the connection for good (${code}: ${reason})`));
    }
    if (isOpen && Date.now() - openedAt >= HEALTHY_MS) attempts = 0;
    const ms = delay(attempts++, reason, options.backoff);
    resting = true;
    wait(ms, attempt);
    away({ code, reason, retryAt: Date.now() + ms });
  };

  return {
    start(): void {
      if (!running && state !== "closed") begin();
    },

    close,

    restart(): void {
      stop();
      attempts = 0;
      begin();
    },

    state: () => state,
    isSse: () => isSse,
  };
}
