import { useEffect, useEffectEvent, useState } from "react";

/** On narrow screens the rooms and the members are drawers. */
export type Drawer = "rooms" | "members" | undefined;

/** Which drawer is open. The focus goes into it, and back to the button that opened it. */
export function useDrawer(): [Drawer, (drawer: Drawer) => void] {
  const [drawer, setDrawer] = useState<Drawer>();
  const open = (next: Drawer) => {
    if (!next && drawer) document.getElementById(`open-${drawer}`)?.focus();
    setDrawer(next);
  };
  useEffect(() => {
    if (drawer) document.querySelector<HTMLElement>(`#${drawer}-panel [data-close-drawer]`)?.focus();
  }, [drawer]);
  const onKey = useEffectEvent((event: KeyboardEvent) => {
    if (event.key === "Escape") open(undefined);
  });
  useEffect(() => {
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  return [drawer, open];
}
