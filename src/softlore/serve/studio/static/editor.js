// The story as one editable column: a field a turn, saved when it is left or after a pause.

import * as api from "./api.js";
import { $, button, h, later } from "./dom.js";
import { bare, EDITABLE, makeField, read, show } from "./chips.js";
import { watchField } from "./chipmenu.js";
import { enter, goOn, leaving } from "./caret.js";
import { keep, on, recall, set, state } from "./store.js";
import { tell, wrong } from "./messages.js";

const PAUSE = 1500;
let shownStory = null;
let items = []; // {element, turn}: as the page shows them
let saving = Promise.resolve();

const changed = (item) => read(item.element) !== bare(item.turn.text);
export const editing = () => items.some(changed);
export const itemOf = (element) => items.find((item) => item.element === element);
export const placeOfTurn = () => (state.place < 0 ? items.length - 1 : state.place);
export const turnInHand = () => state.story?.turns[placeOfTurn()];

let makeExample = null; // set by the page: opens a story to try things on
export function onExample(fn) {
  makeExample = fn;
}

/** Makes the page show the story as it is now; what is being typed stays. */
function draw() {
  const story = state.story;
  if (story?.name !== shownStory) {
    $("text").replaceChildren();
    items = [];
    shownStory = story?.name ?? null;
    state.place = -1;
  }
  const turns = story?.turns ?? [];
  for (const item of items.splice(turns.length)) item.element.remove();
  turns.forEach((turn, place) => {
    items[place] ??= added();
    update(items[place], turn, place);
  });
  if (state.place >= turns.length) state.place = -1;
  const last = placeOfTurn();
  items.forEach(({ element }, place) => (element.tabIndex = place === last ? 0 : -1));
  welcome(story, turns);
}

function added() {
  const element = h("span", {});
  makeField(element);
  watchField(element);
  const item = { element, turn: { text: "" } };
  element.addEventListener("focus", () => set({ place: items.indexOf(item) }));
  element.addEventListener("input", () => {
    rememberEdits();
    saveSoon();
  });
  element.addEventListener("blur", () => changed(item) && flush().catch(wrong));
  element.addEventListener("keydown", onKey);
  $("text").append(element);
  return item;
}

function update(item, turn, place) {
  const { element } = item;
  const typing = element === document.activeElement && changed(item);
  const same = item.turn.text === turn.text && element.firstChild;
  item.turn = turn;
  element.className = `turn ${turn.by} ${turn.marked ? "kept" : ""}`;
  element.setAttribute("aria-label", `Turn ${place + 1}, ${turn.by}${turn.marked ? ", kept" : ""}`);
  if (!typing && !same) show(element, turn.text);
}

function welcome(story, turns) {
  document.querySelector(".empty-story")?.remove();
  if (turns.length) return;
  $("text").append(h("div", { class: "empty-story" },
    h("h2", {}, "Begin a story"),
    h("p", {}, "Write a first line below, and the model writes on."),
    !state.stories.length && h("p", {}, button("Or begin with an example", () => makeExample())),
    h("p", { class: "quiet" }, "Drop a lorebook, a character card or an old story anywhere on this "
      + "page to bring it in."),
    state.info && h("p", { class: "quiet" }, `The model that writes: ${state.info.model}.`)));
}

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (!event.key.startsWith("Arrow")) return;
  const found = leaving(event.currentTarget, event.key);
  if (!found) return;
  if (goOn(found)) event.preventDefault();
  else if (found.forward) {
    $("line").focus();
    event.preventDefault();
  }
}

/** Goes to the turn before or after the one in hand; after the last comes the writing line. */
export function step(by) {
  const from = document.activeElement?.classList.contains("turn") ? placeOfTurn() : items.length;
  const to = from + by;
  if (to >= items.length) $("line").focus();
  else if (items[to]) {
    enter(items[to].element);
    items[to].element.scrollIntoView({ block: "nearest" });
  }
}

// saving ---------------------------------------------------------------------------------------

const saveSoon = later(() => flush().catch(wrong), PAUSE);

/** Saves every turn that was edited. What cannot be saved stays, here and in the browser. */
export function flush() {
  saving = saving.catch(() => {}).then(async () => {
    if (state.writing) return;
    for (let place = 0; place < items.length; place += 1) {
      if (changed(items[place])) await save(items[place]);
    }
    rememberEdits();
  });
  return saving;
}

async function save(item) {
  const { name } = state.story;
  const text = read(item.element);
  const last = item === items.at(-1);
  const story = text === "" && last
    ? await api.post(["stories", name, "cut"], { turn: item.turn.id })
    : await api.put(["stories", name, "turns", item.turn.id], { text });
  if (state.story?.name === name) set({ story });
}

function rememberEdits() {
  const edits = items.filter(changed).map((item) => [item.turn.id, read(item.element)]);
  keep(`edits.${state.story?.name}`, edits.length ? edits : null);
}

/** Puts back edits that an earlier visit could not save. */
export function recoverEdits() {
  const name = state.story.name;
  for (const [id, text] of recall(`edits.${name}`, [])) {
    const item = items.find((one) => one.turn.id === id);
    if (item) show(item.element, text);
    else {
      tell("An edit that was not saved has lost its turn.", { error: true,
        act: ["Put it into the writing line", () => show($("line"), text)] });
    }
  }
  if (editing()) flush().catch(wrong);
}

// while the model writes -----------------------------------------------------------------------

/** Shows the writer's new text and a place for the model's, which the answer adds to. */
export function beginLive(text, retry) {
  document.querySelector(".empty-story")?.remove();
  const made = [];
  const add = (by, words) => {
    const element = h("span", { class: `turn ${by}` });
    show(element, words);
    $("text").append(element);
    made.push(element);
    return element;
  };
  if (retry) items.at(-1).element.hidden = true;
  for (const { element } of items) element.setAttribute("contenteditable", "false");
  if (text) add("writer", text);
  const live = add("model live", "");
  live.append("");
  follow(true);
  return {
    append(piece) {
      const near = isNear();
      live.firstChild.appendData(piece);
      follow(near);
    },
    end() {
      const near = isNear();
      made.forEach((element) => element.remove());
      for (const { element } of items) {
        element.hidden = false;
        element.setAttribute("contenteditable", EDITABLE);
      }
      return () => follow(near);
    },
  };
}

const isNear = () => $("page").scrollHeight - $("page").scrollTop - $("page").clientHeight < 160;

export function follow(yes = true) {
  if (yes) $("page").scrollTop = $("page").scrollHeight;
}

on("story", draw);
on("place", () => items.forEach(({ element }, place) =>
  (element.tabIndex = place === placeOfTurn() ? 0 : -1)));
on("prompts", () => items.forEach((item) => {
  if (item.element.querySelector(".chip") && !changed(item)) show(item.element, item.turn.text);
}));
