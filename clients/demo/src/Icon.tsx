import type { ReactNode } from "react";

const DRAWINGS = {
  street: (
    <>
      <rect className="asphalt" width="32" height="32" rx="8" />
      <path className="marking" d="M16 4v6m0 3v6m0 3v6" />
    </>
  ),
  menu: <path d="M4 7h16M4 12h16M4 17h10" />,
  people: (
    <>
      <circle cx="9" cy="8" r="3.5" />
      <path d="M2.5 20c0-4 2.9-6.5 6.5-6.5s6.5 2.5 6.5 6.5M16 4.8a3.5 3.5 0 0 1 0 6.4M18 14c2.2.8 3.5 2.9 3.5 6" />
    </>
  ),
  send: <path d="M12 19.5V5M5.5 11.5 12 5l6.5 6.5" />,
  plus: <path d="M12 5v14M5 12h14" />,
  close: <path d="m6 6 12 12M18 6 6 18" />,
  theme: (
    <>
      <circle cx="12" cy="12" r="8.5" />
      <path className="filled" d="M12 3.5a8.5 8.5 0 0 1 0 17z" />
    </>
  ),
  leave: <path d="M10 4H6a2 2 0 0 0-2 2v12a2 2 0 0 0 2 2h4M15.5 8l4 4-4 4M19 12H9.5" />,
  note: <path d="M4 6.5h16v11H4zM4.5 7l7.5 6 7.5-6" />,
} satisfies Record<string, ReactNode>;

export function Icon({ name, className }: { name: keyof typeof DRAWINGS; className?: string }) {
  return (
    <svg className={className} viewBox={name === "street" ? "0 0 32 32" : "0 0 24 24"} aria-hidden="true">
      {DRAWINGS[name]}
    </svg>
  );
}
