import { Avatar } from "./Avatar";
import { Icon } from "./Icon";
import { switchTheme } from "./theme";
import { type Connection, useLatency, useMe } from "./useConnection";

const WORDS: Record<Connection["phase"], string> = {
  connecting: "Connecting",
  open: "Connected",
  waiting: "Reconnecting",
  offline: "Offline",
  ended: "Disconnected",
};

/** The foot of the room list: who I am, how the connection is, and what belongs to this page as a whole. */
export function Me({ name, connection, onSignOut }: { name: string; connection: Connection; onSignOut(): void }) {
  const { phase, again } = connection;
  const me = useMe();
  const latency = useLatency(phase);
  return (
    <div className="panel-foot">
      <Avatar id={me ?? name} />
      <div className="me">
        <strong id="me-name">{name}</strong>
        <span className="link-state" data-phase={phase}>
          {phase === "connecting" && again ? "Reconnecting" : WORDS[phase]}
          {latency !== undefined && <Latency ms={latency} />}
        </span>
      </div>
      <button className="icon-button" type="button" aria-label="Switch between light and dark" onClick={switchTheme}>
        <Icon name="theme" />
      </button>
      <button className="icon-button" type="button" aria-label="Change your name" onClick={onSignOut}>
        <Icon name="leave" />
      </button>
    </div>
  );
}

function Latency({ ms }: { ms: number }) {
  const text = ms < 1 ? "< 1 ms" : ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(1)} s`;
  return (
    <span className="latency" title="To the server and back">
      {text}
    </span>
  );
}
