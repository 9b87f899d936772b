// Light and dark: the system's theme, until the writer picks one.

import { keep, recall } from "./store.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

export const theme = () => recall("theme", dark.matches ? "dark" : "light");

/** Switches to the other theme. The system's own theme is not stored. */
export function switchTheme() {
  const next = theme() === "dark" ? "light" : "dark";
  const system = dark.matches ? "dark" : "light";
  keep("theme", next === system ? null : next);
  if (next === system) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  return next;
}
