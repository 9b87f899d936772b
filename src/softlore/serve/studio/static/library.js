// The library of soft prompts: details, import, export and deletion.

import * as api from "./api.js";
import { $, button, bytes, count, h, nats } from "./dom.js";
import { refreshPrompts } from "./books.js";
import { confirmed, shown } from "./dialogs.js";
import { insert, tagOf } from "./chips.js";
import { filePicker, formatPicker } from "./fields.js";
import { longList } from "./longlist.js";
import { tell, trying } from "./messages.js";
import { addPanel, openPanel } from "./panels.js";
import { on, state } from "./store.js";

const FORMATS = ["safetensors", "kobold", "peft", "mkultra", "vllm"];

export const importPrompt = trying(async (file) => {
  const prompt = await api.upload(["prompts", "import"], file, file.name.replace(/\.[^.]*$/, ""));
  await refreshPrompts();
  tell(`“${prompt.name}” is in the library.`);
});

const inspect = trying(async (name) => {
  const prompt = await api.get(["prompts", name]);
  await shown(name, h("div", { class: "group" }, about(prompt).map((words) => h("p", {}, words)),
    h("details", {}, h("summary", {}, "All that its file says"),
      h("div", { class: "inside" }, h("dl", { class: "facts" }, facts(prompt))))));
});

/** What a writer wants to know of a soft prompt, in sentences. */
function about({ kind, n_tokens, bytes: size, fits, model, created, trained = {}, metrics = {} }) {
  const day = created && new Date(created).toLocaleDateString("en", { dateStyle: "long" });
  const without = metrics.recall?.none;
  return [
    fits === false ? `It was made for another model${model ? `, ${model}` : ""}, and cannot be used here.`
      : "It fits the model that is running.",
    `It takes the room of ${count(n_tokens, "token")}, ${kind === "prefix"
      ? "and is seen from where it stands" : "wherever it is put into the text"}; its file has ${bytes(size)}.`,
    (day || trained.steps) && `It was trained${day ? ` on ${day}` : ""}${trained.steps
      ? `, in ${count(trained.steps, "step")}` : ""}.`,
    Number.isFinite(trained.recall) && `Its recall is ${nats(trained.recall)} a token of lore${
      Number.isFinite(without) ? `, that of the model without it ${nats(without)}` : ""}: less is better.`,
  ].filter(Boolean);
}

const CALLED = { n_tokens: "tokens", bytes: "size", fits: "fits this model" };

/** Names and values; what lies deeper gets both names. */
function facts(data, before = "") {
  return Object.entries(data).flatMap(([name, value]) => {
    if (value === null || value === undefined || value === "") return [];
    const words = before + (CALLED[name] ?? name.replaceAll("_", " "));
    if (typeof value === "object" && !Array.isArray(value)) return facts(value, `${words}, `);
    return [h("dt", {}, words), h("dd", {}, worded(name, value))];
  });
}

function worded(name, value) {
  if (name === "bytes") return bytes(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number" && !Number.isInteger(value)) return value.toPrecision(4);
  const text = Array.isArray(value) ? value.map((one) => (typeof one === "object"
    ? JSON.stringify(one) : String(one))).join(", ") : String(value);
  return text.length > 400 ? `${text.slice(0, 400)} …` : text;
}

const discard = trying(async (name) => {
  const sure = await confirmed("Delete this soft prompt?",
    `“${name}” will be gone from the library. It can be trained again from its entry.`, "Delete");
  if (!sure) return;
  await api.remove(["prompts", name]);
  await refreshPrompts();
});

function item(prompt) {
  const recall = prompt.trained?.recall;
  const facts = [prompt.fits === false && "for another model",
    Number.isFinite(recall) && `recall ${nats(recall)}`, prompt.fits !== false && prompt.kind,
    `${prompt.n_tokens} tokens`, bytes(prompt.bytes ?? 0)];
  return h("li", { class: "item" },
    h("button", { type: "button", class: "open", title: `Look at ${prompt.name}`,
      onclick: () => inspect(prompt.name) },
    h("span", { class: "name" }, prompt.name),
    h("span", { class: "quiet" }, facts.filter(Boolean).join(" · "))),
    button(`Put ${prompt.name} into the writing line`, () => {
      openPanel("", { focus: false });
      $("line").focus();
      insert($("line"), tagOf(prompt.name));
    }, { draw: "chip", kind: "bare", alone: true, disabled: prompt.fits === false }),
    formatPicker(`Export ${prompt.name}`, state.info?.formats?.prompts ?? FORMATS, trying((format) =>
      api.download(["prompts", prompt.name, "export"], { format }, prompt.name))),
    button(`Delete ${prompt.name}`, () => discard(prompt.name),
      { draw: "trash", kind: "bare", alone: true }));
}

export function makeLibrary() {
  const list = longList("Soft prompts");
  const bad = h("div", { class: "group" });
  const search = h("input", { type: "search", placeholder: "Search the soft prompts",
    "aria-label": "Search the soft prompts", oninput: () => draw() });
  function draw() {
    const sought = search.value.toLowerCase();
    const found = state.prompts.filter(({ name }) => name.toLowerCase().includes(sought));
    search.hidden = state.prompts.length <= 5;
    list.show(found, item, sought, sought ? "None has that name."
      : "None yet. Train an entry of a lorebook, or import one.");
  }
  on("prompts info", () => {
    draw();
    bad.replaceChildren(...(state.bad ?? []).map(({ file, message }) =>
      h("p", { class: "wrong" }, `${file}: ${message}`)));
  });
  addPanel("prompts", (body) => {
    if (!body.firstChild) {
      body.append(h("p", { class: "quiet" }, "A soft prompt is lore that the model has learned. "
        + "Put one into a text, and the model writes as though it knew."),
      h("div", {}, filePicker("Import", importPrompt)), search, list.element, bad);
    }
    refreshPrompts();
  });
}
