import { type RefObject, useEffect, useLayoutEffect, useRef, useState } from "react";
import type { Entry } from "./log";

const NEAR_BOTTOM_PX = 48;

interface Follow {
  frame: RefObject<HTMLDivElement | null>;
  /** Something came below what is in view. */
  hasNews: boolean;
  toBottom(): void;
  /** What is shown at first is not to be read out. */
  isBusy: boolean;
}

/** Keeps the newest in view, unless somebody has scrolled up to read; then it says that there is something new. */
export function useFollow(entries: Entry[]): Follow {
  const frame = useRef<HTMLDivElement>(null);
  const isAtBottom = useRef(true);
  const [hasNews, setHasNews] = useState(false);
  const [isBusy, setBusy] = useState(true);
  const last = entries.at(-1);
  const lastKey = useRef<string>(undefined);

  const toBottom = () => {
    frame.current!.scrollTop = frame.current!.scrollHeight;
  };

  useLayoutEffect(() => {
    const isNew = last?.key !== lastKey.current;
    lastKey.current = last?.key;
    if (isAtBottom.current || (isNew && last?.kind === "waiting")) toBottom();
    else if (isNew && last?.kind === "message") setHasNews(true);
  }, [entries, last]);

  useEffect(() => {
    const log = frame.current!;
    const onScroll = () => {
      isAtBottom.current = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_BOTTOM_PX;
      if (isAtBottom.current) setHasNews(false);
    };
    log.addEventListener("scroll", onScroll, { passive: true });
    // A keyboard comes up, a banner appears, the composer grows.
    const resized = new ResizeObserver(() => isAtBottom.current && toBottom());
    resized.observe(log);
    const rest = requestAnimationFrame(() => setBusy(false));
    return () => {
      log.removeEventListener("scroll", onScroll);
      resized.disconnect();
      cancelAnimationFrame(rest);
    };
  }, []);

  return { frame, hasNews, toBottom, isBusy };
}
