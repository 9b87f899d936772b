// The lore panel: a lorebook, its entries and how far each is trained.

import * as api from "./api.js";
import { button, h, nats } from "./dom.js";
import { asked, confirmed } from "./dialogs.js";
import { deleteBook, importBook, newBook, openBook, refreshBooks, refreshPrompts }
  from "./books.js";
import { editEntry } from "./entry.js";
import { checkbox, filePicker, formatPicker, labelled, select } from "./fields.js";
import { longList } from "./longlist.js";
import { setStory } from "./memory.js";
import { trying } from "./messages.js";
import { addPanel } from "./panels.js";
import { beginCard } from "./stories.js";
import { on, recall, state } from "./store.js";
import { suggestions } from "./suggest.js";
import { makeTraining, train, trainOptions } from "./training.js";

let sought = "";
let body = null;
let inside = null; // the entry's form, while one is open

function head() {
  const { book, books, story } = state;
  const choice = select(books.map((one) => [one.name, one.name]), book?.name, openBook);
  const row = h("div", { class: "row" },
    books.length > 0 && h("div", { class: "grow" }, labelled("Lorebook", choice)),
    book && formatPicker("Export the lorebook", state.info?.formats?.lorebooks ?? ["yaml", "json"],
      trying((format) => api.download(["books", book.name, "export"], { format }, book.name))),
    book && button("Delete the lorebook", async () => {
      const sure = await confirmed("Delete this lorebook?", `“${book.name}” with its ${
        book.entries.length} entries will be gone. Its soft prompts stay.`, "Delete");
      if (sure) deleteBook(book.name);
    }, { draw: "trash", kind: "bare", alone: true }));
  row.classList.add("bottom");
  const use = story && book && checkbox("This story reads with it",
    story.settings.book === book.name, (yes) => setStory({ book: yes ? book.name : "" }));
  return h("div", { class: "group" }, row, use || "", book?.greetings?.length ? card(book) : "",
    h("div", { class: "row" },
      filePicker("Import a lorebook", importBook),
      button("New", async () => {
        const name = await asked("A new lorebook", "Name", { ok: "Make it" });
        if (name) newBook(name);
      }, { draw: "plus" }),
      story?.turns.length && button("Find lore in the story", () => suggest(), { draw: "chip" })));
}

/** Begins a story with the card that the book came from. */
function card({ name, greetings: all, asks_name: asksName }) {
  const short = (text) => (text.length > 60 ? `${text.slice(0, 59)}…` : text).replace(/\s+/g, " ");
  let chosen = 1;
  const pick = all.length > 1 && labelled("First message", select(
    all.map((text, place) => [String(place + 1), `${place + 1}. ${short(text)}`]), "1",
    (value) => (chosen = Number(value))));
  const begin = (words, form) =>
    button(words, () => beginCard({ book: name, greeting: chosen, form }, asksName), { draw: "plus" });
  return h("div", { class: "group" }, pick || "", h("div", { class: "row" },
    begin("Begin a story with it", "prose"), begin("Begin a chat", "chat"),
    state.info?.chat_template && begin("Begin as messages", "instruct")));
}

function stateOf(entry) {
  const prompt = state.book.prompts?.[entry.name];
  if (!prompt) return [false, "untrained"];
  const recall = prompt.recall === undefined || prompt.recall === null ? ""
    : `recall ${nats(prompt.recall)}, `;
  return [true, `trained, ${recall}${prompt.n_tokens} tokens`];
}

const unsaved = (entry) => recall(`entry.${state.book.name}.${entry.name}`, null) !== null;

function row(entry) {
  const [trained, words] = stateOf(entry);
  const off = entry.enabled === false;
  return h("li", { class: `item ${off ? "off" : ""}` },
    h("span", { class: `dot ${trained ? "trained" : ""}`, "aria-hidden": "true" }),
    h("button", { type: "button", class: "open", "data-entry": entry.name,
      onclick: () => open(entry) },
    h("span", { class: "name" }, entry.name),
    h("span", { class: "quiet" }, [unsaved(entry) && "not saved", off && "off", words,
      !trained && (entry.keys ?? []).join(", ")]
      .filter(Boolean).join(" · "))),
    button(trained ? "Train again" : "Train", () => train([entry.name], trained),
      { kind: "bare", "aria-label": `${trained ? "Train again" : "Train"}: ${entry.name}` }));
}

function entries() {
  const search = h("input", { type: "search", value: sought, placeholder: "Search the entries",
    "aria-label": "Search the entries", id: "lore-search", oninput: () => {
      sought = search.value;
      draw();
    } });
  const holds = (entry) => [entry.name, ...(entry.keys ?? []), entry.text ?? ""].join("\n")
    .toLowerCase().includes(sought.toLowerCase());
  function draw() {
    const found = state.book.entries.filter(holds);
    list.show(found, row, `${state.book.name}\n${sought}`, sought ? "No entry holds that."
      : "No entry yet. An entry is one subject: a character, a place, a tone.");
  }
  draw();
  const all = state.book.entries.length;
  return h("div", { class: "group" },
    all > 5 && search, list.element,
    h("div", { class: "row apart" },
      button("Train the whole book", () =>
        train(undefined, state.book.entries.every((entry) => state.book.prompts?.[entry.name])), { kind: "main", draw: "play", disabled: !all }),
      button("New entry", () => open(null), { draw: "plus" })),
    options);
}

function open(entry) {
  inside = editEntry(entry, () => {
    inside = null;
    draw();
    body.querySelector(entry ? `[data-entry="${CSS.escape(entry.name)}"]` : "select")?.focus();
  });
  draw();
  inside.querySelector("input")?.focus();
}

/** Shows the cards of what the story suggests. */
function suggest() {
  const leave = () => {
    inside = null;
    draw();
    document.getElementById("panel-lore").focus();
  };
  inside = suggestions(leave, (entry) => {
    inside = editEntry(null, suggest, entry);
    draw();
    inside.querySelector("input")?.focus();
  });
  draw();
  inside.querySelector("button")?.focus();
}

const list = longList("Entries");
const training = makeTraining();
const options = trainOptions();

function draw() {
  if (!body) return;
  const at = document.activeElement?.id;
  body.replaceChildren(...(inside ? [inside] : [head(), training,
    state.book ? entries() : h("p", { class: "quiet" }, "Lore is what your story knows: characters, "
      + "places, tones. Drop a lorebook anywhere on this page — SillyTavern, NovelAI, a character "
      + "card, or softlore’s own YAML — or begin a new one.")]));
  if (at && !inside) document.getElementById(at)?.focus();
}

export function makeLore() {
  addPanel("lore", (element) => {
    if (!body) {
      body = element;
      draw();
    }
    refreshBooks();
    refreshPrompts();
  });
  let name = null;
  let drawn = "";
  let latest = [];
  on("book books story", () => {
    const { book, books, story } = state;
    const these = [book, books, story, inside];
    if (these.every((one, place) => one === latest[place])) return;
    latest = these;
    if (book?.name !== name && (name || !inside)) inside = null; // a first one, made for a card
    name = book?.name;
    const now = JSON.stringify([book, books, story?.name, story?.settings.book]);
    if (!inside && now !== drawn) draw();
    drawn = inside ? "" : now;
  });
}
