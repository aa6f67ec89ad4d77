import { useCallback, useEffect, useReducer, useState } from "react";
import { useChannel, useRealtime } from "street-fast/react";
import { EMPTY, type Log, next } from "./log";
import { forgetUnsent, keepUnsent, random, type Said, unsent } from "./storage";
import { onMissing, useMe } from "./useConnection";
import { usePeople } from "./usePeople";
import { usePublish } from "./usePublish";

export interface RoomState {
  log: Log;
  /** The server does not let me in. */
  refused: boolean;
  /** The history could not be read. */
  incomplete: boolean;
  reload(): void;
  say(text: string): void;
  tryAgain(said: Said): void;
  discard(said: Said): void;
}

/** One room that I am in: what is said there, and saying something. `looks`: whether I look at it. */
export function useRoom(name: string, looks: boolean): RoomState {
  const channel = `room:${name}`;
  const realtime = useRealtime();
  const me = useMe();
  const publish = usePublish();
  const [log, tell] = useReducer(next, EMPTY);
  const [refused, setRefused] = useState(false);
  const [incomplete, setIncomplete] = useState(false);

  useEffect(() => tell({ type: "reader", me, looks }), [me, looks]);
  useChannel(channel, (message) => tell({ type: "message", message }), { onError: () => setRefused(true) });
  usePeople(channel, (text) => tell({ type: "note", text }));
  useEffect(() => realtime.on("gap", (event) => event.channel === channel && tell({ type: "gap" })), [realtime, channel]);

  const load = useCallback(async () => {
    setIncomplete(false);
    setRefused(false);
    try {
      const { messages } = await realtime.history(channel, { limit: 200 });
      tell({ type: "loaded", messages });
    } catch (error) {
      setIncomplete(true);
      throw error;
    }
  }, [realtime, channel]);
  useEffect(() => onMissing(realtime, channel, load), [realtime, channel, load]);

  const attempt = useCallback(
    (said: Said) => {
      const { nonce } = said;
      tell({ type: "problem", nonce, problem: "" });
      publish(said, {
        published: (message) => tell({ type: "message", message }),
        failed: (problem) => tell({ type: "problem", nonce, problem }),
      });
    },
    [publish],
  );
  useEffect(() => {
    const mine = () => unsent().filter((said) => said.channel === channel);
    for (const said of mine()) tell({ type: "said", said });
    mine().forEach(attempt);
    return realtime.onState(({ state }) => state === "open" && mine().forEach(attempt));
  }, [realtime, channel, attempt]);

  return {
    log,
    refused,
    incomplete,
    reload: () => void load().catch(() => {}), // it is shown
    say(text) {
      const said = { channel, text, nonce: random(), ts: Date.now() };
      keepUnsent(said);
      tell({ type: "said", said });
      attempt(said);
    },
    tryAgain: attempt,
    discard(said) {
      forgetUnsent(said.nonce);
      tell({ type: "discarded", nonce: said.nonce });
    },
  };
}
