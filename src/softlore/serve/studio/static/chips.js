// Soft prompts in editable text: `[[soft:NAME]]` in the text is a chip on the page.

import { h } from "./dom.js";
import { state } from "./store.js";

const TAG = /\[\[soft:([^[\]\n]+)\]\]/;
const EVERY_TAG = new RegExp(TAG, "g");
const ROOM = "\u200b"; // where a caret could not stand: beside a chip or behind a newline at an end

/** How a field is marked as editable; browsers without plain text get pasted text made plain. */
export const EDITABLE = (() => {
  try {
    document.createElement("i").contentEditable = "plaintext-only";
    return "plaintext-only";
  } catch {
    return "true";
  }
})();

/** Text without what only helps the caret. */
export const bare = (text) => text.replaceAll(ROOM, "");

export const tagOf = (name) => `[[soft:${name}]]`;

const known = (name) => state.prompts.some((prompt) => prompt.name === name)
  || Boolean(state.story?.soft?.includes(name));

/** A chip; its button takes it out. */
export function chip(name, removable = true) {
  const element = h("span", { class: `chip ${known(name) ? "" : "unknown"}`, contenteditable: "false",
    "data-name": name, title: known(name) ? `Soft prompt ${name}` : `There is no soft prompt ${name}` },
  name);
  if (removable) {
    element.append(h("button", { type: "button", tabindex: -1, "aria-label": `Take out ${name}`,
      onclick: () => {
        const field = element.closest("[role='textbox']");
        closeGap(element);
        element.remove();
        field?.dispatchEvent(new Event("input", { bubbles: true }));
      } }, "×"));
  }
  return element;
}

/** Of the spaces on both sides of what goes, one goes too. */
function closeGap({ previousSibling: before, nextSibling: after }) {
  if (before?.data?.endsWith(" ") && after?.data?.startsWith(" ")) after.deleteData(0, 1);
}

/** Shows text in an element, with chips for its tags. */
export function show(element, text, removable = true) {
  element.replaceChildren(...nodes(text, removable));
}

function nodes(text, removable) {
  const parts = text.split(EVERY_TAG); // text, name, text, name, …, text
  const made = parts.map((part, place) => (place % 2 ? chip(part, removable) : part));
  if (removable && parts.length > 1) {
    if (!made[0]) made[0] = ROOM;
    if (!made.at(-1)) made[made.length - 1] = ROOM;
  }
  if (removable && text.endsWith("\n")) made[made.length - 1] += ROOM;
  return made.filter((part) => part !== "");
}

/** The text of an element, with tags for its chips. A browser leaves a BR in an emptied field. */
export function read(node) {
  return node.childNodes.length === 1 && node.firstChild.nodeName === "BR" ? "" : textOf(node);
}

/** How many characters of a field's text, as `read` gives it, stand before a range's beginning. */
export function offsetAt(field, range) {
  const before = document.createRange();
  before.selectNodeContents(field);
  before.setEnd(range.startContainer, range.startOffset);
  return textOf(before.cloneContents()).length;
}

/** The same for the caret, which is in the field. */
export const caretOffset = (field) => offsetAt(field, getSelection().getRangeAt(0));

function textOf(node) {
  if (node.nodeType === Node.TEXT_NODE) return bare(node.data);
  if (node.dataset?.name) return tagOf(node.dataset.name);
  if (node.nodeName === "BR") return "\n";
  return [...node.childNodes].map(textOf).join("");
}

/** Puts text (with chips for its tags) where the caret is, or at the end. */
export function insert(field, text) {
  const range = caretIn(field);
  range.deleteContents();
  const made = nodes(text, true).map((part) =>
    typeof part === "string" ? document.createTextNode(part) : part);
  const last = made.at(-1);
  for (const node of made.reverse()) range.insertNode(node);
  placeCaret(last, last.nodeType === Node.TEXT_NODE ? last.length : null);
  field.dispatchEvent(new Event("input", { bubbles: true }));
}

function caretIn(field) {
  const selection = getSelection();
  if (selection.rangeCount && field.contains(selection.anchorNode)) return selection.getRangeAt(0);
  field.focus();
  const range = document.createRange();
  range.selectNodeContents(field);
  range.collapse(false);
  return range;
}

function placeCaret(node, offset) {
  const range = document.createRange();
  if (offset === null) range.setStartAfter(node);
  else range.setStart(node, offset);
  range.collapse(true);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

/** Makes an element a field of text with chips. */
export function makeField(element, { newline = true } = {}) {
  element.setAttribute("contenteditable", EDITABLE);
  element.setAttribute("role", "textbox");
  element.setAttribute("aria-multiline", String(newline));
  element.setAttribute("spellcheck", "true");
  element.addEventListener("input", () => {
    chipTyped(element);
    if (!read(element)) element.replaceChildren(); // what is left of an empty field hides its hint
  });
  element.addEventListener("paste", (event) => {
    if (EDITABLE !== "true") return;
    event.preventDefault();
    document.execCommand("insertText", false, event.clipboardData.getData("text/plain"));
  });
  element.addEventListener("keydown", (event) => {
    if (event.key === "Backspace") stepOver(element);
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) makeRoom(element);
  });
}

/** A tag that was typed or pasted becomes a chip, the caret after it. */
function chipTyped(element) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest(".chip")) continue;
    const found = TAG.exec(node.data);
    if (!found) continue;
    const rest = node.splitText(found.index);
    rest.data = rest.data.slice(found[0].length) || ROOM;
    rest.before(chip(found[1]));
    if (!node.data && !node.previousSibling) node.data = ROOM;
    placeCaret(rest, rest.data === ROOM ? 1 : 0);
    return chipTyped(element);
  }
  return undefined;
}

/** Backspace right after a chip: the room beside it goes with it. */
function stepOver(element) {
  const { anchorNode: node, anchorOffset: offset, isCollapsed } = getSelection();
  if (!isCollapsed || node?.nodeType !== Node.TEXT_NODE || !element.contains(node)) return;
  if (offset === 1 && node.data.startsWith(ROOM) && node.previousSibling?.dataset?.name) {
    node.deleteData(0, 1);
  }
}

/** Before a line's end at the field's: browsers would put a second one there, to show the first. */
function makeRoom(element) {
  const selection = getSelection();
  if (!selection.isCollapsed || !element.contains(selection.anchorNode)) return;
  const rest = selection.getRangeAt(0).cloneRange();
  rest.setEndAfter(element.lastChild ?? element);
  if (!element.lastChild || rest.toString() || rest.cloneContents().querySelector(".chip")) return;
  document.execCommand("insertText", false, ROOM);
  selection.modify("move", "backward", "character");
}

/** Copies as text what is selected, tags for chips. */
document.addEventListener("copy", (event) => {
  const selection = getSelection();
  if (!selection.rangeCount || selection.isCollapsed) return;
  const within = selection.getRangeAt(0).cloneContents();
  if (!within.querySelector?.(".chip")) return;
  event.clipboardData.setData("text/plain", read(within));
  event.preventDefault();
});
