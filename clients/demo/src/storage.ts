// What the browser keeps: for all tabs the name, the key and the theme; for this tab who is signed in, the rooms, and what
// is not sent yet.

export interface Said {
  channel: string;
  text: string;
  /** Random: by it a message is known again, and published once however often it is tried. */
  nonce: string;
  /** When it was written, in milliseconds since the epoch. */
  ts: number;
}

const read = <T>(store: Storage, name: string, otherwise: T): T => {
  try {
    return (JSON.parse(store.getItem(`street_fast.${name}`) ?? "null") as T | null) ?? otherwise;
  } catch {
    return otherwise; // not ours
  }
};

const write = (store: Storage, name: string, value: unknown) =>
  store.setItem(`street_fast.${name}`, JSON.stringify(value));

export const random = (): string =>
  Array.from(crypto.getRandomValues(new Uint32Array(4)), (number) => number.toString(36)).join("");

/** Stays in this browser: two tabs with one name are one member, and nobody else can be that member. */
export function secret(): string {
  let key = read(localStorage, "key", "");
  if (!key) write(localStorage, "key", (key = random()));
  return key;
}

export const lastName = () => read(localStorage, "name", "");
export const signedIn = () => read(sessionStorage, "name", "");
export function signIn(name: string): void {
  write(localStorage, "name", name);
  write(sessionStorage, "name", name);
}
export function signOut(): void {
  for (const name of ["name", "unsent"]) sessionStorage.removeItem(`street_fast.${name}`);
}

export const lastRooms = () => read(sessionStorage, "rooms", ["general"]);
export const keepRooms = (rooms: string[]) => write(sessionStorage, "rooms", rooms);

export const lastTheme = () => read<"light" | "dark" | "">(localStorage, "theme", "");
export const keepTheme = (theme: "light" | "dark") => write(localStorage, "theme", theme);

/** What was said and is not published, as far as this tab knows. It outlives a reload. */
export const unsent = (): Said[] => read<Said[]>(sessionStorage, "unsent", []);
export const keepUnsent = (said: Said) => write(sessionStorage, "unsent", [...unsent(), said]);
export const forgetUnsent = (nonce: string) =>
  write(sessionStorage, "unsent", unsent().filter((said) => said.nonce !== nonce));
