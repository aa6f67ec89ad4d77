import { useEffect, useEffectEvent, useState } from "react";
import { roomInAddress } from "./names";
import { keepRooms, lastRooms } from "./storage";

/** The rooms that I am in and the one in view, which is in the address; both outlive a reload. */
export function useJoined() {
  const [{ joined, current }, set] = useState<{ joined: string[]; current: string | undefined }>(() => {
    const wanted = roomInAddress();
    const joined = [...new Set([...lastRooms(), wanted].filter(Boolean))];
    return { joined, current: wanted || joined[0] };
  });

  const enter = (room: string) => set({ joined: joined.includes(room) ? joined : [...joined, room], current: room });
  const leave = (room: string) => {
    const others = joined.filter((other) => other !== room);
    set({ joined: others, current: current === room ? others[0] : current });
  };

  useEffect(() => {
    keepRooms(joined);
    history.replaceState(null, "", current ? `#${encodeURIComponent(current)}` : location.pathname);
  }, [joined, current]);

  const onAddress = useEffectEvent(() => {
    const room = roomInAddress();
    if (room) enter(room);
  });
  const onKey = useEffectEvent((event: KeyboardEvent) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!event.altKey || !step || !joined.length) return;
    event.preventDefault();
    const index = joined.indexOf(current ?? "");
    enter(joined[(index + step + joined.length) % joined.length]!);
  });
  useEffect(() => {
    addEventListener("hashchange", onAddress);
    addEventListener("keydown", onKey);
    return () => {
      removeEventListener("hashchange", onAddress);
      removeEventListener("keydown", onKey);
    };
  }, []);

  return { joined, current, enter, leave };
}
