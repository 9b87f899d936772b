// Stories: the list, creating, opening, renaming, deleting, import and export.

import * as api from "./api.js";
import { $, button, count, h } from "./dom.js";
import { asked, confirmed } from "./dialogs.js";
import { openBook, refreshBooks } from "./books.js";
import { filePicker, formatPicker } from "./fields.js";
import { editing, flush, follow, recoverEdits } from "./editor.js";
import { tell, trying } from "./messages.js";
import { addPanel, openPanel } from "./panels.js";
import { keep, on, recall, set, state } from "./store.js";
import { recallDraft } from "./writing.js";

const FORMATS = ["md", "txt", "json"];
const TAKEN = 409;

export const refreshStories = trying(async () => set({ stories: await api.get(["stories"]) }));

const noted = new Set();

/** Shows a story of the server, and once its settings that are not followed here. */
function show(story) {
  const note = (story.notes ?? []).join(" ");
  if (note && !noted.has(story.name)) tell(note, { error: true });
  noted.add(story.name);
  keep("story", story.name);
  set({ story, plan: null, reading: null, place: -1 });
  recallDraft();
  recoverEdits();
  follow();
}

export const openStory = trying(async (name) => {
  if (state.writing) await state.writing.stop();
  if (editing()) await flush();
  show(await api.get(["stories", name]));
});

const UNNAMED = /^Story( \d+)?$/; // the server's names for stories that were given none

/** Calls `ask` with a name made of a line's first words, numbered where that is taken. */
async function named(line, ask) {
  const words = line.replace(/\[\[soft:[^\]]*\]\]/g, "").match(/[\p{L}\p{N}'’-]+/gu) ?? [];
  const first = words.slice(0, 4).join(" ").replaceAll("’", "'").slice(0, 60) || "Story";
  for (let number = 1; ; number += 1) {
    try {
      return await ask(number === 1 ? first : `${first} ${number}`);
    } catch (error) {
      if (error.status !== TAKEN || number > 50) throw error;
    }
  }
}

/** The story for a first line: a new one, or the open one if it is empty and has no name yet. */
export async function storyFor(line) {
  const { story: open } = state;
  if (open && (open.turns.length || !UNNAMED.test(open.name))) return;
  const story = await named(line, (name) => (open ? api.patch(["stories", open.name], { name })
    : api.post(["stories"], { name, book: state.book?.name })));
  if (open) moveDraft(open.name, story.name);
  keep("story", story.name);
  set({ story });
  refreshStories();
}

async function begin(story) {
  show(story);
  openPanel("");
  $("line").focus();
  await refreshStories();
}

const newStory = trying(async () => {
  if (editing()) await flush();
  await begin(await api.post(["stories"], { book: state.book?.name }));
});

/** A story that begins with a card's first message, or an alternate to it, as the API makes it. */
export const beginCard = trying(async (card, asksName) => {
  const user = asksName ? await asked("Who are you in this story?", "Your name", { value: "You",
    ok: "Begin", help: "The card names you. Settings can change it for what is written later." }) : "";
  if (user === null) return;
  if (state.writing) await state.writing.stop();
  if (editing()) await flush();
  await begin(await api.post(["stories"], { ...card, user }));
});

/** A story that begins with the demo's lorebook, which opens beside it. */
export const example = trying(async () => {
  const story = await api.post(["stories", "example"]);
  await begin(story);
  await refreshBooks();
  await openBook(story.settings.book);
  if (!matchMedia("(max-width: 63rem)").matches) openPanel("lore", { focus: false });
  tell("This is an example: let the model write on, then train Marta in the lore panel and retry.");
});

function moveDraft(from, to) {
  keep(`draft.${to}`, recall(`draft.${from}`, null));
  keep(`draft.${from}`, null);
}

const rename = trying(async (name) => {
  const next = await asked("Rename the story", "Name", { value: name, ok: "Rename" });
  if (!next || next === name) return;
  if (editing()) await flush();
  const story = await api.patch(["stories", name], { name: next });
  moveDraft(name, story.name);
  if (state.story?.name === name) show(story);
  await refreshStories();
});

const discard = trying(async (name) => {
  const sure = await confirmed("Delete this story?",
    `“${name}” and all its branches will be gone. Export it first if you may want it again.`, "Delete");
  if (!sure) return;
  await api.remove(["stories", name]);
  keep(`draft.${name}`, null);
  const open = state.story?.name === name;
  if (open) set({ story: null, plan: null });
  await refreshStories();
  if (open && state.stories.length) await openStory(state.stories[0].name);
});

export const importStory = trying(async (file) => {
  const story = await api.upload(["stories", "import"], file, file.name.replace(/\.[^.]*$/, ""));
  await refreshStories();
  show(story);
  tell(`“${story.name}” was imported: ${count(story.turns.length, "turn")}.`);
});

function ago(changed) {
  const days = (Date.now() - new Date(changed)) / 86_400_000;
  const format = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  if (days < 1 / 24) return "just now";
  return days < 1 ? format.format(-Math.round(days * 24), "hour") : format.format(-Math.round(days), "day");
}

function item(story) {
  const here = story.name === state.story?.name;
  return h("li", { class: `item ${here ? "here" : ""}` },
    h("button", { type: "button", class: "open", "aria-current": here ? "true" : null,
      onclick: async () => {
        if (!here) await openStory(story.name);
        openPanel("");
      } },
    h("span", { class: "name" }, story.name),
    h("span", { class: story.error ? "wrong" : "quiet" }, story.error ?? [count(story.words ?? 0, "word"), ago(story.changed),
      story.ending && `… ${story.ending}`].filter(Boolean).join(" · "))),
    formatPicker(`Export ${story.name}`, state.info?.formats?.stories ?? FORMATS, trying((format) =>
      api.download(["stories", story.name, "export"], { format }, `${story.name}.${format}`))),
    button(`Rename ${story.name}`, () => rename(story.name),
      { draw: "rename", kind: "bare", alone: true }),
    button(`Delete ${story.name}`, () => discard(story.name),
      { draw: "trash", kind: "bare", alone: true }));
}

export function makeStories() {
  const list = h("ul", { class: "list" });
  const draw = () => list.replaceChildren(...(state.stories.length ? state.stories.map(item)
    : [h("li", { class: "item quiet" }, "No story yet.")]));
  addPanel("stories", (body) => {
    if (!body.firstChild) {
      body.append(h("div", { class: "row" },
        button("New story", newStory, { kind: "main", draw: "plus" }),
        filePicker("Import", importStory, ".json,.md,.markdown,.txt")), list);
    }
    refreshStories();
  });
  on("stories story", draw);
}
