// Subscriptions: many listeners of a channel are one subscription at the server, kept over reconnects.
//
// Where the channel has history, the position of the last message that was handed on is kept; with it a reconnect asks
// for exactly what was missed, and whatever comes twice is dropped. While that answer is on its way, messages that are
// newer wait for it. What cannot be had again is told by a `gap` event, never silently; in a channel without history
// that is every reconnect, since nobody knows what was missed.
//
// The subscription ends a tick after its last listener: a component that is unmounted and mounted again in one go (React
// in strict mode, a change of page) keeps it.

import { CONNECTION, RESUBSCRIBE_MS } from "./constants.js";
import { call, type Emitter } from "./emitter.js";
import { RETRIED, RealtimeError } from "./errors.js";
import { withToken } from "./login.js";
import type { Outbox } from "./outbox.js";
import { changed, snapshot } from "./presence.js";
import type { Requests } from "./requests.js";
import type { Incoming } from "./transport.js";
import type { Message, Off, PresenceState, SubscribeOptions, SubscribeReply } from "./types.js";

interface Listener extends SubscribeOptions {
  message?: (message: Message<any>) => void;
  presence?: (presence: PresenceState) => void;
  typing?: (memberIds: string[]) => void;
}

interface Channel {
  name: string;
  listeners: Set<Listener>;
  token?: SubscribeOptions["token"];
  /** Counts the requests, so that an answer to an older one is known as such. */
  asked: number;
  live?: boolean;
  /** It has been live before: what was missed since then is a gap. */
  known?: boolean;
  /** Not to be asked for by itself: the server refused it or ended it, or nobody has asked yet. */
  off: boolean;
  /** A new token has been tried since the last success. */
  renewed?: boolean;
  position?: string | undefined;
  /** Messages that wait for the reply. */
  held?: Message[] | undefined;
  presence: PresenceState;
  /** The list of members has been asked for. */
  listing?: boolean;
  typing: string[];
  timer?: ReturnType<typeof setTimeout> | undefined;
}

