// The numbers of the client, in one place: times, counts, and names for what is a number. They are in a module that imports nothing, so that a bundler can put them
// where they are used.

// The connection.
export const CONNECT_MS = 10_000;
/** Of a server that has none: then it is our own pings that are answered. */
export const HEARTBEAT_MS = 25_000;
/** Beyond the heartbeat of the server. */
export const GRACE_MS = 10_000;
/** How long the answer to a ping may take when the network or the tab is back. */
export const PROBE_MS = 5_000;
/** A connection that lived so long begins anew with the delays. */
export const HEALTHY_MS = 10_000;
/** From the welcome to the first measure of the latency. */
export const FIRST_PING_MS = 1_000;

// The transport.
export const FAILURES_BEFORE_SSE = 2;
/** The same where the last connection was a WebSocket: it is rather the server that is away. */
export const FAILURES_OF_A_WAY_THAT_WORKED = 5;
/** On an event stream, until a WebSocket is tried beside it; each time doubled. */
export const LOOK_MS = 60_000;

// Close codes that are told apart.
export const LOST = 1006;
export const UNAUTHORIZED = 4001;

// Requests, by how long they live.
/** Only on this connection: subscribe, auth, ping. Its time runs from when it was sent. */
export const CONNECTION = 0;
/** Asked again on the next connection. Its time runs from the call. */
export const CALL = 1;
/** Kept until answered: publish. */
export const ANSWER = 2;
export type Life = typeof CONNECTION | typeof CALL | typeof ANSWER;
export const ATTEMPTS = 3;
/** How long a publish is asked for again with its key: a little less than the server knows it. */
export const KEY_LIFE_MS = 280_000;
/** Until what may have been taken or not is asked again. */
export const UNKNOWN_RETRY_MS = 1_000;
/** Until a subscription that was refused for a while is tried again: from once to five times this. */
export const RESUBSCRIBE_MS = 1_000;

// The login.
/** So long before its end a token is renewed, or after four fifths of its life. */
export const EARLY_MS = 30_000;
/** A clock that is wrong must not make a renewal a loop. */
export const SOONEST_MS = 10_000;
export const TOKEN_RETRY_MS = 5_000;
/** Twice as long is too long for one timer. */
export const LONGEST_TIMER_MS = 1e9;

// The event stream.
/** The `readyState` of an EventSource that does not come back. */
export const CLOSED = 2;
/** Messages in one POST: half of what the server takes, so that large ones fit into a request too. */
export const BATCH = 8;
/** How long a POST may take. */
export const POST_MS = 20_000;
/** Until a server that was busy is asked again. */
export const BUSY_MS = 1_000;

// Typing.
export const TYPING_REFRESH_MS = 2_500;
export const TYPING_END_MS = 5_000;
