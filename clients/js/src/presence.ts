// Who is in a channel: a snapshot and the differences after it. Pure: state in, new state out.

import type { PresenceState, PresentMember } from "./types.js";

export interface PresenceData {
  joined?: PresentMember[];
  left?: PresentMember[];
  members?: PresentMember[];
  memberCount?: number;
}

export const NOBODY: PresenceState = { members: [], memberCount: 0, listed: false };

/** From the reply to a `subscribe` or a `presence`. */
export function snapshot({ members, memberCount }: PresenceData): PresenceState {
  return members
    ? { members, memberCount: members.length, listed: true }
    : { members: [], memberCount: memberCount ?? 0, listed: false };
}

/** After a `presence` event. Joined may be there already and left may be gone: the last state wins. */
export function changed(before: PresenceState, { joined, left, memberCount = 0 }: PresenceData): PresenceState {
  if (!before.listed || !joined || !left) return { members: [], memberCount, listed: false };
  const members = new Map(before.members.map((member) => [member.memberId, member]));
  for (const member of joined) members.set(member.memberId, member);
  for (const { memberId } of left) members.delete(memberId);
  return { members: [...members.values()], memberCount, listed: true };
}
