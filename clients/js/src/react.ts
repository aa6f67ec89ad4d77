// React hooks over the client. They render on a server as "connecting" with nobody there, and connect in an effect.
//
// Effects may run twice (strict mode) and handlers change with every render: subscriptions end a tick after their last
// listener, and the newest handler is the one that is called.

import {
  createContext,
  createElement,
  type ReactNode,
  useCallback,
  useContext,
  useEffect,
  useInsertionEffect,
  useMemo,
  useRef,
  useSyncExternalStore,
} from "react";
import { createRealtime } from "./core.js";
import type {
  ConnectionState,
  Message,
  Off,
  PresenceState,
  Realtime,
  RealtimeOptions,
  SubscribeOptions,
} from "./types.js";

const Context = createContext<Realtime | undefined>(undefined);

const NOBODY: PresenceState = { members: [], memberCount: 0, listed: false };
const NO_ONE: string[] = [];

export interface RealtimeProviderProps {
  /** A connection of the provider's own: opened when it is mounted, closed when it is gone. */
  url?: string;
  /** Read when the connection is made for `url`; a token callback may change with every render. */
  options?: RealtimeOptions;
  /** Or a client that somebody else made and closes. */
  client?: Realtime;
  children?: ReactNode;
}

/** Gives the components below it a connection: its own to `url`, or `client`. */
export function RealtimeProvider({ url, client, options, children }: RealtimeProviderProps): ReactNode {
  if ((url === undefined) === (client === undefined)) {
    throw new Error("RealtimeProvider needs either url or client");
  }
  const newest = useNewest(options);
  const realtime = useMemo(() => client ?? own(url!, newest), [url, client, newest]);
  const closing = useRef<{ realtime: Realtime; timer: ReturnType<typeof setTimeout> } | undefined>(undefined);
  useEffect(() => {
    if (client) return;
    // The same connection again, in the same go: strict mode.
    if (closing.current?.realtime === realtime) clearTimeout(closing.current.timer);
    if (realtime.state === "closed") realtime.reconnect(); // hidden and shown again
    else realtime.connect();
    return () => {
      closing.current = { realtime, timer: setTimeout(() => realtime.close(), 0) };
    };
  }, [realtime, client]);
  return createElement(Context.Provider, { value: realtime }, children);
}

function own(url: string, newest: { current: RealtimeOptions | undefined }): Realtime {
  const options = newest.current ?? {};
  const token = () => {
    const { token: now } = newest.current ?? {};
    return typeof now === "function" ? now() : now;
  };
  return createRealtime(url, {
    ...options,
    ...(typeof options.token === "function" && { token }),
    autoConnect: false,
  });
}

/** The connection of the RealtimeProvider above. */
export function useRealtime(): Realtime {
  const realtime = useContext(Context);
  if (!realtime) throw new Error("useRealtime needs a RealtimeProvider above the component");
  return realtime;
}

/** Messages of a channel, as long as the component is mounted; null for none. The newest `handler` is called. */
export function useChannel<T = unknown>(
  channel: string | null,
  handler: (message: Message<T>) => void,
  options?: SubscribeOptions,
): void {
  const realtime = useRealtime();
  const newest = useNewest({ handler, options });
  useEffect(() => {
    if (channel === null) return;
    return realtime.subscribe<T>(channel, (message) => newest.current.handler(message), {
      ...newest.current.options,
      // With a callback an error counts as told; without one the client tells it otherwise.
      ...(newest.current.options?.onError && { onError: (error) => newest.current.options?.onError?.(error) }),
    });
  }, [realtime, channel, newest]);
}

/** Who is in a channel, as long as the component is mounted. */
export function usePresence(channel: string | null): PresenceState {
  return useTracked(channel, NOBODY, trackPresence);
}

/** Who else is typing in a channel; and `setTyping`, to call at each keystroke. */
export function useTyping(channel: string | null): { typing: string[]; setTyping: (typing: boolean) => void } {
  const realtime = useRealtime();
  const typing = useTracked(channel, NO_ONE, trackTyping);
  const setTyping = useCallback(
    (typing: boolean) => {
      if (channel !== null) realtime.typing(channel, typing);
    },
    [realtime, channel],
  );
  return { typing, setTyping };
}

export function useConnectionState(): ConnectionState {
  const realtime = useRealtime();
  return useSyncExternalStore(
    realtime.onState,
    () => realtime.state,
    () => "connecting",
  );
}

const trackPresence = (realtime: Realtime, channel: string, changed: (presence: PresenceState) => void) =>
  realtime.trackPresence(channel, changed);

const trackTyping = (realtime: Realtime, channel: string, changed: (memberIds: string[]) => void) =>
  realtime.trackTyping(channel, changed);

/** What `track` tells of a channel, `empty` until it does. `track` must be the same function each time. */
function useTracked<S>(
  channel: string | null,
  empty: S,
  track: (realtime: Realtime, channel: string, changed: (state: S) => void) => Off,
): S {
  const realtime = useRealtime();
  const store = useMemo(() => {
    let state = empty;
    return {
      read: () => state,
      subscribe(wake: () => void): Off {
        if (channel === null) return () => {};
        return track(realtime, channel, (next) => {
          state = next;
          wake();
        });
      },
    };
  }, [realtime, channel, empty, track]);
  return useSyncExternalStore(store.subscribe, store.read, () => empty);
}

/** Always the value of the newest render, for callbacks that outlive it. */
function useNewest<V>(value: V): { current: V } {
  const newest = useRef(value);
  useInsertionEffect(() => {
    newest.current = value;
  });
  return newest;
}
