import { memo } from "react";
import { Avatar } from "./Avatar";
import { nameOf } from "./names";
import { isOnlyEmoji, Rich, timeOf } from "./text";

interface MessageItemProps {
  from: string;
  text: string;
  ts: number;
  isOwn: boolean;
  /** Of the same person as the one above. */
  isContinued: boolean;
  isWaiting?: boolean;
}

export const MessageItem = memo(function MessageItem(props: MessageItemProps) {
  const { from, text, ts, isOwn, isContinued, isWaiting = false } = props;
  const time = timeOf(ts);
  const classes = ["message", isOwn && "own", isContinued && "continued", isWaiting && "pending"].filter(Boolean);
  return (
    <article className={classes.join(" ")}>
      {!isOwn && <Avatar id={from} />}
      <p className="byline">
        <strong>{isOwn ? "You" : nameOf(from)}</strong>{" "}
        <time dateTime={new Date(ts).toISOString()}>{time}</time>
      </p>
      <p className={isOnlyEmoji(text) ? "bubble emoji" : "bubble"} dir="auto" title={time}>
        <Rich text={text} />
      </p>
    </article>
  );
});
