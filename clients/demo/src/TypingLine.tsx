import { nameOf } from "./names";

export function TypingLine({ typists }: { typists: string[] }) {
  const names = typists.map(nameOf);
  const sentence =
    names.length === 0 ? ""
    : names.length === 1 ? `${names[0]} is typing`
    : names.length === 2 ? `${names[0]} and ${names[1]} are typing`
    : "Several people are typing";
  return (
    <p id="typing" className={sentence ? "typing active" : "typing"} aria-live="polite">
      {sentence}
    </p>
  );
}
