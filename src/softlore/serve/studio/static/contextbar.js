// A bar that shows what fills the context, part by part, and on request what was cut and why.

import * as api from "./api.js";
import { button, count, h, later, s } from "./dom.js";
import { chip } from "./chips.js";
import { shown } from "./dialogs.js";
import { trying } from "./messages.js";
import { habits, on, set, state } from "./store.js";

const WORDS = {
  memory: "Memory",
  lore: "Lore as text",
  soft: "Soft prompt",
  note: "Author’s note",
  story: "Story",
};
let bar = null;
let figures = null;
let parts = null;
let open = false; // by click; hovering opens it only meanwhile

export function makeContextBar() {
  figures = h("span", { class: "context-figures" });
  const picture = s("svg", { viewBox: "0 0 1000 8", preserveAspectRatio: "none",
    "aria-hidden": "true" });
  bar = h("button", { type: "button", class: "context-bar", "aria-expanded": "false",
    "aria-controls": "context-parts", title: "What fills the context" }, picture, figures);
  parts = h("div", { class: "context-parts", id: "context-parts", hidden: true, role: "region",
    "aria-label": "What fills the context" });
  const context = h("div", { class: "context", hidden: true }, parts, bar);
  let hovering = null;
  bar.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "mouse") hovering = setTimeout(() => reveal(true), 350);
  });
  context.addEventListener("pointerleave", () => {
    clearTimeout(hovering);
    if (!open) reveal(false);
  });
  bar.addEventListener("click", () => {
    clearTimeout(hovering);
    open = !open;
    reveal(open);
  });
  context.addEventListener("focusout", (event) => {
    if (!context.contains(event.relatedTarget)) close();
  });
  on("plan reading", draw);
  on("story habits", refresh);
  return context;
}

/** Closes the list of parts; returns whether it was open. */
export function close() {
  const was = !parts.hidden;
  open = false;
  reveal(false);
  return was;
}

function reveal(yes) {
  parts.hidden = !yes;
  bar.setAttribute("aria-expanded", String(yes));
}

/** Asks the server what the model would read, once there are no more changes. */
const refresh = later(async () => {
  const { story } = state;
  if (!story || state.writing) return;
  try {
    const plan = await api.get(["stories", story.name, "plan"], { tokens: habits().tokens });
    if (state.story?.name === story.name) set({ plan, refusal: "" });
  } catch (error) {
    if (state.story?.name !== story.name) return;
    set({ plan: null, refusal: error.message });
  }
}, 350);

function draw() {
  const { plan, refusal } = state;
  bar.parentElement.hidden = !state.story || !(plan || refusal);
  if (!plan) {
    figures.textContent = refusal ? "The context does not fit" : "";
    bar.firstChild.replaceChildren();
    parts.replaceChildren(h("p", { class: "wrong" }, refusal ?? ""));
    return;
  }
  const all = [...plan.parts, { kind: "reserved", name: "", tokens: plan.reserved }];
  let at = 0;
  bar.firstChild.replaceChildren(hatch(), ...all.map((part) => {
    const width = (1000 * part.tokens) / plan.limit;
    const piece = s("rect", { class: `part-${part.kind}`, x: at, y: 0, height: 8,
      width: Math.max(0, width - 1.5) });
    at += width;
    return piece;
  }));
  const used = plan.tokens.toLocaleString("en");
  const cut = Object.keys(plan.not_used ?? {}).length;
  figures.textContent = `${used} of ${plan.limit.toLocaleString("en")} tokens`
    + (plan.omitted ? " · beginning cut" : "") + (cut ? ` · ${cut} not used` : "");
  showParts(plan);
}

function hatch() {
  return s("defs", {}, s("pattern", { id: "hatch", width: 5, height: 8,
    patternUnits: "userSpaceOnUse", patternTransform: "skewX(-30)" },
  s("line", { class: "hatching", x1: 0, y1: 0, x2: 0, y2: 8 })));
}

/** Shows word by word what the model reads, soft prompts as chips. */
const readContext = trying(async () => {
  const pieces = await api.get(["stories", state.story.name, "context"], { tokens: habits().tokens });
  await shown("What the model reads, word by word", h("div", { class: "exact", tabindex: 0,
    role: "group", "aria-label": "The context" }, pieces.map(({ soft, text }) =>
    (soft ? chip(soft, false) : text))));
});

function showParts(plan) {
  const swatch = (kind) => s("svg", { class: "swatch", viewBox: "0 0 10 10", "aria-hidden": "true" },
    s("rect", { class: `part-${kind}`, width: 10, height: 10, rx: 2 }));
  const row = (kind, words, tokens) => h("tr", {}, h("th", { scope: "row" }, swatch(kind), words),
    h("td", {}, count(tokens, "token")));
  const chapter = (name) => state.story?.chapters?.some((one) => one.name === name);
  const named = (part) => (chapter(part.name) ? `What came before: ${part.name}${
    part.kind === "soft" ? " (a soft prompt)" : ""}` : ["lore", "soft"].includes(part.kind)
    ? `${WORDS[part.kind]}: ${part.name}${part.late ? " (seen by the newest text)" : ""}`
    : WORDS[part.kind] ?? part.name);
  const rows = [
    h("h2", {}, "What the model reads next"),
    h("table", {}, h("tbody", {},
      plan.parts.map((part) => row(part.kind, named(part), part.tokens)),
      row("reserved", "Reserved for writing", plan.reserved))),
    plan.omitted ? h("p", { class: "quiet" }, `The story’s first ${count(plan.omitted, "character")}`
      + " are not read, as the context was full. The beginning is cut in large steps, which leave "
      + "tokens free, so that the rest need not be read again at each turn.") : "",
    Object.entries(plan.why ?? {}).map(([entry, why]) =>
      h("p", { class: "quiet" }, h("strong", {}, entry), ` enters as ${
        plan.parts.some((part) => part.kind === "soft" && part.name === entry) ? "a soft prompt" : "text"
      }: ${why}.`)),
    Object.entries(plan.not_used ?? {}).map(([entry, why]) =>
      h("p", { class: "quiet" }, h("strong", {}, entry), ` is not used: ${why}.`)),
    state.reading?.why ? h("p", { class: "quiet" }, `Last time ${count(state.reading.read, "token")}`
      + ` were read again and ${state.reading.reused} reused (${state.reading.why}).`) : "",
    h("div", {}, button("Read the exact text", readContext, { kind: "bare" }))];
  parts.replaceChildren(...rows.flat());
}
