// The connection that comes back: one transport after another, until it is closed or told not to.
//
// Server-Sent Events are for where WebSockets do not get through: two in a row that got no welcome, or five where the last
// connection was a WebSocket, because then it is rather the server that is away. A page on an event stream tries a
// WebSocket beside it now and then, and changes over when that one gets its welcome.
//
// Attempts come after growing random delays, and a connection that is dead is noticed. Times are compared, not counted by
// timers alone: those stand still in a laptop that sleeps and are slow in a background tab, so the comparison is also made
// when the page becomes visible or the network comes back. A connection counts as open from the welcome on, since a proxy
// may take the handshake and then swallow everything.

import { delay } from "./backoff.js";
import {
  CONNECT_MS,
  FAILURES_BEFORE_SSE,
  FAILURES_OF_A_WAY_THAT_WORKED,
  GRACE_MS,
  HEALTHY_MS,
  HEARTBEAT_MS,
  LOOK_MS,
  LOST,
  PROBE_MS,
  UNAUTHORIZED,
} from "./constants.js";
import { RealtimeError } from "./errors.js";
import { withToken } from "./login.js";
import { openSse } from "./sse.js";
import type { Incoming, Transport } from "./transport.js";
import type { ConnectionState, RealtimeOptions, StateEvent } from "./types.js";
import { address } from "./url.js";
import { openWebSocket } from "./websocket.js";

/** Code and reason of what does not get through: lost, or closed by a proxy that says nothing. */
const SILENT = /^100(0$|[56])/;
const FINAL = /^(100[023789]|101[05]|4001|4029)$/;

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
  /** The last that was open was a WebSocket. */
  let wasWebSocket = false;
  /** WebSockets that ended before a welcome, in a row. */
  let failures = 0;
  /** A WebSocket beside the event stream, to see whether it gets through. */
  let scout: Transport | undefined;
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
    scout?.close();
    transport?.close();
    scout = transport = undefined;
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
    limit(rest);
    const failed = (error: RealtimeError) => {
      rest(LOST, "no token");
      hooks.error(error);
    };
    void withToken(options.token, () => mine === turn, open, failed);
  };

  const limit = (end: typeof lost) => wait(CONNECT_MS, () => end(LOST, "no connection in time"));

  const open = (token: string | undefined) => {
    const { transports = ["websocket", "sse"] } = options;
    const { WebSocket = globalThis.WebSocket, EventSource = globalThis.EventSource, fetch = globalThis.fetch } = options;
    const sse = transports.includes("sse") && EventSource && fetch;
    const websocket = transports.includes("websocket") && WebSocket;
    const mine = turn;
    const openingAt = Date.now();
    let lookMs = LOOK_MS;
    try {
      const websocketUrl = address(url, "ws");
      // A server that renders this page has nothing to connect with, or to. It stays as it is.
      if (!websocketUrl || !(sse || websocket)) return stop();
      limit(lost);
      isSse = !!sse && !(websocket && failures < (wasWebSocket ? FAILURES_OF_A_WAY_THAT_WORKED : FAILURES_BEFORE_SSE));
      const events = {
        opened: () => hooks.opened((text) => transport?.send(text), isSse ? undefined : token),
        event(event: Incoming) {
          received(event);
          if (!isSse || !websocket || mine !== turn || lastSeen - openingAt < lookMs) return;
          lookMs *= 2;
          scout?.close();
          scout = openWebSocket(websocketUrl, websocket, { opened() {}, event: changeOver, closed() {} });
        },
        closed: (code: number, reason: string) => void (mine === turn && lost(code, reason)),
      };
      transport = isSse
        ? openSse(url, token, EventSource, fetch, events)
        : openWebSocket(websocketUrl, WebSocket, events);
    } catch (error) {
      broken(String(error));
    }
  };

  /** The scout has got a welcome. Positions and keys see to it that nothing is lost or comes twice. */
  const changeOver = () => {
    drop();
    failures = 0;
    attempt();
  };

  const received = (event: Incoming) => {
    const mine = turn;
    lastSeen = Date.now();
    hooks.event(event);
    if (event.type !== "welcome" || mine !== turn) return;
    wasOpen = true;
    wasWebSocket = !isSse;
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
      if (!transport) return;
      const seen = lastSeen;
      hooks.ping();
      clearTimeout(probeTimer);
      probeTimer = setTimeout(() => {
        if (seen === lastSeen) broken("no answer to a ping");
      }, PROBE_MS);
    }
  };

  const broken = (reason: string) => lost(LOST, reason);

  const lost = (code: number, reason: string) => {
    const isOpen = state === "open";
    const gotThrough = isOpen || !SILENT.test(code + reason);
    // After an event stream the next attempt is a WebSocket again.
    failures = isSse ? (wasWebSocket ? 0 : FAILURES_BEFORE_SSE - 1) : gotThrough ? 0 : failures + 1;
    if (isOpen && Date.now() - openedAt >= HEALTHY_MS) attempts = 0;
    if (!gotThrough || !FINAL.test(`${code}`) || (code === UNAUTHORIZED && hooks.mayRetry())) return rest(code, reason);
    close(code, reason);
    const name = code === UNAUTHORIZED ? "unauthorized" : "closed";
    hooks.error(new RealtimeError(name, `the server closed the connection for good (${code}: ${reason})`));
  };

  const rest = (code: number, reason: string) => {
    drop();
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
    broken,

    restart(): void {
      stop();
      attempts = 0;
      begin();
    },

    state: () => state,
    isSse: () => isSse,
  };
}
