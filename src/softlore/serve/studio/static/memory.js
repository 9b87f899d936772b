// Memory, the author's note, and the branches of the story.

import * as api from "./api.js";
import { chapters } from "./chapters.js";
import { h, later } from "./dom.js";
import { makeField, read, show } from "./chips.js";
import { watchField } from "./chipmenu.js";
import { labelled } from "./fields.js";
import { trying } from "./messages.js";
import { addPanel } from "./panels.js";
import { keep, on, recall, set, state } from "./store.js";
import { goTo } from "./writing.js";

const PAUSE = 800;

/** Changes settings of the open story; what is typed meanwhile in the fields stays. */
export const setStory = trying(async (changes) => {
  if (!state.story) set({ story: await api.post(["stories"], { book: state.book?.name }) });
  const { name } = state.story;
  const story = await api.put(["stories", name, "settings"], changes);
  for (const field of Object.keys(changes)) keep(`unsaved.${name}.${field}`, null);
  if (state.story?.name === name) set({ story });
});

/** A field with chips that is kept as a setting of the story. */
function storyText(setting) {
  const box = h("div", { class: "box", id: `story-${setting}` });
  makeField(box);
  watchField(box);
  let name = null;
  const save = later(() => name === state.story?.name && setStory({ [setting]: read(box) }), PAUSE);
  box.addEventListener("input", () => {
    name = state.story?.name;
    keep(`unsaved.${name}.${setting}`, read(box));
    save();
  });
  box.addEventListener("blur", () => save.waits() && save.now());
  const draw = () => {
    if (box === document.activeElement && (!name || name === state.story?.name)) return;
    const unsaved = recall(`unsaved.${state.story?.name}.${setting}`, null);
    show(box, unsaved ?? state.story?.settings[setting] ?? "");
  };
  on("story", draw);
  draw();
  return box;
}

function besides(field) {
  field.classList.add("beside");
  return field;
}

function branches() {
  const list = h("ul", { class: "list" });
  const draw = () => {
    const all = state.story?.branches ?? [];
    list.replaceChildren(...all.map((branch) => h("li", { class: `item ${branch.here ? "here" : ""}` },
      h("button", { type: "button", class: "open", "aria-current": branch.here ? "true" : null,
        onclick: () => goTo(branch.turn) },
      h("span", { class: "name" }, branch.ending || "(an empty turn)"),
      h("span", { class: "quiet" }, `${branch.turns} turns${branch.here ? ", where you are" : ""}`)))));
    if (!all.length) list.append(h("li", { class: "item quiet" }, "None yet."));
  };
  on("story", draw);
  draw();
  return list;
}

export function makeMemory() {
  addPanel("memory", (body) => {
    if (body.firstChild) return;
    const depth = h("input", { type: "number", min: 0, max: 99,
      onchange: () => setStory({ note_depth: Number(depth.value) || 0 }) });
    const drawDepth = () => (depth.value = state.story?.settings.note_depth ?? 3);
    on("story", drawDepth);
    drawDepth();
    body.append(
      labelled("Memory", storyText("memory"), "Always stands first in what the model reads."),
      labelled("Author’s note", storyText("note"), "Stands near the end, where it weighs most: a tone, "
        + "what must not be forgotten."),
      besides(labelled("The note stands so many turns before the end", depth)),
      chapters(setStory),
      h("div", { class: "group" }, h("h3", {}, "Branches"),
        h("p", { class: "quiet" }, "All branches of the story. Nothing is lost."),
        branches()));
  });
}
