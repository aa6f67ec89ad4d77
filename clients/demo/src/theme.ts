import { keepTheme, lastTheme } from "./storage";

const root = document.documentElement;

/** What was chosen; else what the system says, which is the style sheet's affair. */
export function applyTheme(): void {
  const theme = lastTheme();
  if (theme) root.dataset.theme = theme;
}

export function switchTheme(): void {
  const now = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const theme = now === "dark" ? "light" : "dark";
  root.dataset.theme = theme;
  keepTheme(theme);
}
