// The panels beside the story, and the tabs that open them.

import { $, button, h, icon } from "./dom.js";
import { keep, on, set, state } from "./store.js";

const TITLES = {
  stories: "Stories",
  memory: "Memory and note",
  lore: "Lore",
  compare: "Compare",
  prompts: "Soft prompts",
  settings: "Settings",
};
export const TABS = [
  ["", "Write", "write"],
  ["memory", "Memory", "memory"],
  ["lore", "Lore", "lore"],
  ["compare", "Compare", "compare"],
  ["prompts", "Prompts", "prompts"],
  ["settings", "Settings", "settings"],
];
const panels = new Map(); // name -> {element, draw}
let opener = null;

/** Registers a panel; `draw(body)` is called whenever it is opened. */
export function addPanel(name, draw) {
  const id = `panel-${name}`;
  const body = h("div", { class: "body" });
  const element = h("section", { class: "panel", "data-name": name, hidden: true,
    "aria-labelledby": id },
  h("header", {}, h("h2", { id, tabindex: -1 }, TITLES[name]),
    button("Close", () => openPanel(""), { draw: "close", kind: "bare", alone: true,
      title: "Close (Esc)" })),
  body);
  $("panels").append(element);
  panels.set(name, { element, draw: () => draw(body) });
}

/** Opens a panel, or none; the focus goes into it, and back to where it came from. */
export function openPanel(name, { focus = true } = {}) {
  const known = panels.has(name) ? name : "";
  if (known && !state.panel) opener = document.activeElement;
  for (const [one, { element }] of panels) element.hidden = one !== known;
  $("panels").hidden = !known;
  if (known) document.body.dataset.panel = known;
  else delete document.body.dataset.panel;
  keep("panel", known);
  set({ panel: known });
  panels.get(known)?.draw();
  if (!focus) return;
  if (known) $(`panel-${known}`).focus();
  else if (!isTouched()) (opener?.isConnected && opener !== document.body ? opener : $("line")).focus();
}

/** On a touch screen the focus in a field would open the keyboard. */
export const isTouched = () => matchMedia("(pointer: coarse)").matches;

export const togglePanel = (name) => openPanel(state.panel === name ? "" : name);

export function makeTabs() {
  $("tabs").append(...TABS.map(([name, words, draw], place) => h("button", { type: "button",
    "data-panel": name, title: `${words} (Alt+${place + 1})`,
    onclick: () => openPanel(name) }, icon(draw), h("span", {}, words))));
  $("story-name").addEventListener("click", () => togglePanel("stories"));
  on("panel", () => {
    for (const tab of $("tabs").children) {
      if (tab.dataset.panel === state.panel) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
    $("story-name").setAttribute("aria-expanded", String(state.panel === "stories"));
  });
}
