import { Icon } from "./Icon";
import type { Drawer } from "./useDrawer";

interface RoomHeadProps {
  /** Without one: no room is in view. */
  name?: string;
  memberCount?: number;
  drawer: Drawer;
  unreadElsewhere: number;
  onDrawer(drawer: Drawer): void;
  onLeave?(): void;
}

export function RoomHead({ name, memberCount = 0, drawer, unreadElsewhere, onDrawer, onLeave }: RoomHeadProps) {
  return (
    <header className="room-head">
      <button
        id="open-rooms"
        className="icon-button drawer-only"
        type="button"
        aria-controls="rooms-panel"
        aria-expanded={drawer === "rooms"}
        aria-label={unreadElsewhere ? `Rooms, ${unreadElsewhere} unread` : "Rooms"}
        onClick={() => onDrawer("rooms")}
      >
        <Icon name="menu" />
        {unreadElsewhere > 0 && <span className="badge">{unreadElsewhere}</span>}
      </button>
      <h1 id="room-title" className={name ? "room-title hashed" : "room-title"}>
        {name ?? "No room"}
      </h1>
      {name && (
        <>
          <button className="text-button" type="button" onClick={onLeave}>
            Leave
          </button>
          <button
            id="open-members"
            className="icon-button counted"
            type="button"
            aria-controls="members-panel"
            aria-expanded={drawer === "members"}
            aria-label={`Members: ${memberCount}`}
            onClick={() => onDrawer("members")}
          >
            <Icon name="people" />
            <span>{memberCount}</span>
          </button>
        </>
      )}
    </header>
  );
}
