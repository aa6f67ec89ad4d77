import type { PresenceState } from "street-fast";
import { Avatar } from "./Avatar";
import { Icon } from "./Icon";
import { nameOf } from "./names";
import { useMe } from "./useConnection";

interface MembersPanelProps {
  presence: PresenceState;
  typists: string[];
  onClose(): void;
  onWrite(memberId: string): void;
}

export function MembersPanel({ presence, typists, onClose, onWrite }: MembersPanelProps) {
  const me = useMe();
  const { memberCount } = presence;
  const ids = presence.members
    .map(({ memberId }) => memberId)
    .sort((a, b) => Number(b === me) - Number(a === me) || nameOf(a).localeCompare(nameOf(b)));
  return (
    <aside id="members-panel" className="panel members-panel" aria-label="Members">
      <div className="panel-head">
        <h2 id="members-title">{memberCount ? `Here now (${memberCount})` : "Here now"}</h2>
        <button
          className="icon-button drawer-only"
          type="button"
          data-close-drawer
          aria-label="Close the member list"
          onClick={onClose}
        >
          <Icon name="close" />
        </button>
      </div>
      <ul id="members" className="panel-body" aria-labelledby="members-title">
        {ids.map((id) => (
          <li key={id} className={typists.includes(id) ? "member is-typing" : "member"}>
            {id === me ? <Person id={id} isMe /> : <WritableMember id={id} onWrite={onWrite} />}
          </li>
        ))}
        {memberCount === 1 && (
          <li className="member-hint">Nobody else yet. Open this page in a second tab to see presence work.</li>
        )}
      </ul>
    </aside>
  );
}

function Person({ id, isMe = false }: { id: string; isMe?: boolean }) {
  return (
    <>
      <Avatar id={id} />
      <span className="member-name">{nameOf(id)}</span>
      {isMe && <span className="tag">you</span>}
    </>
  );
}

function WritableMember({ id, onWrite }: { id: string; onWrite(memberId: string): void }) {
  return (
    <button
      className="member-button"
      type="button"
      title="Send a private note"
      aria-label={`${nameOf(id)}: send a private note`}
      onClick={() => onWrite(id)}
    >
      <Person id={id} />
      <Icon name="note" />
    </button>
  );
}
