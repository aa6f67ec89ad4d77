import { useMemo } from "react";
import { RealtimeProvider } from "street-fast/react";
import { Rooms } from "./Rooms";
import { secret } from "./storage";

/** The connection of one person, and everything that lives by it. */
export function Chat({ name, onSignOut }: { name: string; onSignOut(): void }) {
  const url = useMemo(() => `/realtime?${new URLSearchParams({ user: name, key: secret() })}`, [name]);
  return (
    <RealtimeProvider url={url} options={{ backoff: { firstMs: 400, longestMs: 5_000 }, queueSize: 1_000 }}>
      <Rooms name={name} onSignOut={onSignOut} />
    </RealtimeProvider>
  );
}
