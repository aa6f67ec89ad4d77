// Vue composables over the client. On a server that renders nothing is subscribed and nothing connects; what they begin
// ends with the scope (component or effectScope) that they were called in.

import {
  type App,
  getCurrentInstance,
  getCurrentScope,
  inject,
  type InjectionKey,
  type MaybeRefOrGetter,
  onMounted,
  onScopeDispose,
  provide,
  type Ref,
  shallowRef,
  toValue,
  watch,
} from "vue";
import { createRealtime } from "./core.js";
import type {
  ConnectionState,
  Message,
  Off,
  PresentMember,
  Realtime,
  RealtimeOptions,
  SubscribeOptions,
} from "./types.js";

const KEY: InjectionKey<Realtime> = Symbol("street-fast");

/** What a component has provided: `inject` finds only what those above it have, and a small app is one component. */
const provided = new WeakMap<object, Realtime>();

/** `app.use(realtimePlugin("/realtime"))`, or with a client: for every component of the app. */
export function realtimePlugin(urlOrClient: string | Realtime, options?: RealtimeOptions) {
  return {
    install(app: App): void {
      app.provide(KEY, typeof urlOrClient === "string" ? createRealtime(urlOrClient, options) : urlOrClient);
    },
  };
}

/** For the components below this one: a client, or a connection of its own that is closed with the component. */
export function provideRealtime(urlOrClient: string | Realtime, options?: RealtimeOptions): Realtime {
  const isOwn = typeof urlOrClient === "string";
  const realtime = isOwn ? createRealtime(urlOrClient, { ...options, autoConnect: false }) : urlOrClient;
  const component = getCurrentInstance();
  if (component) provided.set(component, realtime);
  provide(KEY, realtime);
  if (isOwn) {
    whenMounted(() => realtime.connect());
    onScopeDispose(() => realtime.close());
  }
  return realtime;
}

/** The connection that `provideRealtime` or the plugin gave. */
export function useRealtime(): Realtime {
  const component = getCurrentInstance();
  const realtime = (component && provided.get(component)) ?? inject(KEY, undefined);
  if (!realtime) throw new Error("useRealtime needs provideRealtime() in or above the component, or app.use(realtimePlugin())");
  return realtime;
}

/** Messages of a channel, which may be a ref or a getter; null for none. */
export function useChannel<T = unknown>(
  channel: MaybeRefOrGetter<string | null>,
  handler: (message: Message<T>) => void,
  options?: SubscribeOptions,
): void {
  const realtime = useRealtime();
  follow(channel, (name) => realtime.subscribe<T>(name, handler, options));
}

/** Who is in a channel. */
export function usePresence(channel: MaybeRefOrGetter<string | null>): {
  members: Readonly<Ref<PresentMember[]>>;
  memberCount: Readonly<Ref<number>>;
} {
  const realtime = useRealtime();
  const members = shallowRef<PresentMember[]>([]);
  const memberCount = shallowRef(0);
  follow(channel, (name) => {
    const off = realtime.trackPresence(name, (presence) => {
      members.value = presence.members;
      memberCount.value = presence.memberCount;
    });
    return () => {
      off();
      members.value = [];
      memberCount.value = 0;
    };
  });
  return { members, memberCount };
}

/** Who else is typing in a channel; and `setTyping`, to call at each keystroke. */
export function useTyping(channel: MaybeRefOrGetter<string | null>): {
  typing: Readonly<Ref<string[]>>;
  setTyping: (typing: boolean) => void;
} {
  const realtime = useRealtime();
  const typing = shallowRef<string[]>([]);
  follow(channel, (name) => {
    const off = realtime.trackTyping(name, (memberIds) => {
      typing.value = memberIds;
    });
    return () => {
      off();
      typing.value = [];
    };
  });
  const setTyping = (typing: boolean) => {
    const name = toValue(channel);
    if (name !== null) realtime.typing(name, typing);
  };
  return { typing, setTyping };
}

export function useConnectionState(): Readonly<Ref<ConnectionState>> {
  const realtime = useRealtime();
  const state = shallowRef(realtime.state);
  const off = realtime.onState((event) => {
    state.value = event.state;
  });
  if (getCurrentScope()) onScopeDispose(off);
  return state;
}

/** Begins for the channel, begins anew when it changes, and ends with the scope. Not before the component is mounted. */
function follow(channel: MaybeRefOrGetter<string | null>, begin: (name: string) => Off): void {
  let end: Off | undefined;
  let over = false;
  const start = () => {
    if (over) return;
    watch(
      () => toValue(channel),
      (name) => {
        end?.();
        end = name === null ? undefined : begin(name);
      },
      { immediate: true, flush: "sync" },
    );
  };
  const scope = getCurrentScope();
  whenMounted(() => (scope ? scope.run(start) : start()));
  onScopeDispose(() => {
    over = true;
    end?.();
  });
}

/** A component is mounted in a page only, so this keeps quiet on a server. Outside of components it is at once. */
function whenMounted(start: () => void): void {
  if (getCurrentInstance()) onMounted(start);
  else start();
}
