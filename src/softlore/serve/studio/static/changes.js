// What an entry is from here on in the story: its present, beside the past in the lorebook.

import * as api from "./api.js";
import { button, h } from "./dom.js";
import { labelled } from "./fields.js";
import { tell, trying } from "./messages.js";
import { set, state } from "./store.js";

/** The fields; empty where no story reads with the lorebook. */
export function present(entry) {
  const { story, book } = state;
  if (!entry || !story || story.settings.book !== book.name) return "";
  const text = h("textarea", { rows: 3 });
  const since = h("p", { class: "quiet", "aria-live": "polite" });
  const change = trying(async (words) => {
    const path = ["stories", story.name, "changes"];
    set({ story: await api.post(path, { entry: entry.name, text: words }) });
    tell(words ? `“${entry.name}” has changed from here on.` : `“${entry.name}” has ended here.`);
    draw();
  });
  const restore = trying(async () => {
    set({ story: await api.remove(["stories", story.name, "changes", entry.name]) });
    draw();
  });
  const back = button("As it was", restore, { kind: "bare" });
  function draw() {
    const now = (state.story?.changes ?? []).filter((one) => one.entry === entry.name).at(-1);
    const words = now && (now.text || (now.prompt ? `the soft prompt ${now.prompt}` : "it has ended"));
    since.textContent = now ? `Since turn ${now.turn}: ${words}` : "";
    since.hidden = back.hidden = !now;
    text.value = now?.text ?? "";
  }
  draw();
  return h("details", { open: !since.hidden }, h("summary", {}, "What has changed in this story"),
    h("div", { class: "inside" }, since,
      labelled("From here on", text, "What it is after the story’s last turn, on this branch; before, "
        + "and on other branches, it is what it was. Undo takes it back."),
      h("div", { class: "row" },
        button("Change from here on", () => (text.value.trim() ? change(text.value.trim())
          : text.focus())),
        button("It ends here", () => change(""), { kind: "bare" }), back)));
}
