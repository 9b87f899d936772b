// The menu of soft prompts, opened by typing `[[` in a field with chips.

import { h, newId } from "./dom.js";
import { insert, tagOf } from "./chips.js";
import { state } from "./store.js";
import { tell } from "./messages.js";

const BEGUN = /\[\[(?:soft:)?([^[\]\n]{0,60})$/;

let menu = null; // {list, field, names, at}
let lastField = null;

export function closeMenu() {
  if (!menu) return false;
  menu.list.remove();
  menu.field.removeAttribute("aria-activedescendant");
  menu.field.removeAttribute("aria-controls");
  menu = null;
  return true;
}

/** Watches a field for `[[`. */
export function watchField(field) {
  field.addEventListener("focus", () => (lastField = field));
  field.addEventListener("input", () => look(field));
  field.addEventListener("blur", () => setTimeout(() => menu?.field === field && closeMenu(), 150));
  field.addEventListener("keydown", onKey, true);
}

/** Opens the menu in the field that was used last, as if `[[` had been typed there. */
export function openMenu(otherwise) {
  const field = lastField?.isConnected && lastField.isContentEditable ? lastField : otherwise;
  if (!names("").length) {
    tell("There are no soft prompts yet. Train an entry in the lore panel, or import one.");
    return;
  }
  field.focus();
  const selection = getSelection();
  if (!field.contains(selection.anchorNode)) {
    selection.selectAllChildren(field);
    selection.collapseToEnd();
  }
  document.execCommand("insertText", false, "[[");
  look(field);
}

function names(begun) {
  const all = [...new Set([...(state.story?.soft ?? []), ...state.prompts.filter((prompt) =>
    prompt.fits !== false).map((prompt) => prompt.name)])];
  return all.filter((name) => name.toLowerCase().includes(begun.toLowerCase()));
}

function before() {
  const { anchorNode, anchorOffset, isCollapsed } = getSelection();
  return isCollapsed && anchorNode?.nodeType === Node.TEXT_NODE
    ? anchorNode.data.slice(0, anchorOffset) : "";
}

function look(field) {
  const found = BEGUN.exec(before());
  const fit = found ? names(found[1]) : [];
  closeMenu();
  if (!fit.length) return;
  const id = newId("menu");
  const list = h("div", { class: "menu", role: "listbox", id, "aria-label": "Soft prompts" },
    fit.map((name, place) => h("div", { role: "option", id: `${id}-${place}`,
      onpointerdown: (event) => {
        event.preventDefault();
        menu.at = place;
        take();
      } }, name)));
  document.body.append(list);
  menu = { list, field, names: fit, at: 0, begun: found[0].length };
  field.setAttribute("aria-controls", id);
  beside(list);
  mark();
}

function beside(list) {
  const caret = getSelection().getRangeAt(0).getBoundingClientRect();
  const size = list.getBoundingClientRect();
  const left = Math.max(8, Math.min(caret.left, innerWidth - size.width - 8));
  const below = caret.bottom + 6 + size.height < innerHeight;
  list.style.left = `${left}px`;
  list.style.top = `${below ? caret.bottom + 6 : Math.max(8, caret.top - size.height - 6)}px`;
}

function mark() {
  [...menu.list.children].forEach((option, place) => {
    option.setAttribute("aria-selected", String(place === menu.at));
    if (place === menu.at) {
      menu.field.setAttribute("aria-activedescendant", option.id);
      option.scrollIntoView({ block: "nearest" });
    }
  });
}

function take() {
  const { field, begun, at, names: fit } = menu;
  closeMenu();
  const selection = getSelection();
  const range = selection.getRangeAt(0);
  range.setStart(range.startContainer, Math.max(0, range.startOffset - begun));
  insert(field, tagOf(fit[at]));
}

function onKey(event) {
  if (!menu) return;
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) menu.at = (menu.at + step + menu.names.length) % menu.names.length;
  else if (event.key === "Escape") closeMenu();
  else if (event.key === "Enter" || event.key === "Tab") take();
  else return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if (menu) mark();
}
