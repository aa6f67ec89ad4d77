import { useSyncExternalStore } from "react";

/** Whether the tab is in view. */
export function useVisible(): boolean {
  return useSyncExternalStore(onChange, () => !document.hidden);
}

function onChange(wake: () => void): () => void {
  document.addEventListener("visibilitychange", wake);
  return () => document.removeEventListener("visibilitychange", wake);
}
