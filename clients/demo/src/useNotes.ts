import { useCallback, useEffect, useRef, useState } from "react";
import type { RealtimeError } from "street-fast";
import { useChannel, useRealtime } from "street-fast/react";
import { readable } from "./log";
import { nameOf } from "./names";
import { forgetUnsent, keepUnsent, random, type Said, unsent } from "./storage";
import { useMe } from "./useConnection";
import { usePublish } from "./usePublish";

const SHORT_MS = 4_000;

export interface Toast {
  key: string;
  /** `note`: somebody wrote to me; it stays until I put it away. `mine`: what became of a note that I wrote. */
  kind: "note" | "mine" | "trouble";
  title: string;
  text: string;
  /** The id of who wrote it: to answer. */
  from?: string;
  /** It has failed, and may be tried again. */
  failed?: Said;
}

export interface Notes {
  toasts: Toast[];
  send(memberId: string, text: string): void;
  tryAgain(said: Said): void;
  dismiss(toast: Toast): void;
}

/** Private notes, and other things that are told beside the rooms. */
export function useNotes(): Notes {
  const realtime = useRealtime();
  const me = useMe();
  const publish = usePublish();
  const [toasts, setToasts] = useState<Toast[]>([]);
  /** Notes that came: a server that was started anew may bring one again. */
  const seen = useRef(new Set<string>());

  const show = useCallback((toast: Toast) => {
    setToasts((shown) => {
      const index = shown.findIndex(({ key }) => key === toast.key);
      return index < 0 ? [...shown, toast] : shown.with(index, toast);
    });
  }, []);
  const hide = useCallback((key: string) => setToasts((shown) => shown.filter((toast) => toast.key !== key)), []);
  const showBriefly = useCallback(
    (toast: Toast) => {
      show(toast);
      setTimeout(() => hide(toast.key), SHORT_MS);
    },
    [show, hide],
  );

  useChannel(me ? `user:${me}` : null, (message) => {
    const note = readable(message);
    if (!note || seen.current.has(note.key)) return;
    seen.current.add(note.key);
    show({ key: note.key, kind: "note", title: nameOf(note.from), text: note.text, from: note.from });
  });

  useEffect(
    () =>
      realtime.on("error", ({ code, channel, message }: RealtimeError) => {
        // That the connection has ended stands in the banner, and a room says itself that it cannot be had.
        if (code === "closed" || code === "unauthorized" || channel?.startsWith("room:")) return;
        showBriefly({ key: random(), kind: "trouble", title: "The server refused something", text: message });
      }),
    [realtime, showBriefly],
  );

  const attempt = useCallback(
    (said: Said) => {
      const name = nameOf(said.channel.slice("user:".length));
      const toast = (title: string): Toast => ({ key: said.nonce, kind: "mine", title, text: said.text });
      show(toast(`Sending to ${name} …`));
      publish(said, {
        published: () => showBriefly(toast(`Sent to ${name}`)),
        failed(problem, code) {
          const why = code === "forbidden" ? `${name} is not here.` : problem;
          show({ ...toast(`Not sent. ${why}`), kind: "trouble", failed: said });
        },
      });
    },
    [publish, show, showBriefly],
  );
  useEffect(() => {
    const mine = () => unsent().filter((said) => said.channel.startsWith("user:"));
    mine().forEach(attempt);
    return realtime.onState(({ state }) => state === "open" && mine().forEach(attempt));
  }, [realtime, attempt]);

  return {
    toasts,
    send(memberId, text) {
      const said = { channel: `user:${memberId}`, text, nonce: random(), ts: Date.now() };
      keepUnsent(said);
      attempt(said);
    },
    tryAgain: attempt,
    dismiss(toast) {
      if (toast.failed) forgetUnsent(toast.failed.nonce);
      hide(toast.key);
    },
  };
}
