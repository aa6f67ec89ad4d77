import { useCallback, useEffect, useState } from "react";
import type { Message } from "street-fast";
import { useChannel, useRealtime } from "street-fast/react";
import { onMissing } from "./useConnection";

export interface OpenRoom {
  name: string;
  members: number;
}

interface RoomList {
  rooms: OpenRoom[];
}

/** Every room on the server, whether or not I am in it. */
export function useRooms(): OpenRoom[] {
  const realtime = useRealtime();
  const [rooms, setRooms] = useState<OpenRoom[]>([]);
  const show = useCallback(({ data }: Message<RoomList>) => setRooms(data.rooms), []);
  useChannel<RoomList>("rooms", show);
  useEffect(
    () =>
      onMissing(realtime, "rooms", async () => {
        const { messages } = await realtime.history("rooms", { limit: 1 });
        messages.forEach((message) => show(message as Message<RoomList>));
      }),
    [realtime, show],
  );
  return rooms;
}
