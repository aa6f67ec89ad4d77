import { useEffect, useState } from "react";
import { usePresence, useTyping } from "street-fast/react";
import { Banner } from "./Banner";
import { Composer } from "./Composer";
import { LogView } from "./LogView";
import { MembersPanel } from "./MembersPanel";
import { RoomHead } from "./RoomHead";
import { TypingLine } from "./TypingLine";
import type { Connection } from "./useConnection";
import type { Drawer } from "./useDrawer";
import { useRoom } from "./useRoom";
import { useVisible } from "./useVisible";

interface RoomProps {
  name: string;
  isCurrent: boolean;
  connection: Connection;
  drawer: Drawer;
  unreadElsewhere: number;
  onUnread(room: string, count: number): void;
  onDrawer(drawer: Drawer): void;
  onLeave(): void;
  onWrite(memberId: string): void;
}

/** A room that I am in. It is heard also when it is not in view; then it shows nothing. */
export function Room(props: RoomProps) {
  const { name, isCurrent, connection, drawer, unreadElsewhere, onUnread, onDrawer, onLeave, onWrite } = props;
  const isVisible = useVisible();
  const room = useRoom(name, isCurrent && isVisible);
  const presence = usePresence(`room:${name}`);
  const { typing, setTyping } = useTyping(`room:${name}`);
  const [draft, setDraft] = useState("");
  const { unread } = room.log;
  useEffect(() => onUnread(name, unread), [onUnread, name, unread]);
  useEffect(() => () => onUnread(name, 0), [onUnread, name]);

  if (!isCurrent) return null;
  const isOpen = connection.phase === "open";
  const typists = isOpen ? typing : [];
  return (
    <>
      <main className="room" aria-labelledby="room-title">
        <RoomHead
          name={name}
          memberCount={presence.memberCount}
          drawer={drawer}
          unreadElsewhere={unreadElsewhere}
          onDrawer={onDrawer}
          onLeave={onLeave}
        />
        <Banner connection={connection} />
        <LogView name={name} room={room} isOpen={isOpen} />
        <TypingLine typists={typists} />
        <Composer room={name} draft={draft} onDraft={setDraft} onTyping={setTyping} onSay={room.say} />
      </main>
      <MembersPanel presence={presence} typists={typists} onClose={() => onDrawer(undefined)} onWrite={onWrite} />
    </>
  );
}