/** `ended` is told of each channel that nobody listens to any more. */
export function createChannels(
  requests: Requests,
  outbox: Outbox,
  events: Emitter,
  memberId: () => string | undefined,
  failed: (error: RealtimeError) => void,
  ended: (channel: string) => void,
) {
  const channels = new Map<string, Channel>();

  const add = (name: string, listener: Listener): Off => {
    const channel: Channel = channels.get(name) ?? {
      name,
      listeners: new Set(),
      position: listener.since,
      asked: 0,
      off: true,
      presence: snapshot({}),
      typing: [],
    };
    channels.set(name, channel);
    channel.listeners.add(listener);
    channel.token = listener.token ?? channel.token;
    if (channel.off) {
      channel.off = false;
      subscribe(channel);
    } else if (channel.live) {
      call(listener.presence, channel.presence);
      call(listener.typing, typists(channel));
    }
    return () => {
      channel.listeners.delete(listener);
      setTimeout(leave, 0, channel);
    };
  };

  const leave = (channel: Channel) => {
    const { name } = channel;
    if (channel.listeners.size || channels.get(name) !== channel) return;
    channels.delete(name);
    ended(name);
    forget(channel);
    if (!channel.off && outbox.isOpen()) outbox.push({ text: JSON.stringify({ type: "unsubscribe", channel: name }) });
  };

  /** What was asked is of no interest any more, and what is to be asked neither. */
  const forget = (channel: Channel) => {
    channel.live = false;
    channel.held = undefined;
    channel.asked += 1;
    clearTimeout(channel.timer);
  };

  const subscribe = (channel: Channel) => {
    if (!outbox.isOpen()) return;
    const { name } = channel;
    const asked = ++channel.asked;
    const isCurrent = () => asked === channel.asked; // when the connection is lost, it has changed already
    const ask = (token: string | undefined) => {
      const since = channel.position;
      channel.held = since ? (channel.held ?? []) : undefined;
      requests.call(CONNECTION, { type: "subscribe", channel: name, token, since }, (error, reply) => {
        if (!isCurrent()) return;
        if (error) refused(channel, error);
        else subscribed(channel, since, reply);
      });
    };
    void withToken(channel.token, isCurrent, ask, (error) => refused(channel, error), name);
  };

  const subscribed = (channel: Channel, since: string | undefined, reply: SubscribeReply) => {
    const { known, held = [], position: seen } = channel;
    channel.live = channel.known = true;
    channel.renewed = false;
    channel.held = undefined;
    if (since && reply.recovered) {
      channel.position = since;
      reply.messages?.forEach((message) => deliver(channel, message));
    } else {
      // A message may have come before this reply; then its position is the newer one.
      channel.position = !since && ahead(seen, reply.position) > 0 ? seen : reply.position;
      if (known || since) gap(channel);
    }
    held.forEach((message) => deliver(channel, message));
    show(channel, reply);
    events.emit({ type: "subscribed", channel: channel.name, data: reply });
  };

  const refused = (channel: Channel, error: RealtimeError) => {
    if (RETRIED.includes(error.code)) {
      channel.timer = setTimeout(() => subscribe(channel), RESUBSCRIBE_MS * (1 + 4 * Math.random()));
    } else if (error.code === "unauthorized" && typeof channel.token === "function" && !channel.renewed) {
      channel.renewed = true;
      return subscribe(channel);
    } else {
      channel.off = true;
      show(channel, {});
      if (tell(channel, "onError", error)) return void events.emit(error);
    }
    failed(error);
  };

  const deliver = (channel: Channel, message: Message) => {
    const { position } = message;
    if (position) {
      const before = channel.position;
      const steps = ahead(position, before);
      if (steps <= 0) return;
      channel.position = position;
      // The server tells of what is missing before it goes on; this is for one that does not.
      if (before && steps !== 1) gap(channel);
    }
    tell(channel, "message", message);
    events.emit(message);
  };

  const gap = ({ name, position }: Channel) => {
    events.emit({ type: "gap", channel: name, data: { position } });
  };

  /** Whether there was anybody to be told. */
  const tell = (channel: Channel, kind: "message" | "presence" | "typing" | "onError", value: any) => {
    const told = [...channel.listeners].filter((listener) => listener[kind]);
    for (const listener of told) call(listener[kind] as (value: any) => void, value);
    return told.length > 0;
  };

  const setPresence = (channel: Channel, presence: PresenceState) => {
    channel.presence = presence;
    tell(channel, "presence", presence);
  };

  const setTyping = (channel: Channel, typing: string[] = []) => {
    channel.typing = typing;
    tell(channel, "typing", typists(channel));
  };

  /** Who is there and types, as the reply to a subscribe has it. */
  const show = (channel: Channel, reply: SubscribeReply) => {
    setPresence(channel, snapshot(reply));
    setTyping(channel, reply.typing);
  };

  const list = (channel: Channel) => {
    const { asked } = channel;
    channel.listing = true;
    requests.call(CONNECTION, { type: "presence", channel: channel.name }, (error, reply) => {
      channel.listing = false;
      if (!error && channel.asked === asked) setPresence(channel, snapshot(reply));
    });
  };

  const typists = ({ typing }: Channel) => typing.filter((id) => id !== memberId());

  return {
    add,

    isLive: (name: string) => channels.get(name)?.live,

    opened(): void {
      channels.forEach((channel) => channel.off || subscribe(channel));
    },

    lost: () => channels.forEach(forget),

    /** The next connection is another member's, perhaps: what was refused may be tried again. */
    forgive(): void {
      channels.forEach((channel) => {
        channel.off = false;
      });
    },

    /** What is about a channel, or unknown. */
    received(event: Incoming): void {
      const { type, data } = event;
      const channel = channels.get(event.channel!);
      if (!channel) return void events.emit(event);
      if (type === "message") {
        if (channel.held) channel.held.push(event as Message);
        else deliver(channel, event as Message);
        return;
      }
      if (type === "presence") {
        setPresence(channel, changed(channel.presence, data));
        // There are few enough members again to list them; or we read too slowly, and an event was dropped.
        const isWrong = data.joined && data.memberCount !== channel.presence.members.length;
        if (isWrong && channel.live && !channel.listing) list(channel);
      } else if (type === "typing") {
        const others = channel.typing.filter((id) => id !== data.memberId);
        setTyping(channel, data.typing ? [...others, data.memberId] : others);
      } else if (type === "gap") {
        channel.position = data.position;
      } else if (type === "unsubscribed") {
        forget(channel);
        refused(channel, new RealtimeError(data.code, data.message, channel.name));
      }
      events.emit(event);
    },
  };
}

/** How far a position is ahead of another; NaN if they are not of one epoch: `epoch:offset:tag`. */
function ahead(position = "", other = ""): number {
  const [epoch, offset] = position.split(":");
  const [otherEpoch, otherOffset] = other.split(":");
  return epoch && epoch === otherEpoch ? +offset! - +otherOffset! : NaN;
}
