// Light and dark: the system's theme, until the writer picks one.

import { keep, recall } from "./store.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

export const theme = () => recall("theme", dark.matches ? "dark" : "light");

/** Switches to the other theme; back at the system's own, nothing is kept. */
export function switchTheme() {
  const next = theme() === "dark" ? "light" : "dark";
  const own = dark.matches ? "dark" : "light";
  keep("theme", next === own ? null : next);
  if (next === own) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  return next;
}
