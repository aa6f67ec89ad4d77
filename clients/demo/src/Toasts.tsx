import { Avatar } from "./Avatar";
import { Icon } from "./Icon";
import type { Notes, Toast } from "./useNotes";

export function Toasts({ notes, onAnswer }: { notes: Notes; onAnswer(memberId: string): void }) {
  return (
    <ul className="toasts" aria-label="Notifications" aria-live="polite">
      {notes.toasts.map((toast) => (
        <ToastItem key={toast.key} toast={toast} notes={notes} onAnswer={onAnswer} />
      ))}
    </ul>
  );
}

interface ToastItemProps {
  toast: Toast;
  notes: Notes;
  onAnswer(memberId: string): void;
}

function ToastItem({ toast, notes, onAnswer }: ToastItemProps) {
  const { kind, title, text, from, failed } = toast;
  return (
    <li className="toast" data-kind={kind}>
      {from && <Avatar id={from} />}
      <div className="toast-body">
        <strong>
          {title}
          {kind === "note" && <span className="toast-kind"> · private</span>}
        </strong>
        <p dir="auto">{text}</p>
        {from && (
          <button
            className="text-button"
            type="button"
            onClick={() => {
              notes.dismiss(toast);
              onAnswer(from);
            }}
          >
            Answer
          </button>
        )}
        {failed && (
          <button className="text-button" type="button" onClick={() => notes.tryAgain(failed)}>
            Try again
          </button>
        )}
      </div>
      <button className="icon-button" type="button" aria-label="Dismiss" onClick={() => notes.dismiss(toast)}>
        <Icon name="close" />
      </button>
    </li>
  );
}
