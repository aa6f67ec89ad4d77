import { type FormEvent, type KeyboardEvent, useEffect, useLayoutEffect, useRef } from "react";
import { Icon } from "./Icon";

const LONGEST = 2_000;
const TALLEST_PX = 160;

interface ComposerProps {
  room: string;
  draft: string;
  onDraft(draft: string): void;
  onTyping(typing: boolean): void;
  onSay(text: string): void;
}

export function Composer({ room, draft, onDraft, onTyping, onSay }: ComposerProps) {
  const box = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    if (matchMedia("(hover: hover)").matches) box.current?.focus(); // elsewhere it would bring up a keyboard
    return () => onTyping(false);
  }, [onTyping]);
  useLayoutEffect(() => {
    const { style } = box.current!;
    style.height = "auto";
    style.height = `${Math.min(box.current!.scrollHeight, TALLEST_PX)}px`;
  }, [draft]);

  function submit(event: FormEvent) {
    event.preventDefault();
    const text = draft.trim();
    if (!text) return;
    onDraft("");
    onTyping(false);
    onSay(text);
  }

  function onKeyDown(event: KeyboardEvent) {
    if (event.key === "Enter" && !event.shiftKey && !event.nativeEvent.isComposing) submit(event);
  }

  const left = LONGEST - draft.length;
  return (
    <form className="composer" onSubmit={submit}>
      <label className="hidden-label" htmlFor="message">
        Message to {room}
      </label>
      <textarea
        id="message"
        ref={box}
        rows={1}
        maxLength={LONGEST}
        enterKeyHint="send"
        autoComplete="off"
        placeholder={`Message #${room}`}
        value={draft}
        onChange={({ target: { value } }) => {
          onDraft(value);
          onTyping(value.trim() !== "");
        }}
        onKeyDown={onKeyDown}
        onBlur={() => onTyping(false)}
      />
      <span className="left" aria-live="polite">
        {left <= 200 && left}
      </span>
      <button className="send" type="submit" aria-label="Send">
        <Icon name="send" />
      </button>
    </form>
  );
}
