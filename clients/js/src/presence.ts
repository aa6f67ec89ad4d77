// Who is in a channel: a snapshot and the differences after it. Pure: state in, new state out.

import type { PresenceState, PresentMember } from "./types.js";

export interface PresenceData {
  joined?: PresentMember[];
  left?: PresentMember[];
  members?: PresentMember[];
  memberCount?: number;
}

/** From the reply to a `subscribe` or a `presence`. */
export function snapshot({ members, memberCount = members?.length ?? 0 }: PresenceData): PresenceState {
  return { members: members ?? [], memberCount, listed: members !== undefined };
}

/** After a `presence` event. Joined may be there already and left may be gone: the last state wins. */
export function changed(before: PresenceState, { joined, left, memberCount = 0 }: PresenceData): PresenceState {
  if (!before.listed || !joined || !left) return snapshot({ memberCount });
  const members = new Map(before.members.map((member) => [member.memberId, member]));
  for (const member of joined) members.set(member.memberId, member);
  for (const { memberId } of left) members.delete(memberId);
  return { members: [...members.values()], memberCount, listed: true };
}
