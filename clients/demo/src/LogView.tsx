import { Fragment, type ReactNode } from "react";
import { EmptyState } from "./EmptyState";
import type { Entry } from "./log";
import { MessageItem } from "./MessageItem";
import { useFollow } from "./useFollow";
import type { RoomState } from "./useRoom";

const GROUP_MS = 5 * 60_000;

/** What is said in a room, and what stands in its place when there is nothing. */
export function LogView({ name, room, isOpen }: { name: string; room: RoomState; isOpen: boolean }) {
  const { log, refused, incomplete } = room;
  const { entries } = log;
  const { frame, hasNews, toBottom, isBusy } = useFollow(entries);
  return (
    <div className="log-frame">
      <div
        ref={frame}
        className={isOpen ? "log" : "log unsent"}
        role="log"
        aria-label={`Messages in ${name}`}
        aria-live="polite"
        aria-relevant="additions"
        aria-busy={isBusy}
        tabIndex={0}
      >
        {incomplete && (
          <p className="note">
            What was said before could not be loaded.{" "}
            <button className="text-button" type="button" onClick={room.reload}>
              Try again
            </button>
          </p>
        )}
        {entries.map((entry, index) => (
          <Fragment key={entry.key}>
            {entry.key === log.firstUnread && <p className="new-line">New</p>}
            <EntryView entry={entry} previous={entries[index - 1]} room={room} />
          </Fragment>
        ))}
        {refused ? (
          <EmptyState title="No way in" text="The server does not let you into this room: there may be too many already." />
        ) : entries.length > 0 || incomplete ? null : log.known ? (
          <EmptyState title="Quiet in here" text="Be the first to say something." />
        ) : (
          <EmptyState title="One moment" text="Opening the room." />
        )}
      </div>
      {hasNews && (
        <button className="jump" type="button" onClick={toBottom}>
          New messages ↓
        </button>
      )}
    </div>
  );
}

interface EntryViewProps {
  entry: Entry;
  previous: Entry | undefined;
  room: RoomState;
}

function EntryView({ entry, previous, room }: EntryViewProps): ReactNode {
  const { me } = room.log;
  switch (entry.kind) {
    case "note":
      return <p className="note">{entry.text}</p>;
    case "gap":
      return (
        <p className="gap" role="note">
          Some messages may be missing here: the server does not have them any more.
        </p>
      );
    case "message":
    case "waiting": {
      // Of one shape, so that a message that is published stays the same element.
      const isWaiting = entry.kind === "waiting";
      const { text, ts } = isWaiting ? entry.said : entry;
      const from = isWaiting ? me : entry.from;
      return (
        <>
          <MessageItem
            from={from ?? ""}
            text={text}
            ts={ts}
            isOwn={from === me}
            isContinued={continues(entry, previous, me)}
            isWaiting={isWaiting}
          />
          {isWaiting && entry.problem && (
            <p className="not-sent" role="alert">
              Not sent. {entry.problem}
              <button className="text-button" type="button" onClick={() => room.tryAgain(entry.said)}>
                Try again
              </button>
              <button className="text-button" type="button" onClick={() => room.discard(entry.said)}>
                Drop it
              </button>
            </p>
          )}
        </>
      );
    }
  }
}

/** Whether an entry is of the person who wrote the one above it, a moment ago. */
function continues(entry: Entry, previous: Entry | undefined, me: string | undefined): boolean {
  const [now, before] = [entry, previous].map((entry) =>
    entry?.kind === "message" ? { from: entry.from, ts: entry.ts }
    : entry?.kind === "waiting" ? { from: me, ts: entry.said.ts }
    : undefined,
  );
  return now !== undefined && before !== undefined && now.from === before.from && now.ts - before.ts < GROUP_MS;
}
