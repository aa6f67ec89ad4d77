// Handlers by event type. One that throws is reported and disturbs nobody else.

import { report } from "./errors.js";
import type { Off } from "./types.js";

/** Calls the handler; what it throws is reported. */
export function call<T>(handler: ((value: T) => void) | undefined, value: T): void {
  try {
    handler?.(value);
  } catch (error) {
    report(error);
  }
}

export type Emitter = ReturnType<typeof createEmitter>;

export function createEmitter() {
  let entries: { type: string; handler: (event: any) => void }[] = [];
  const entriesOf = (wanted: string) => entries.filter(({ type }) => type === wanted);
  return {
    on(type: string, handler: (event: any) => void): Off {
      const entry = { type, handler }; // so that the same function twice is two handlers
      entries = [...entries, entry];
      return () => {
        entries = entries.filter((other) => other !== entry);
      };
    },

    /** Whether anybody was there to hear it, "*" aside. */
    emit<E extends { type: string }>(event: E): boolean {
      const own = entriesOf(event.type);
      for (const { handler } of [...own, ...entriesOf("*")]) call(handler, event);
      return own.length > 0;
    },
  };
}
