// What the story remembers of what has left the context: a summary a chapter, to edit.

import * as api from "./api.js";
import { button, h } from "./dom.js";
import { checkbox, labelled } from "./fields.js";
import { tell, trying } from "./messages.js";
import { on, set, state } from "./store.js";

const path = (chapter) => ["stories", state.story.name, "chapters", chapter.name];

function field(chapter) {
  const text = h("textarea", { rows: 3, value: chapter.text });
  const save = trying(async () => {
    set({ story: await api.put(path(chapter), { text: text.value }) });
    tell(`“${chapter.name}” is pinned as you wrote it.`);
  });
  const forget = trying(async () => set({ story: await api.remove(path(chapter)) }));
  text.addEventListener("change", () => text.value.trim() !== chapter.text && save());
  const soft = chapter.tokens ? `a soft prompt of ${chapter.tokens} tokens${
    chapter.trained ? "" : ", trained further when nobody writes"}` : "";
  const now = chapter.pinned ? "Pinned: read as it is." : ["A summary", soft].filter(Boolean)
    .join(" and ") + "; whichever gains more is read.";
  return h("li", {}, labelled(chapter.name, text, now),
    button("Forget", forget, { kind: "bare", "aria-label": `Forget: ${chapter.name}` }));
}

/** The list; `setStory(changes)` changes settings of the story. */
export function chapters(setStory) {
  const list = h("ul", { class: "list chapters" });
  const group = h("div", { class: "group" }, h("h3", {}, "Chapters"));
  const draw = () => {
    const at = list.contains(document.activeElement) ? document.activeElement : null;
    if (at?.matches("textarea")) return; // what is typed stays
    const { story } = state;
    const used = (story?.chapters ?? []).filter((chapter) => chapter.used);
    list.replaceChildren(...used.map(field));
    const off = story?.settings.chapters === false;
    group.replaceChildren(group.firstChild,
      checkbox("Remember what leaves the context", !off, (yes) => setStory({ chapters: yes })),
      h("p", { class: "quiet" }, used.length ? "" : "What the model cannot read any more, since the "
        + "story is too long, is condensed here while nobody writes."), list);
    const label = at?.getAttribute("aria-label");
    if (label) list.querySelector(`[aria-label="${CSS.escape(label)}"]`)?.focus();
  };
  on("story", draw);
  draw();
  return group;
}
