import { type FormEvent, useEffect, useRef } from "react";
import { Avatar } from "./Avatar";
import { nameOf } from "./names";

interface NoteDialogProps {
  /** The id of a member. */
  to: string;
  onSend(text: string): void;
  onClose(): void;
}

export function NoteDialog({ to, onSend, onClose }: NoteDialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    dialog.current!.showModal();
    input.current!.focus();
    return () => before?.focus();
  }, []);

  function send(text: string) {
    if (!text) return;
    onSend(text);
    onClose();
  }
  function submit(event: FormEvent) {
    event.preventDefault();
    send(input.current!.value.trim());
  }

  const name = nameOf(to);
  return (
    <dialog
      ref={dialog}
      className="note-dialog"
      aria-labelledby="note-title"
      onClose={onClose}
      onClick={(event) => event.target === dialog.current && onClose()} // beside it
    >
      <form onSubmit={submit}>
        <h2 id="note-title">
          <Avatar id={to} />
          <span>Private note to {name}</span>
        </h2>
        <p>Only {name} sees it, and it is not kept for long.</p>
        <label className="hidden-label" htmlFor="note">
          Note to {name}
        </label>
        <input id="note" ref={input} maxLength={280} autoComplete="off" enterKeyHint="send" placeholder="Psst …" />
        <div className="note-buttons">
          <button className="text-button" type="button" onClick={() => send("👋")}>
            Just wave 👋
          </button>
          <button className="text-button" type="button" onClick={onClose}>
            Cancel
          </button>
          <button className="primary" type="submit">
            Send
          </button>
        </div>
      </form>
    </dialog>
  );
}
