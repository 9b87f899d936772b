// Entries that the story suggests: a card each, to accept, edit or drop.

import * as api from "./api.js";
import { button, count, h } from "./dom.js";
import { newBook, openBook, saveEntry } from "./books.js";
import { setStory } from "./memory.js";
import { tell, trying } from "./messages.js";
import { state } from "./store.js";

/** The cards; `close()` leaves them, `edit(entry, saved)` opens an entry's form first. */
export function suggestions(close, edit) {
  const list = h("ul", { class: "list cards", "aria-label": "Suggested entries" });
  const notes = h("div", { "aria-live": "polite" }, h("p", { class: "quiet" }, "Reading the story …"));
  const { name } = state.story;

  const find = trying(async (surprise) => {
    const found = await api.get(["stories", name, "suggestions"], { surprise });
    if (!list.isConnected && !notes.isConnected) return;
    list.replaceChildren(...found.suggestions.map(card));
    const none = "No name recurs in this story that the lorebook does not have.";
    const words = [...found.notes, ...(found.suggestions.length ? [] : [none])];
    notes.replaceChildren(...words.map((text) => h("p", { class: "quiet" }, text)));
  });

  function gone(item) {
    const next = (item.nextElementSibling ?? item.previousElementSibling)?.querySelector("button");
    item.remove();
    (next ?? back).focus();
  }

  function card({ entry, mentions, turns }) {
    const accept = trying(async () => {
      await withBook();
      await saveEntry(null, entry);
      tell(`“${entry.name}” is in the lorebook.`);
      gone(item);
    });
    const drop = trying(async () => {
      await setStory({ dropped: [...(state.story.settings.dropped ?? []), entry.name] });
      gone(item);
    });
    const change = trying(async () => {
      await withBook();
      edit(entry);
    });
    const named = (words) => ({ "aria-label": `${words}: ${entry.name}` });
    const item = h("li", { class: "card" },
      h("h3", {}, entry.name),
      h("p", { class: "quiet" }, `in ${count(mentions, "sentence")} of ${count(turns, "turn")} · keys: ${
        entry.keys.join(", ")}`),
      h("p", {}, entry.text),
      h("div", { class: "row" },
        button("Accept", accept, { kind: "main", ...named("Accept") }),
        button("Edit", change, named("Edit")),
        button("Drop", drop, { kind: "bare", ...named("Drop") })));
    return item;
  }

  const back = button("All entries", close, { draw: "left", kind: "bare" });
  find(false);
  return h("div", { class: "group" }, h("div", { class: "row" }, back),
    h("h3", {}, "Lore in this story"),
    h("p", { class: "quiet" }, "Names that recur, with the sentences that tell of them."),
    notes, list,
    h("div", { class: "row" }, button("Rank by the model’s surprise", () => find(true),
      { kind: "bare", title: "First those whose sentences the model could not have guessed" })));
}

/** Accepted entries go into the story's book, else the one in the panel, else a new one. */
async function withBook() {
  const { book } = state.story.settings;
  if (book && book !== state.book?.name) await openBook(book);
  else if (!state.book) await newBook(state.story.name);
  else if (!book) await setStory({ book: state.book.name });
}
