import { useEffect, useRef } from "react";
import { useRealtime } from "street-fast/react";
import { nameOf } from "./names";

const RETURN_GRACE_MS = 15_000;

/** Calls `tell` with a sentence when somebody comes or goes. After a reconnect, people who come back too are no news. */
export function usePeople(channel: string, tell: (sentence: string) => void): void {
  const realtime = useRealtime();
  const newest = useRef(tell);
  newest.current = tell;
  useEffect(() => {
    let here = new Set<string>();
    let before = { here, until: 0 };
    const offs = [
      realtime.on("subscribed", (event) => {
        if (event.channel !== channel) return;
        before = { here, until: Date.now() + RETURN_GRACE_MS };
        here = new Set(event.data?.members?.map(({ memberId }) => memberId));
      }),
      realtime.on("presence", (event) => {
        if (event.channel !== channel) return;
        for (const { memberId } of event.data?.joined ?? []) {
          const isBack = before.here.has(memberId) && Date.now() < before.until;
          if (!here.has(memberId) && !isBack && memberId !== realtime.member?.id)
            newest.current(`${nameOf(memberId)} joined`);
          here.add(memberId);
        }
        for (const { memberId } of event.data?.left ?? []) {
          if (here.delete(memberId)) newest.current(`${nameOf(memberId)} left`);
        }
      }),
    ];
    return () => offs.forEach((off) => off());
  }, [realtime, channel]);
}
