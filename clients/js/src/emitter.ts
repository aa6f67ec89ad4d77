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
  const handlers = new Map<string, Set<{ handler: (event: any) => void }>>();
  const handlersOf = (type: string) => [...(handlers.get(type) ?? [])];
  return {
    on(type: string, handler: (event: any) => void): Off {
      const entry = { handler }; // so that the same function twice is two handlers
      handlers.set(type, (handlers.get(type) ?? new Set()).add(entry));
      return () => void handlers.get(type)!.delete(entry);
    },

    /** Whether anybody was there to hear it, "*" aside. */
    emit<E extends { type: string }>(event: E): boolean {
      const own = handlersOf(event.type);
      for (const { handler } of [...own, ...handlersOf("*")]) call(handler, event);
      return own.length > 0;
    },
  };
}
