// Dropping a file anywhere on the page: three targets appear, one for each kind of file.

import { h } from "./dom.js";
import { importBook } from "./books.js";
import { importPrompt } from "./library.js";
import { openPanel } from "./panels.js";
import { importStory } from "./stories.js";

const PLACES = [
  ["Lorebook", "SillyTavern, NovelAI, character cards, YAML …", importBook, "lore"],
  ["Soft prompt", "softlore, KoboldAI, mkultra, PEFT …", importPrompt, "prompts"],
  ["Story", "KoboldAI, Markdown, plain text", importStory, ""],
];
let shade = null;

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

function make() {
  shade = h("div", { class: "drop" }, PLACES.map(([words, which, take, panel]) => {
    const place = h("div", { ondrop: async (event) => {
      event.preventDefault();
      const files = [...event.dataTransfer.files];
      close();
      for (const file of files) await take(file);
      openPanel(panel);
    },
    ondragenter: () => place.classList.add("over"),
    ondragleave: () => place.classList.remove("over") },
    h("strong", {}, words), h("span", { class: "quiet" }, which));
    return place;
  }));
  document.body.append(shade);
}

function close() {
  shade?.remove();
  shade = null;
}

export function makeDrop() {
  addEventListener("dragenter", (event) => hasFiles(event) && !shade && make());
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("dragleave", (event) => event.relatedTarget === null && close());
  addEventListener("drop", (event) => {
    if (hasFiles(event)) event.preventDefault();
    close();
  });
}
