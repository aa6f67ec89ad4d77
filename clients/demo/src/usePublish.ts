import { useCallback, useRef } from "react";
import type { Message, RealtimeError } from "street-fast";
import { useRealtime } from "street-fast/react";
import { forgetUnsent, type Said } from "./storage";

/** `published` is told once; `failed` is to be shown, and means that it is not tried again by itself. */
interface Outcome {
  published(message: Message): void;
  failed(problem: string, code: string): void;
}

const PROBLEMS: Record<string, string> = {
  forbidden: "That is not allowed.",
  queue_full: "Too much is waiting to be sent.",
  rate_limited: "Too many messages at once.",
  timeout: "The server does not answer.",
  unavailable: "The server cannot take it now.",
  unknown: "It may have arrived or not.",
};

/**
 * Publishes what was said, once, however often it is called. Without a connection it waits; where the connection has
 * ended for good nothing happens, and it is to be called again when there is a new one.
 */
export function usePublish(): (said: Said, outcome: Outcome) => void {
  const realtime = useRealtime();
  const underWay = useRef(new Set<string>());
  return useCallback(
    (said, { published, failed }) => {
      const { channel, text, nonce } = said;
      if (underWay.current.has(nonce) || realtime.state === "closed") return;
      underWay.current.add(nonce);
      const data = { text, nonce };
      void realtime
        .publish(channel, data, { key: nonce })
        .finally(() => underWay.current.delete(nonce))
        .then(
          ({ ts, position }) => {
            forgetUnsent(nonce);
            const from = realtime.member!.id;
            published({ type: "message", channel, data, ts, from, ...(position !== undefined && { position }) });
          },
          ({ code, message }: RealtimeError) => {
            if (code !== "closed") failed(PROBLEMS[code] ?? message, code);
          },
        );
    },
    [realtime],
  );
}
