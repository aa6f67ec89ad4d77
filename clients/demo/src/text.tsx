import type { ReactNode } from "react";

/** The text with its web addresses as links. */
export function Rich({ text }: { text: string }): ReactNode {
  return text.split(/(https?:\/\/[^\s<>"]*[^\s<>".,:;!?')\]])/).map((part, index) =>
    index % 2 === 0 ? (
      part
    ) : (
      <a key={index} href={part} target="_blank" rel="noopener noreferrer nofollow">
        {part}
      </a>
    ),
  );
}

export const isOnlyEmoji = (text: string): boolean =>
  text.length <= 24 &&
  /^(?:\p{Extended_Pictographic}|\p{Emoji_Modifier}|\p{Regional_Indicator}|[\u200d\ufe0f ])+$/u.test(text);

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });

export const timeOf = (ts: number): string => clock.format(ts);
