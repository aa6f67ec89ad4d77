// Names of people and of rooms. The server has the same rules and the last word.

export const tidy = (text: string): string => text.normalize("NFC").split(/\s+/).filter(Boolean).join(" ");

const UNREADABLE = /[\x00-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]|\p{Cs}/u;

/** What is wrong with a name, for the person who typed it; empty if nothing is. */
export function nameProblem(name: string): string {
  if (!name) return "Please type a name.";
  if ([...name].length > 32) return "That is too long: 32 characters at most.";
  if (UNREADABLE.test(name)) return "That has characters nobody can see.";
  return "";
}

export const roomName = (text: string): string => tidy(text).toLowerCase().replaceAll(" ", "-").replace(/^#+/, "");

export const roomProblem = (name: string): string =>
  /^[^\s\p{C}]{1,32}$/u.test(name) ? "" : "A room needs a name of 1 to 32 characters.";

/** Of a member, whose id is `<name>~<digest>`: so it is known also when they are gone. */
export const nameOf = (memberId: string): string => memberId.replace(/~[^~]*$/, "");

/** The room in the address. */
export function roomInAddress(): string {
  try {
    const name = roomName(decodeURIComponent(location.hash.slice(1)));
    return roomProblem(name) ? "" : name;
  } catch {
    return ""; // a broken escape
  }
}
