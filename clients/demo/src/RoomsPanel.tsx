import { type FormEvent, type ReactNode, useRef, useState } from "react";
import { Icon } from "./Icon";
import { roomName, roomProblem } from "./names";
import type { OpenRoom } from "./useRooms";

interface RoomsPanelProps {
  joined: string[];
  current: string | undefined;
  /** All of the server. */
  openRooms: OpenRoom[];
  /** Counts by room. */
  unread: Record<string, number>;
  onEnter(room: string): void;
  onClose(): void;
  /** The foot. */
  children: ReactNode;
}

export function RoomsPanel({ joined, current, openRooms, unread, onEnter, onClose, children }: RoomsPanelProps) {
  const others = openRooms.filter(({ name }) => !joined.includes(name));
  return (
    <aside id="rooms-panel" className="panel rooms-panel" aria-label="Rooms">
      <div className="panel-head">
        <Icon name="street" className="logo" />
        <span className="brand">street_fast</span>
        <button
          className="icon-button drawer-only"
          type="button"
          data-close-drawer
          aria-label="Close the room list"
          onClick={onClose}
        >
          <Icon name="close" />
        </button>
      </div>
      <nav className="panel-body" aria-label="Rooms">
        <h2 id="your-rooms-title">Your rooms</h2>
        <ul className="room-list" aria-labelledby="your-rooms-title">
          {joined.map((room) => (
            <RoomItem key={room} name={room} isCurrent={room === current} unread={unread[room]} onEnter={onEnter} />
          ))}
        </ul>
        {others.length > 0 && (
          <div className="more-rooms">
            <h2 id="more-rooms-title">Open to join</h2>
            <ul className="room-list" aria-labelledby="more-rooms-title">
              {others.map(({ name, members }) => (
                <RoomItem key={name} name={name} members={members} onEnter={onEnter} />
              ))}
            </ul>
          </div>
        )}
        <NewRoom onEnter={onEnter} />
      </nav>
      {children}
    </aside>
  );
}

interface RoomItemProps {
  name: string;
  isCurrent?: boolean;
  unread?: number | undefined;
  members?: number;
  onEnter(room: string): void;
}

function RoomItem({ name, isCurrent = false, unread = 0, members = 0, onEnter }: RoomItemProps) {
  return (
    <li>
      <button
        className={`room-button${unread ? " has-unread" : ""}`}
        type="button"
        aria-current={isCurrent ? "page" : undefined}
        onClick={() => onEnter(name)}
      >
        <span className="hash" aria-hidden="true">
          #
        </span>
        <span className="room-name">{name}</span>
        {unread > 0 && (
          <span className="badge">
            {unread}
            <span className="hidden-label"> unread</span>
          </span>
        )}
        {members > 0 && (
          <span className="here">
            {members}
            <span className="hidden-label"> here</span>
          </span>
        )}
      </button>
    </li>
  );
}

function NewRoom({ onEnter }: { onEnter(room: string): void }) {
  const [problem, setProblem] = useState("");
  const input = useRef<HTMLInputElement>(null);

  function submit(event: FormEvent) {
    event.preventDefault();
    const name = roomName(input.current!.value);
    const problem = roomProblem(name);
    setProblem(problem);
    if (problem) return input.current!.focus();
    input.current!.value = "";
    onEnter(name);
  }

  return (
    <form className="new-room" noValidate onSubmit={submit}>
      <label className="hidden-label" htmlFor="new-room">
        Name of a new room
      </label>
      <input
        id="new-room"
        ref={input}
        placeholder="New room"
        maxLength={32}
        autoComplete="off"
        autoCapitalize="none"
        spellCheck={false}
        enterKeyHint="go"
        aria-describedby="new-room-error"
      />
      <button className="icon-button" type="submit" aria-label="Make the room">
        <Icon name="plus" />
      </button>
      <p id="new-room-error" className="field-error" role="alert">
        {problem}
      </p>
    </form>
  );
}
