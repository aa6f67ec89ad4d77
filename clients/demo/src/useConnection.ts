import { useEffect, useState, useSyncExternalStore } from "react";
import type { Realtime, StateEvent } from "street-fast";
import { useRealtime } from "street-fast/react";

const PING_MS = 5_000;

export interface Connection {
  phase: "connecting" | "open" | "waiting" | "offline" | "ended";
  /** It was there before. */
  again: boolean;
  /** When it is tried again, while it waits. */
  retryAt: number;
  /** Why it has ended. */
  reason: string;
}

export function useConnection(): Connection {
  const realtime = useRealtime();
  const online = useSyncExternalStore(onNetwork, () => navigator.onLine);
  const [{ state, retryAt, reason, code }, setState] = useState<Partial<StateEvent>>({ state: realtime.state });
  useEffect(() => realtime.onState(setState), [realtime]);
  return {
    phase:
      state === "open" ? "open"
      : state === "closed" ? "ended"
      : !online ? "offline"
      : retryAt ? "waiting"
      : "connecting",
    again: state === "reconnecting",
    retryAt: retryAt ?? 0,
    reason: reason || `code ${code}`,
  };
}

function onNetwork(wake: () => void): () => void {
  for (const sign of ["online", "offline"]) addEventListener(sign, wake);
  return () => {
    for (const sign of ["online", "offline"]) removeEventListener(sign, wake);
  };
}

/** Milliseconds to the server and back; undefined while there is no connection. */
export function useLatency(phase: Connection["phase"]): number | undefined {
  const realtime = useRealtime();
  const [latency, setLatency] = useState<number>();
  useEffect(() => {
    if (phase !== "open") return;
    const measure = () => void realtime.ping().then(setLatency, () => {});
    measure();
    const timer = setInterval(() => document.hidden || measure(), PING_MS);
    return () => {
      clearInterval(timer);
      setLatency(undefined);
    };
  }, [realtime, phase]);
  return latency;
}

/** My id, from the first welcome on. */
export function useMe(): string | undefined {
  const realtime = useRealtime();
  return useSyncExternalStore(
    (wake) => realtime.on("welcome", wake),
    () => realtime.member?.id,
  );
}

/**
 * Calls `load` when the history of a channel has to be read: when the channel is opened, and where messages are missing.
 * A reconnect that brings what was missed needs none, unless the last reading failed. Returns what ends it.
 */
export function onMissing(realtime: Realtime, channel: string, load: () => Promise<unknown>): () => void {
  let isComplete = false;
  let isDue = false;
  const missing = () => {
    if (isDue) return; // a gap and the subscription that has found it are one reason
    isDue = true;
    queueMicrotask(() => {
      isDue = isComplete = false;
      load().then(
        () => (isComplete = true),
        () => {},
      );
    });
  };
  const offs = [
    realtime.on("gap", (event) => event.channel === channel && missing()),
    realtime.on("subscribed", (event) => {
      if (event.channel === channel && !(event.data?.recovered && isComplete)) missing();
    }),
  ];
  return () => offs.forEach((off) => off());
}
