// The composer: the writing line, the write button, and the tools for the turn in hand.

import { $, button, h, icon } from "./dom.js";
import { makeField } from "./chips.js";
import { openMenu, watchField } from "./chipmenu.js";
import { switchChances } from "./chances.js";
import { makeContextBar } from "./contextbar.js";
import { placeOfTurn, turnInHand } from "./editor.js";
import { habits, on, set, state } from "./store.js";
import * as writing from "./writing.js";

const tools = {};

export function makeComposer() {
  const line = h("div", { id: "line", "aria-label": "Your next words",
    "data-hint": "Write, or leave it empty to let the model go on …" });
  makeField(line);
  watchField(line);
  line.addEventListener("input", writing.keepDraft);
  line.addEventListener("focus", () => state.place !== -1 && set({ place: -1 }));
  line.addEventListener("keydown", (event) => {
    const plain = !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.altKey;
    if (event.key === "Enter" && plain && habits().enter && !event.isComposing) {
      event.preventDefault();
      writing.write();
    }
  });
  const write = h("button", { id: "write", type: "button", class: "button main",
    onclick: () => (state.writing ? state.writing.stop() : writing.write()) });
  $("composer").append(makeContextBar(), h("div", { class: "line-row" }, line, speakers(), write),
    toolRow());
  on("writing story", drawWrite);
  on("story place writing habits", drawTools);
  tools.anew.addEventListener("pointerdown", (event) => event.preventDefault()); // the caret stays
  drawWrite();
  drawTools();
}

/** Who speaks next, in a chat with several speakers. */
function speakers() {
  const list = h("select", { id: "speaker", "aria-label": "Who speaks next",
    title: "Who speaks next", onchange: () => set({ speaker: list.value }) });
  const draw = () => {
    const { chat } = state.story ?? {};
    list.hidden = !chat || chat.cast.length < 2;
    if (list.hidden) return;
    list.replaceChildren(...[["", `${chat.next} next`], ...chat.cast.map((name) => [name, name])]
      .map(([value, words]) => h("option", { value, selected: value === state.speaker }, words)));
  };
  on("story speaker", draw);
  draw();
  return list;
}

function drawWrite() {
  const busy = Boolean(state.writing);
  $("write").replaceChildren(icon(busy ? "stop" : "write"),
    h("span", { class: "words" }, busy ? "Stop" : "Write on"));
  $("write").title = busy ? "Stop (Esc)" : "Write on (Ctrl+Enter)";
  $("write").setAttribute("aria-label", busy ? "Stop" : "Write on");
}

function toolRow() {
  const tool = (name, words, draw, run, keys) => (tools[name] = button(words, run, { draw,
    kind: "bare", alone: true, title: keys ? `${words} (${keys})` : words }));
  tools.number = h("span", {});
  tools.tries = h("div", { class: "tries", role: "group", "aria-label": "Alternatives of this turn" },
    tool("before", "Alternative before", "left", () => writing.otherTry(-1), "Alt+↑"),
    tools.number,
    tool("after", "Alternative after", "right", () => writing.otherTry(1), "Alt+↓"));
  tools.which = h("span", { class: "which" });
  return h("div", { class: "tools", role: "toolbar", "aria-label": "Story" },
    tool("undo", "Undo", "undo", writing.undo, "Ctrl+Z"),
    tool("redo", "Redo", "redo", writing.redo, "Ctrl+Shift+Z"),
    tool("retry", "Retry", "retry", writing.retry, "Alt+R"),
    tools.tries,
    tool("several", "Several continuations to choose from", "compare", writing.writeSeveral, "Alt+C"),
    tool("anew", "Write this sentence anew", "anew", writing.rewriteSentence, "Alt+E"),
    tool("chances", "Show what else a word might be, on hover", "chances", switchChances,
      "Alt+P at the cursor"),
    tool("keep", "Keep this turn, to learn from", "keep", writing.keepTurn, "Alt+K"),
    tool("cut", "Cut the story from this turn on", "cut", writing.cutTurn),
    tool("chip", "Put in a soft prompt", "chip", () => openMenu($("line")), "[["),
    tools.which);
}

function drawTools() {
  const { story } = state;
  const turn = turnInHand();
  const busy = Boolean(state.writing);
  const place = placeOfTurn();
  tools.undo.disabled = busy || !story?.undoable;
  tools.redo.disabled = busy || !story?.redoable;
  tools.retry.disabled = busy || story?.turns.at(-1)?.by !== "model";
  tools.keep.disabled = tools.cut.disabled = busy || !turn;
  tools.several.disabled = tools.anew.disabled = busy;
  tools.chances.setAttribute("aria-pressed", String(Boolean(habits().chances)));
  tools.keep.setAttribute("aria-pressed", String(Boolean(turn?.marked)));
  const tries = Array.isArray(turn?.tries) ? turn.tries : [];
  const at = tries.indexOf(turn?.id);
  tools.tries.hidden = tries.length < 2;
  tools.number.textContent = `${at + 1}/${tries.length}`;
  tools.before.disabled = busy || at <= 0;
  tools.after.disabled = busy || at >= tries.length - 1;
  tools.which.textContent = turn && state.place >= 0 && place < story.turns.length - 1
    ? `Turn ${place + 1} of ${story.turns.length}, the ${turn.by}’s` : "";
}
