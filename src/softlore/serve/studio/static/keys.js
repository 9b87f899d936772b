// The keyboard: everything that has a shortcut, and the list of them.

import { $, h } from "./dom.js";
import { chancesAtCaret, closeChances } from "./chances.js";
import { closeMenu } from "./chipmenu.js";
import { close as closeContext } from "./contextbar.js";
import { shown } from "./dialogs.js";
import { editing, step } from "./editor.js";
import { openPanel, TABS, togglePanel } from "./panels.js";
import { state } from "./store.js";
import * as writing from "./writing.js";

// What is pressed, what it does, and how it reads in the list.
const SHORTCUTS = [
  ["ctrl+Enter", () => writing.write(), "Ctrl Enter", "Add what you typed and let the model write on"],
  ["ctrl+shift+Enter", () => writing.addOnly(), "Ctrl Shift Enter", "Add what you typed, no more"],
  ["Escape", escape, "Esc", "Stop the model; close what is open"],
  ["alt+KeyR", () => writing.retry(), "Alt R", "Retry the model’s last turn"],
  ["alt+ArrowUp", () => writing.otherTry(-1), "Alt ↑ / ↓", "Alternatives of the turn"],
  ["alt+ArrowDown", () => writing.otherTry(1)],
  ["ctrl+KeyZ", () => writing.undo(), "Ctrl Z", "Undo, outside of a text being typed"],
  ["ctrl+shift+KeyZ", () => writing.redo(), "Ctrl Shift Z", "Redo"],
  ["ctrl+KeyY", () => writing.redo()],
  ["ctrl+ArrowUp", () => step(-1), "Ctrl ↑ / ↓", "To the turn before or after; edit by typing"],
  ["ctrl+ArrowDown", () => step(1)],
  ["alt+KeyC", () => writing.writeSeveral(), "Alt C", "Several continuations to choose from"],
  ["alt+KeyE", () => writing.rewriteSentence(), "Alt E", "Write the sentence at the cursor anew"],
  ["alt+KeyP", () => chancesAtCaret(), "Alt P", "What else the word at the cursor might be"],
  ["alt+KeyK", () => writing.keepTurn(), "Alt K", "Keep the turn, to learn from"],
  ["alt+KeyW", () => toLine(), "Alt W", "To the writing line"],
  ["alt+KeyS", () => togglePanel("stories"), "Alt S", "All stories"],
  ...TABS.map(([name], place) => [`alt+Digit${place + 1}`, () => openPanel(name)]),
  ["ctrl+KeyS", save, "Ctrl S", "Save the entry that is open"],
  ["?", help, "?", "This list, outside of a field"],
];
const IN_LIST = [["[[", "In a text: put in a soft prompt"], ["Alt 1 … 6", "Write, Memory, Lore, "
  + "Compare, Prompts, Settings"]];

function toLine() {
  if (["compare"].includes(state.panel) || !$("line").checkVisibility()) openPanel("");
  $("line").focus();
}

function escape(event) {
  if (closeMenu() || closeChances() || closeContext()) return true;
  if (state.writing) {
    state.writing.stop();
    return true;
  }
  if (event.target.classList?.contains("turn") || event.target.id === "line") {
    $("line").focus();
    return true;
  }
  if (state.panel) openPanel("");
  return true;
}

function save() {
  document.querySelector("form.entry")?.requestSubmit();
  return true;
}

export function help() {
  const list = [...SHORTCUTS.filter(([, , keys]) => keys).map(([, , keys, words]) => [keys, words]),
    ...IN_LIST];
  shown("Keys", h("dl", { class: "facts keys" }, list.map(([keys, words]) => [
    h("dt", {}, keys.split(" ").map((key) => (/^[/…]$/.test(key) ? ` ${key} ` : h("kbd", {}, key)))),
    h("dd", {}, words)])));
}

const named = (event) => [(event.ctrlKey || event.metaKey) && "ctrl", event.shiftKey && "shift",
  event.altKey && "alt", /^(Key|Digit)/.test(event.code) ? event.code : event.key]
  .filter(Boolean).join("+");

/** In a field that has something typed, undo and redo are the field's own. */
function isFields(pressed, target) {
  const field = target.isContentEditable || target.matches?.("input, textarea, select");
  if (!field) return false;
  if (pressed === "?" || ["ctrl+ArrowUp", "ctrl+ArrowDown"].includes(pressed)) {
    return pressed === "?" || !target.isContentEditable;
  }
  if (!["ctrl+KeyZ", "ctrl+shift+KeyZ", "ctrl+KeyY"].includes(pressed)) return false;
  if (target.classList.contains("turn")) return editing();
  return !(target.id === "line" && !target.textContent);
}

export function makeKeys() {
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    const pressed = event.key === "?" ? "?" : named(event);
    const found = SHORTCUTS.find(([keys]) => keys === pressed);
    if (!found || isFields(pressed, event.target)) return;
    event.preventDefault();
    found[1](event);
  });
}
