import { nameOf } from "./names";

/** The first letter of the name, in a colour that the whole id gives. */
export function Avatar({ id }: { id: string }) {
  const hue = [...id].reduce((sum, char) => (sum * 31 + char.codePointAt(0)!) % 360, 7);
  return (
    <span className="avatar" style={{ "--hue": hue } as React.CSSProperties} aria-hidden="true">
      {[...nameOf(id)][0]?.toUpperCase() ?? "?"}
    </span>
  );
}
