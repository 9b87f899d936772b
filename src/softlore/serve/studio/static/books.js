// Lorebooks and their entries: what the lore panel asks of the server.

import * as api from "./api.js";
import { count } from "./dom.js";
import { tell, trying } from "./messages.js";
import { setStory } from "./memory.js";
import { keep, recall, set, state } from "./store.js";

export const refreshBooks = trying(async () => set({ books: await api.get(["books"]) }));

export const refreshPrompts = trying(async () => {
  const { prompts, bad } = await api.get(["prompts"]);
  set({ prompts, bad: bad ?? [] });
});

/** Shows a lorebook in the panel. */
export const openBook = trying(async (name) => {
  const book = name ? await api.get(["books", name]) : null;
  keep("book", book?.name);
  set({ book });
});

/** The book that the server was started with, else of the last visit, of the story, or the first. */
export async function firstBook() {
  await refreshBooks();
  const names = state.books.map((book) => book.name);
  const given = state.info?.book;
  const wanted = [given, recall("book", ""), state.story?.settings.book, names[0]];
  await openBook(wanted.find((name) => names.includes(name)));
  if (given && state.story && !state.story.settings.book) await setStory({ book: given });
}

/** Shows a new book; the story that has none reads with it. */
async function begin(book) {
  keep("book", book.name);
  set({ book });
  await refreshBooks();
  if (state.story && !state.story.settings.book) await setStory({ book: book.name });
}

export const newBook = trying(async (name) => begin(await api.post(["books"], { name })));

export const importBook = trying(async (file) => {
  const book = await api.upload(["books", "import"], file, file.name.replace(/\.[^.]*$/, ""));
  await begin(book);
  const warnings = book.warnings ?? [];
  tell([`“${book.name}” was imported: ${count(book.entries.length, "entry", "entries")}.`,
    ...warnings.slice(0, 3)].join(" "));
  return book;
});

export const deleteBook = trying(async (name) => {
  await api.remove(["books", name]);
  if (state.story?.settings.book === name) await setStory({ book: "" });
  keep("book", null);
  await firstBook();
});

/** Saves an entry, a new one where `old` is empty. Throws the server's error. */
export async function saveEntry(old, entry) {
  const { name } = state.book;
  const book = old ? await api.put(["books", name, "entries", old], entry)
    : await api.post(["books", name, "entries"], entry);
  set({ book });
}

/** Deletes an entry; the message has a button that restores it. */
export const deleteEntry = trying(async (entry) => {
  const { name } = state.book;
  const before = state.book.entries;
  set({ book: await api.remove(["books", name, "entries", entry.name]) });
  tell(`“${entry.name}” was taken out of the lorebook.`, { act: ["Put back", trying(async () => {
    const gone = before.find((one) => one.name === entry.name);
    const book = await api.post(["books", name, "entries"], gone);
    if (state.book?.name === name) set({ book });
  })] });
});
