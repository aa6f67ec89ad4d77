import { Banner } from "./Banner";
import { EmptyState } from "./EmptyState";
import { RoomHead } from "./RoomHead";
import type { Connection } from "./useConnection";
import type { Drawer } from "./useDrawer";

interface NoRoomProps {
  connection: Connection;
  drawer: Drawer;
  onDrawer(drawer: Drawer): void;
}

/** In place of a room, for who has left them all. */
export function NoRoom({ connection, drawer, onDrawer }: NoRoomProps) {
  return (
    <main className="room" aria-labelledby="room-title">
      <RoomHead drawer={drawer} unreadElsewhere={0} onDrawer={onDrawer} />
      <Banner connection={connection} />
      <div className="log-frame">
        <div className="log">
          <EmptyState title="Nowhere yet" text="Choose a room on the left, or make one." />
        </div>
      </div>
    </main>
  );
}
