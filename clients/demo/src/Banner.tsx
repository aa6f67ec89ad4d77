import { useEffect, useState } from "react";
import { useRealtime } from "street-fast/react";
import type { Connection } from "./useConnection";

/** What is wrong with the connection, and what can be done about it; nothing where nothing is. */
export function Banner({ connection: { phase, again, retryAt, reason } }: { connection: Connection }) {
  const realtime = useRealtime();
  const isLost = phase === "waiting" && again;
  const sentence = {
    open: "",
    connecting: again ? "Reconnecting …" : "",
    waiting: isLost ? "Connection lost. Trying again" : "The server cannot be reached. Trying again",
    offline: "You are offline. The chat goes on when the network is back.",
    ended: `The server ended the connection: ${reason}.`,
  }[phase];
  const action = phase === "waiting" ? "Try now" : phase === "ended" ? "Connect again" : "";
  return (
    <div className="banner" role="status" data-phase={phase} hidden={!sentence}>
      <span>
        {sentence} {phase === "waiting" && <Countdown to={retryAt} />}
      </span>
      {action && (
        <button className="text-button" type="button" onClick={realtime.reconnect}>
          {action}
        </button>
      )}
    </div>
  );
}

function Countdown({ to }: { to: number }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((count) => count + 1), 1_000);
    return () => clearInterval(timer);
  }, []);
  return <span aria-hidden="true">in {Math.max(1, Math.ceil((to - Date.now()) / 1_000))} s</span>;
}
