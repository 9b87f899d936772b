// The compare panel: the same opening without lore, with its text, and with its soft prompts.

import * as api from "./api.js";
import { button, count, h, say } from "./dom.js";
import { labelled } from "./fields.js";
import { savePicture } from "./picture.js";
import { trying, wrong } from "./messages.js";
import { addPanel } from "./panels.js";
import { habits, keep, on, recall, state } from "./store.js";

const METHODS = {
  nothing: "Without",
  text: "With its text",
  soft: "With its soft prompt",
};
const DRAWS = 2 ** 31;
const LAST = 400; // characters of the story's end
let running = null;

export function makeCompare() {
  // Until the writer types or picks, the opening and the lore are those of the open story.
  const now = { opening: null, names: null, tokens: 60, seed: 1, ...recall("compare", {}) };
  const names = () => now.names ?? activeLore();
  const change = (changes) => keep("compare", Object.assign(now, changes));
  const opening = h("textarea", { rows: 3, placeholder: "At the gate stood Marta, who wore",
    oninput: () => change({ opening: opening.value || null }) });
  const tokens = h("input", { type: "number", min: 1, max: 1000, value: now.tokens,
    oninput: () => change({ tokens: Number(tokens.value) || habits().tokens }) });
  const seed = h("input", { type: "number", min: 0, value: now.seed,
    oninput: () => change({ seed: Number(seed.value) || 0 }) });
  const picks = h("fieldset", { class: "picks" });
  const columns = h("div", { class: "columns" });
  const go = button("Compare", () => (running ? running.abort() : run()), { kind: "main" });
  const anew = button("Again with another seed", () => {
    seed.value = Math.floor(Math.random() * DRAWS);
    change({ seed: Number(seed.value) });
    run();
  }, { draw: "retry" });
  const fresh = button("From the story", () => {
    change({ opening: null, names: null });
    fill();
  }, { draw: "stories", kind: "bare", title: "The story's last lines and its active lore" });
  const picture = button("Save as a picture", () => savePicture(columns), { draw: "down",
    kind: "bare" });
  picture.hidden = true;

  function fill() {
    opening.value = now.opening ?? lastLines();
    choose();
  }

  function choose() {
    const entries = state.book?.entries ?? [];
    const all = entries.map((entry) => entry.name);
    const others = state.prompts.filter((prompt) => prompt.fits !== false
      && !all.includes(prompt.name)).map((prompt) => prompt.name);
    picks.replaceChildren(h("legend", { class: "unseen" }, "Lore to compare"),
      ...[...all, ...others].map((name) => h("label", {},
        h("input", { type: "checkbox", checked: names().includes(name), onchange: (event) =>
          change({ names: event.target.checked ? [...names(), name]
            : names().filter((one) => one !== name) }) }), name)));
    if (!all.length && !others.length) {
      picks.append(h("p", { class: "quiet" }, "Bring in a lorebook first, in the lore panel."));
    }
  }

  const run = trying(async () => {
    running?.abort();
    const started = (running = new AbortController());
    go.lastChild.textContent = "Stop";
    try {
      picture.hidden = true;
      await stream({ ...now, opening: opening.value, names: names() }, columns, started.signal);
      picture.hidden = false;
    } catch (error) {
      wrong(error);
    } finally {
      if (running === started) {
        running = null;
        go.lastChild.textContent = "Compare";
      }
    }
  });

  addPanel("compare", (body) => {
    if (!body.firstChild) {
      body.append(h("div", { class: "group" },
        labelled("Opening", opening, "", "text"),
        h("div", { class: "field" }, h("span", { class: "label" }, "Lore"), picks),
        h("div", { class: "row figures" }, labelled("Tokens", tokens), labelled("Seed", seed),
          go, anew, fresh, picture)), columns);
    }
    fill();
  });
  on("book prompts", choose);
  on("story plan", () => now.opening === null && !running && fill());
}

/** The end of the open story, from a line's or a sentence's beginning on. */
function lastLines() {
  const text = (state.story?.turns ?? []).map((turn) => turn.text).join("");
  const end = text.slice(-LAST);
  const start = end.length < text.length ? end.search(/(?<=[.!?…]["”’]?\s|\n)\S/) : 0;
  return end.slice(Math.max(0, start)).trimStart();
}

/** Names of the lore in the open story's context. */
const activeLore = () => [...new Set((state.plan?.parts ?? []).filter((part) =>
  ["lore", "soft"].includes(part.kind)).map((part) => part.name))];

/** Shows the texts side by side while they are streamed. */
async function stream(now, element, signal) {
  const all = new Set(state.book?.entries.map((entry) => entry.name));
  const known = now.names.filter((name) => all.has(name)
    || state.prompts.some((prompt) => prompt.name === name));
  const asked = { text: now.opening, names: known, book: state.book?.name, tokens: now.tokens,
    seed: now.seed, sampling: state.story?.settings.sampling };
  const columns = new Map();
  let words = null;
  for await (const { name, data } of api.events("POST", ["compare"], { json: asked, signal })) {
    if (name === "begin") {
      words = pattern(data.words ?? []);
      element.replaceChildren(...data.methods.map((row) => {
        const column = makeColumn(row, asked.text);
        if (row.written) columns.set(row.method, column);
        return column.element;
      }));
    }
    if (name === "token") columns.get(data.method)?.add(data.text, words);
    if (name === "done") columns.get(data.method)?.end(data);
    if (name === "error") throw new api.ApiError(500, data.error ?? data);
  }
  say(`${count(columns.size, "text")} written.`);
}

function makeColumn({ method, tokens, written: writes, without }, opening) {
  const title = h("h3", { id: `method-${method}` }, METHODS[method] ?? method);
  const cost = h("p", { class: "quiet" }, writes ? `${count(tokens ?? 0, "token")} of context`
    : "Nothing to write with");
  const missing = Object.entries(without ?? {}).map(([name, why]) =>
    h("p", { class: "quiet missing" }, h("strong", {}, name), ` is not in here: ${why}.`));
  const text = h("span", {});
  let written = "";
  return {
    element: h("section", { class: "card column", "aria-labelledby": `method-${method}`, "data-method": method },
      h("div", {}, title, cost, missing),
      writes && h("div", { class: "written" }, h("span", { class: "opening" }, opening), text)),
    add(piece, words) {
      written += piece;
      text.replaceChildren(...marked(written, words));
    },
    end({ keywords }) {
      const found = keywords ?? text.querySelectorAll("mark").length;
      cost.textContent += ` · ${count(found, "lore word")}`;
    },
  };
}

function pattern(words) {
  const safe = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return safe.length ? new RegExp(`(?<![\\p{L}\\p{N}])(${safe.join("|")})(?![\\p{L}\\p{N}])`, "giu")
    : null;
}

/** A text in pieces, its lore words marked. */
function marked(text, words) {
  if (!words) return [text];
  return text.split(words).map((part, place) => (place % 2 ? h("mark", {}, part) : part));
}
