// The chances of words: what else the model might have written at a place of its turn.

import * as api from "./api.js";
import { $, h } from "./dom.js";
import { caretOffset, offsetAt } from "./chips.js";
import { itemOf } from "./editor.js";
import { habits, on, setHabits, set, state } from "./store.js";
import { tell, trying } from "./messages.js";
import { undo } from "./writing.js";

const HOVER = 350;
const known = new Map(); // by story and turn, its tokens
let shown = null; // {box, back}: back is where the caret was
let hovering = 0;

export const switchChances = () => setHabits({ chances: !habits().chances });

export function closeChances() {
  if (!shown) return false;
  const { box, back } = shown;
  shown = null;
  const inside = box.contains(document.activeElement);
  box.remove();
  if (inside && back?.startContainer.isConnected) {
    back.startContainer.parentElement.closest(".turn")?.focus();
    getSelection().removeAllRanges();
    getSelection().addRange(back);
  }
  return true;
}

/** Shows the chances at the caret, and takes the focus. */
export const chancesAtCaret = trying(async () => {
  const element = document.activeElement?.closest?.(".turn");
  if (!element) {
    tell("Put the cursor into a turn of the model first (Ctrl+↑ goes there).");
    return;
  }
  const caret = getSelection().getRangeAt(0).cloneRange();
  const rect = caret.getBoundingClientRect();
  if (!await open(element, Math.max(0, caretOffset(element) - 1), rect, caret)) {
    tell("The chances of this word are not known: it was typed, or edited since.");
    return;
  }
  shown.box.querySelector("button")?.focus();
});

async function open(element, offset, rect, back) {
  const turn = itemOf(element)?.turn;
  if (!turn?.id || turn.by !== "model" || state.writing) return false;
  const name = `${state.story.name}/${turn.id}`;
  if (!known.has(name)) {
    known.set(name, await api.get(["stories", state.story.name, "turns", turn.id, "tokens"]));
  }
  const tokens = known.get(name);
  let end = 0;
  const place = tokens.findIndex(({ text }) => (end += text.length) > offset);
  const covered = !element.checkVisibility() || document.querySelector("dialog[open]");
  if (place < 0 || !tokens[place].others.length || covered) return false;
  closeChances();
  const box = h("div", { class: "chances", role: "group", "aria-label": "What else it might be" },
    row(tokens[place], null), tokens[place].others.map((other) =>
      row(other, () => take(turn, place, other.text))));
  box.addEventListener("pointerleave", () => back || closeChances());
  box.addEventListener("focusout", (event) => box.contains(event.relatedTarget) || closeChances());
  box.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const rows = [...box.querySelectorAll("button")];
    if (step) rows.at((rows.indexOf(document.activeElement) + step) % rows.length).focus();
    if (event.key === "Escape") closeChances();
    if (step || event.key === "Escape") event.preventDefault();
  });
  $("story").append(box);
  shown = { box, back };
  const size = box.getBoundingClientRect();
  const below = rect.bottom + size.height + 8 < innerHeight;
  box.style.left = `${Math.max(8, Math.min(rect.left, innerWidth - size.width - 8))}px`;
  box.style.top = `${Math.max(8, below ? rect.bottom + 2 : rect.top - size.height - 2)}px`;
  return true;
}

function row({ text, chance }, run) {
  const words = [h("span", { class: "word" }, text.replaceAll("\n", "↵").trim() || "(space)"),
    h("span", { class: "share" }, `${chance < 0.01 ? "<1" : Math.round(100 * chance)} %`)];
  return run ? h("button", { type: "button", onclick: run }, words)
    : h("div", { class: "own" }, words);
}

const take = trying(async (turn, token, text) => {
  closeChances();
  const story = await api.post(["stories", state.story.name, "turns", turn.id, "take"],
    { token, text });
  set({ story });
  $("line").focus();
  tell("Taken. Let the model write on from there; the text before is kept as an alternative.",
    { act: ["Undo", undo] });
});

const openAt = trying(async (event) => {
  const range = document.caretRangeFromPoint?.(event.clientX, event.clientY);
  const element = range?.startContainer.parentElement?.closest(".turn");
  if (!element || shown?.box.contains(document.activeElement)) return;
  const rect = range.getBoundingClientRect();
  await open(element, offsetAt(element, range), rect.height ? rect
    : new DOMRect(event.clientX, event.clientY - 8, 1, 18), null);
});

export function makeChances() {
  $("text").addEventListener("pointermove", (event) => {
    clearTimeout(hovering);
    if (!habits().chances || event.pointerType !== "mouse" || event.buttons) return;
    hovering = setTimeout(openAt, HOVER, event);
  });
  $("text").addEventListener("click", (event) => { // a finger cannot hover
    if (habits().chances && event.pointerType === "touch") openAt(event);
  });
  $("page").addEventListener("scroll", closeChances);
  addEventListener("focusin", ({ target }) => shown?.box.contains(target) || closeChances());
  on("story writing panel habits", closeChances);
}
