// One WebSocket that comes back by itself.
//
// After a loss it waits a random time that doubles with each failure (so that a thousand pages do not return in the
// same second), tries at once when the network or the tab comes back, and gives up only on a close code that says so:
// the list of those codes comes from the server. Pings are answered by the browser; since a page cannot see them, it
// asks for a sign of life itself when the tab becomes visible, because a laptop that slept does not know that the
// connection is gone.

const FIRST_DELAY_MS = 400;
const LONGEST_DELAY_MS = 15_000;
const SIGN_OF_LIFE_MS = 5_000;

export class Connection {
  #url;
  #finalCodes;
  #onEvent;
  #onStatus;
  #wanted = false;
  #socket = null;
  #failures = 0;
  #retryTimer = 0;
  #lifeTimer = 0;

  /**
   * @param {() => string} url        asked for at every attempt
   * @param {Set<number>} finalCodes  close codes after which nobody should try again
   * @param {(event: {type: string, channel?: string, data?: any, ts?: number}) => void} onEvent
   * @param {(status: {phase: "connecting"|"open"|"waiting"|"offline"|"ended", again?: boolean, retryAt?: number,
   *          reason?: string}) => void} onStatus
   */
  constructor(url, finalCodes, onEvent, onStatus) {
    this.#url = url;
    this.#finalCodes = finalCodes;
    this.#onEvent = onEvent;
    this.#onStatus = onStatus;
    addEventListener("online", () => this.#wake());
    addEventListener("offline", () => this.#waitForNetwork());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.#wake());
  }

  open() {
    this.#wanted = true;
    clearTimeout(this.#retryTimer);
    this.#drop();
    this.#onStatus({ phase: "connecting", again: this.#failures > 0 });
    const socket = new WebSocket(this.#url());
    this.#socket = socket;
    socket.onmessage = (message) => {
      this.#alive();
      this.#onEvent(JSON.parse(message.data));
    };
    socket.onopen = () => this.#onStatus({ phase: "open" });
    socket.onclose = (close) => this.#lost(close.code, close.reason);
  }

  /** Whether the event was handed to the network. */
  send(type, data) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify({ type, data }));
    return true;
  }

  /** The server has said something useful: the next loss starts with a short delay again. */
  established() {
    this.#failures = 0;
  }

  #lost(code, reason) {
    this.#socket = null;
    this.#alive();
    if (this.#finalCodes.has(code)) {
      this.#wanted = false;
      this.#onStatus({ phase: "ended", reason: reason || `code ${code}` });
    } else if (!navigator.onLine) {
      this.#waitForNetwork();
    } else {
      const hint = /retry in ([0-9.]+) s$/.exec(reason); // a server that restarts spreads its clients itself
      const ceiling = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#failures);
      const delay = hint ? Number(hint[1]) * 1000 : ceiling / 2 + Math.random() * (ceiling / 2);
      this.#failures += 1;
      this.#retryTimer = setTimeout(() => this.open(), delay);
      this.#onStatus({ phase: "waiting", retryAt: Date.now() + delay });
    }
  }

  #waitForNetwork() {
    if (!this.#wanted) return;
    clearTimeout(this.#retryTimer);
    this.#drop();
    this.#failures = Math.max(this.#failures, 1);
    this.#onStatus({ phase: "offline" });
  }

  #wake() {
    if (!this.#wanted) return;
    if (this.#socket === null) {
      this.open();
    } else if (this.send("alive") && !this.#lifeTimer) {
      this.#lifeTimer = setTimeout(() => {
        this.#drop();
        this.#lost(1006, "");
      }, SIGN_OF_LIFE_MS);
    }
  }

  #alive() {
    clearTimeout(this.#lifeTimer);
    this.#lifeTimer = 0;
  }

  #drop() {
    this.#alive();
    if (this.#socket === null) return;
    this.#socket.onmessage = this.#socket.onopen = this.#socket.onclose = null;
    this.#socket.close();
    this.#socket = null;
  }
}
