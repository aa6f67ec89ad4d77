export { createRealtime } from "./core.js";
export { RealtimeError } from "./errors.js";
export type * from "./types.js";
