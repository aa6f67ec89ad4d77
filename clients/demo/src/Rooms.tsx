import { useCallback, useEffect, useState } from "react";
import { Me } from "./Me";
import { NoRoom } from "./NoRoom";
import { NoteDialog } from "./NoteDialog";
import { Room } from "./Room";
import { RoomsPanel } from "./RoomsPanel";
import { Toasts } from "./Toasts";
import { forgetUnsent, unsent } from "./storage";
import { useConnection } from "./useConnection";
import { useDrawer } from "./useDrawer";
import { useJoined } from "./useJoined";
import { useNotes } from "./useNotes";
import { useRooms } from "./useRooms";

const PAGE_TITLE = "street_fast chat";

/** Drops what is not sent yet, if there is any and the user says so. False: they do not. */
function dropUnsent(channel?: string): boolean {
  const mine = unsent().filter((said) => !channel || said.channel === channel);
  const count = mine.length === 1 ? "A message is" : `${mine.length} messages are`;
  if (mine.length && !confirm(`${count} not sent yet and will be lost.`)) return false;
  for (const { nonce } of mine) forgetUnsent(nonce);
  return true;
}

/** The page behind the door: the rooms that I am in, one of them in view, and what lies around it. */
export function Rooms({ name, onSignOut }: { name: string; onSignOut(): void }) {
  const connection = useConnection();
  const openRooms = useRooms();
  const notes = useNotes();
  const { joined, current, enter, leave } = useJoined();
  const [drawer, openDrawer] = useDrawer();
  const [unread, setUnread] = useState<Record<string, number>>({});
  const [writingTo, setWritingTo] = useState<string>();

  const tellUnread = useCallback((room: string, count: number) => {
    setUnread((before) => ({ ...before, [room]: count }));
  }, []);
  const enterAndClose = (room: string) => {
    enter(room);
    openDrawer(undefined);
  };
  const write = (memberId: string) => {
    openDrawer(undefined);
    setWritingTo(memberId);
  };

  const unreadInAll = joined.reduce((sum, room) => sum + (unread[room] ?? 0), 0);
  useEffect(() => {
    document.title = `${unreadInAll ? `(${unreadInAll}) ` : ""}${current ? `#${current} · ` : ""}${PAGE_TITLE}`;
    return () => {
      document.title = PAGE_TITLE;
    };
  }, [unreadInAll, current]);

  return (
    <div id="app" data-drawer={drawer}>
      <RoomsPanel
        joined={joined}
        current={current}
        openRooms={openRooms}
        unread={unread}
        onEnter={enterAndClose}
        onClose={() => openDrawer(undefined)}
      >
        <Me name={name} connection={connection} onSignOut={() => dropUnsent() && onSignOut()} />
      </RoomsPanel>
      {joined.map((room) => (
        <Room
          key={room}
          name={room}
          isCurrent={room === current}
          connection={connection}
          drawer={drawer}
          unreadElsewhere={unreadInAll}
          onUnread={tellUnread}
          onDrawer={openDrawer}
          onLeave={() => dropUnsent(`room:${room}`) && leave(room)}
          onWrite={write}
        />
      ))}
      {!current && <NoRoom connection={connection} drawer={drawer} onDrawer={openDrawer} />}
      <div className="scrim" hidden={!drawer} onClick={() => openDrawer(undefined)} />
      <Toasts notes={notes} onAnswer={write} />
      {writingTo && (
        <NoteDialog
          to={writingTo}
          onSend={(text) => notes.send(writingTo, text)}
          onClose={() => setWritingTo(undefined)}
        />
      )}
    </div>
  );
}
