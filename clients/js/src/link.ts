// The connection that comes back: one transport after another, until it is closed or told not to.
//
// It chooses the transport, tries again with growing random delays, and notices a connection that is dead. Times are
// compared, not counted by timers alone: those stand still in a laptop that sleeps and are slow in a background tab, so
// the comparison is also made when the page becomes visible or the network comes back. A connection counts as open from
// the welcome on, since a proxy may take the handshake and then swallow everything.

import { createBackoff } from "./backoff.js";
import { RealtimeError } from "./errors.js";
import { tokenFailed } from "./login.js";
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
  /** Asked before each attempt. */
  token(): string | null | undefined | Promise<string | null | undefined>;
  /** Whether a connection that was refused for its token may be tried once more. */
  mayRetryToken(): boolean;
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
  const backoff = createBackoff(options.backoff);
  let state: ConnectionState = "connecting";
  let transport: Transport | undefined;
  let isSse = false;
  /** Grows with every attempt and end of one, so that what belongs to an older one is known as such. */
  let turn = 0;
  let running = false;
  /** Between two attempts. */
  let resting = false;
  let wasOpen = false;
  /** WebSockets that ended before a welcome, in a row. */
  let failures = 0;
  let openedAt = 0;
  let lastSeen = 0;
  let patienceMs = 0;
  /** Of the attempt, or of the rest. */
  let timer: ReturnType<typeof setTimeout> | undefined;
  let lifeTimer: ReturnType<typeof setTimeout> | undefined;
  let probeTimer: ReturnType<typeof setTimeout> | undefined;

  const setState = (next: ConnectionState, why?: Omit<StateEvent, "type" | "state">) => {
    if (next === state && !why?.retryAt) return;
    state = next;
    hooks.state({ type: "state", state, ...why });
  };

  const begin = () => {
    running = true;
    listen(onSign, true);
    void attempt();
  };

  const drop = () => {
    turn += 1;
    clearTimeout(timer);
    clearTimeout(lifeTimer);
    clearTimeout(probeTimer);
    transport?.close();
    transport = undefined;
    hooks.lost();
  };

  const stop = () => {
    drop();
    running = false;
    listen(onSign, false);
  };

  const close = (code: number, reason: string) => {
    stop();
    setState("closed", { code, reason });
  };

  const attempt = async () => {
    const mine = ++turn;
    resting = false;
    setState(wasOpen ? "reconnecting" : "connecting");
    limit();
    try {
      let token = hooks.token();
      if (typeof token === "object") token = await token; // waits only where it must
      if (mine !== turn) return;
      open(token || undefined);
    } catch (error) {
      if (mine !== turn) return;
      hooks.error(tokenFailed(error));
      lost(LOST, "no token");
    }
  };

  const limit = () => {
    clearTimeout(timer);
    timer = setTimeout(() => lost(LOST, `no connection within ${CONNECT_MS / 1000} s`), CONNECT_MS);
  };

  const open = (token: string | undefined) => {
    const { transports = ["websocket", "sse"] } = options;
    const { WebSocket = globalThis.WebSocket, EventSource = globalThis.EventSource, fetch = globalThis.fetch } = options;
    const websocketUrl = address(url, "ws");
    const sse = transports.includes("sse") && EventSource && fetch;
    const websocket = transports.includes("websocket") && WebSocket;
    // A server that renders this page has nothing to connect with, or to. It stays as it is.
    if (!websocketUrl || !(sse || websocket)) return stop();
    limit();
    const mine = turn;
    isSse = !!sse && !(websocket && failures < FAILURES_BEFORE_SSE);
    const events = {
      opened: () => hooks.opened((text) => transport?.send(text), isSse ? undefined : token),
      event: received,
      closed: (code: number, reason: string) => void (mine === turn && lost(code, reason)),
    };
    try {
      transport = isSse
        ? openSse(url, token, EventSource, fetch, events)
        : openWebSocket(websocketUrl, WebSocket, events);
    } catch (error) {
      lost(LOST, String(error));
    }
  };

  const received = (event: Incoming) => {
    lastSeen = Date.now();
    hooks.event(event);
    if (event.type !== "welcome") return;
    clearTimeout(timer);
    wasOpen = true;
    openedAt = lastSeen;
    patienceMs = (event.data.heartbeatMs ?? HEARTBEAT_MS) + GRACE_MS;
    watch();
    setState("open");
  };

  const watch = () => {
    clearTimeout(lifeTimer);
    const silentMs = Date.now() - lastSeen;
    if (silentMs < patienceMs) lifeTimer = setTimeout(watch, patienceMs - silentMs);
    else lost(LOST, `nothing came for ${Math.round(silentMs / 1000)} s`);
  };

  /** Something happened to the page or the network. */
  const onSign = ({ type }: { type: string }) => {
    if (type === "visibilitychange" && document.visibilityState !== "visible") return;
    if (resting && type !== "offline") void attempt();
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
      if (seen === lastSeen) lost(LOST, `no answer to a ping within ${PROBE_MS / 1000} s`);
    }, PROBE_MS);
  };

  const lost = (code: number, reason: string) => {
    const isOpen = state === "open";
    const hadTransport = transport !== undefined; // else it was the token that was missing
    drop();
    if (isSse) failures = FAILURES_BEFORE_SSE - 1; // the next attempt is a WebSocket again
    else if (hadTransport) failures = isOpen || code !== LOST ? 0 : failures + 1;
    if (FINAL.includes(code) && !(code === UNAUTHORIZED && hooks.mayRetryToken())) {
      close(code, reason);
      const name = code === UNAUTHORIZED ? "unauthorized" : "closed";
      return hooks.error(new RealtimeError(name, `the server closed the connection for good (${code}: ${reason})`));
    }
    if (isOpen && Date.now() - openedAt >= HEALTHY_MS) backoff.reset();
    const delay = backoff.next(reason);
    resting = true;
    timer = setTimeout(() => void attempt(), delay);
    setState(wasOpen ? "reconnecting" : "connecting", { code, reason, retryAt: Date.now() + delay });
  };

  return {
    start(): void {
      if (!running && state !== "closed") begin();
    },

    close,

    restart(): void {
      stop();
      backoff.reset();
      begin();
    },

    state: () => state,
    isSse: () => isSse,
  };
}

function listen(onSign: (sign: { type: string }) => void, on: boolean): void {
  const change = on ? "addEventListener" : "removeEventListener";
  for (const sign of ["online", "offline", "pageshow"]) globalThis[change]?.(sign, onSign);
  if (typeof document === "object") document[change]("visibilitychange", onSign);
}
