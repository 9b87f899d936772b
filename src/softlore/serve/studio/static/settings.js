// Settings: how much and how the model writes, control codes, and this page's own habits.

import * as api from "./api.js";
import { confirmed, waiting } from "./dialogs.js";
import { button, h, later, newId } from "./dom.js";
import { checkbox, labelled, select, slider, tags } from "./fields.js";
import { setStory } from "./memory.js";
import { trying } from "./messages.js";
import { addPanel } from "./panels.js";
import { beforeWriting, habits, on, saveWaiting, setHabits, state } from "./store.js";

const MOST = 3; // strength of a code, either way
const PAUSE = 500;
const POLL = 500; // until the server runs again

const saveSampling = later((sampling) => setStory({ sampling }), PAUSE);

function samplers() {
  const rows = h("div", { class: "group" });
  const draw = () => {
    const chosen = { ...state.story?.settings.sampling };
    rows.replaceChildren(presets(chosen, draw), ...(state.info?.samplers ?? []).map(({ name, ...range }) =>
      slider(name.replaceAll("_", " "), { ...range, value: chosen[name] ?? range.default },
        (value) => {
          chosen[name] = value;
          saveSampling({ ...chosen });
        })));
  };
  on("info", draw);
  onNew(() => state.story?.settings.sampling, rows, draw);
  draw();
  return rows;
}

/** Settings of samplers that go together, with a line on the one in use. */
function presets(chosen, draw) {
  const all = state.info?.presets ?? [];
  const written = (sampling) => JSON.stringify(Object.entries(sampling).sort());
  const now = all.find(({ sampling }) => written(sampling) === written(chosen));
  const list = select([...all.map(({ name }) => [name, name]), ...(now ? [] : [["", "Your own"]])],
    now?.name ?? "", async (name) => {
      const found = all.find((one) => one.name === name);
      if (!found) return;
      await setStory({ sampling: found.sampling });
      draw();
      document.querySelector("[data-field=preset] select")?.focus();
    });
  return labelled("Preset", list, now?.help ?? "As the sliders below stand.", "preset");
}

/** Calls `draw` when what `look` gives was changed, but not by the writer in `field` just now. */
function onNew(look, field, draw) {
  let last = "";
  on("story", () => {
    const now = JSON.stringify([state.story?.name, look()]);
    if (now !== last && !field.contains(document.activeElement)) draw();
    last = now;
  });
}

const saveVectors = later((story, vectors) =>
  story === state.story?.name && setStory({ vectors }), PAUSE);
beforeWriting.add(() => saveVectors.now());

/** A slider for each of the model's "codes" or "vectors"; `change` gets those that are not off. */
function strengths(kind, look, change, none) {
  const rows = h("div", { class: "group" });
  let of = null; // the story that is drawn
  const draw = (chosen = { ...look() }) => {
    of = state.story?.name;
    const known = state.info?.[kind] ?? [];
    rows.replaceChildren(...(known.length ? known.map(({ name, description }) => slider(name, {
      value: chosen[name] ?? 0, min: -MOST, max: MOST, step: 0.1, default: 0,
      help: description ?? "",
    }, (value) => {
      chosen[name] = value;
      change(Object.fromEntries(Object.entries(chosen).filter(([_, strength]) => strength)));
    })) : [h("p", { class: "quiet" }, none)]));
    if (known.length) {
      rows.append(h("div", {}, button("All off", () => {
        change({});
        draw({});
      }, { kind: "bare" })));
    }
  };
  on("info", () => draw());
  on("story", () => state.story?.name !== of && draw());
  onNew(look, rows, () => draw());
  draw();
  return rows;
}

function trim() {
  const place = h("div", {});
  const draw = () => place.replaceChildren(checkbox("Turns end with a sentence, in this story",
    state.story?.settings.trim !== false, (yes) => setStory({ trim: yes })));
  onNew(() => state.story?.settings.trim, place, draw);
  draw();
  return place;
}

function number(setting, label, help, { min = 0, max = 1e9, empty = 0 } = {}) {
  const save = later(setStory, PAUSE);
  const input = h("input", { type: "number", min, max, id: newId("setting"), placeholder: "—",
    oninput: () => save({ [setting]: input.value === "" ? empty : Number(input.value) }) });
  const draw = () => {
    const value = state.story?.settings[setting];
    input.value = value === empty || value === undefined || value === null ? "" : value;
  };
  onNew(() => state.story?.settings[setting], input, draw);
  draw();
  return labelled(label, input, help, setting);
}

const FORMS = [["prose", "Prose"], ["chat", "A chat, with names"],
  ["instruct", "Messages, for models that follow instructions"]];

/** How the turns follow each other. */
function form() {
  const list = select(FORMS, "prose", (name) => setStory({ form: name }));
  const draw = () => (list.value = state.story?.settings.form ?? "prose");
  on("story", draw);
  draw();
  return labelled("Form", list, "Turns join as prose, or are lines with the speaker’s name, or "
    + "messages in the model’s own template.", "form");
}

/** The speakers of a chat; what else each has of its own stays. */
function cast() {
  const box = h("div", {});
  const own = () => state.story?.settings.cast ?? {};
  const draw = () => {
    box.hidden = state.story?.settings.form !== "chat";
    box.replaceChildren(labelled("Speakers", tags(Object.keys(own()), (names) => setStory({
      cast: Object.fromEntries(names.map((name) => [name, own()[name] ?? []])) }),
    { hint: "a name, then Enter" }), "The model speaks for them. The entry or soft prompt of a "
      + "speaker’s name is active when it speaks.", "cast"));
  };
  onNew(() => [state.story?.settings.form, own()], box, draw);
  draw();
  return box;
}

function text(setting, label, help, placeholder) {
  const save = later(setStory, PAUSE);
  const input = h("input", { type: "text", maxlength: 160, autocomplete: "off", placeholder,
    oninput: () => save({ [setting]: input.value.trim() }) });
  const draw = () => (input.value = state.story?.settings[setting] ?? "");
  onNew(() => state.story?.settings[setting], input, draw);
  draw();
  return labelled(label, input, help, setting);
}

function own(setting, label, help, more) {
  const input = h("input", { type: "number", value: habits()[setting], ...more, oninput: () => {
    if (input.checkValidity()) setHabits({ [setting]: Number(input.value) });
  } });
  return labelled(label, input, help, setting);
}

const shownBreaks = (text) => text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
const realBreaks = (text) => text.replace(/\\(n|\\)/g, (_, one) => (one === "n" ? "\n" : "\\"));

/** Another model for the server, or the command that starts it with one. */
function otherModels() {
  const words = h("p", {});
  const list = h("ul", { class: "list", "aria-label": "Models" });
  const details = h("details", {}, h("summary", {}, "Another model"),
    h("div", { class: "inside" }, words, list));
  details.addEventListener("toggle", trying(async () => {
    if (!details.open) return;
    const models = await api.get(["models"]);
    const changes = models.some((model) => model.changes);
    words.textContent = (changes ? "The server runs one model at a time, for all of its users. "
      : "This server runs one model. Stop it (Ctrl-C in its terminal) and start it with another. ")
      + "Stories and lorebooks stay; each model has soft prompts of its own. Commands are for a "
      + "terminal.";
    list.replaceChildren(...models.map((model) => h("li", { class: "item" }, ...modelItem(model))));
  }));
  return details;
}

function modelItem({ name, here, changes, use }) {
  const named = (about, how, command) => h("span", { class: "open" },
    h("span", { class: "name" }, name), h("span", { class: "quiet" }, about),
    command && h("span", { class: "quiet" }, how, h("code", {}, command)));
  if (name === state.info.model) return [named(`${use} · in use`)];
  if (changes) return [named(use), button(`Use ${name}`, trying(() => changeModel(name)))];
  return [here ? named(use, "To start it: ", `softlore serve --model ${name}`)
    : named(use, "To get it: ", `softlore models get ${name}`)];
}

/** Has the server start anew with another model, and loads the page again when it has. */
async function changeModel(name) {
  const sure = await confirmed(`Use ${name}?`, "Texts that are being written end first, and a "
    + "training pauses. A small model takes seconds, a large one a minute.", `Use ${name}`, "main");
  if (!sure) return;
  await saveWaiting();
  await api.post(["model"], { name });
  const status = waiting(`Loading ${name}`);
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, POLL));
    const info = await api.get(["info"]).catch((error) => status(error.message));
    if (info && info.run !== state.info.run) break;
  }
  location.reload();
}

export function makeSettings() {
  addPanel("settings", (body) => {
    if (body.firstChild) return;
    const stops = tags(habits().stop.map(shownBreaks), (values) =>
      setHabits({ stop: values.map(realBreaks) }), { hint: "none", comma: false });
    body.append(
      h("div", { class: "group" },
        own("tokens", "Tokens to write at once", "A common word is one, a rare word several.",
          { min: 1, max: 2000, step: 1, required: true }),
        labelled("Stop strings", stops, "Writing ends before any of these. \\n is a line’s end.")),
      h("div", { class: "group" }, h("h3", {}, "Control codes"),
        h("p", { class: "quiet" }, "Genre and tone. Right of the middle: towards it, left: away from "
          + "it. A double click sets one back."),
        strengths("codes", () => habits().codes, (codes) => setHabits({ codes }),
          "This model knows no control codes.")),
      h("div", { class: "group" }, h("h3", {}, "Control vectors, in this story"),
        h("p", { class: "quiet" }, "Tones as directions in the model; they take no room."),
        strengths("vectors", () => state.story?.settings.vectors ?? {},
          (vectors) => saveVectors(state.story?.name, vectors),
          "None yet. In a terminal: softlore vector train --help")),
      h("div", { class: "group" }, h("h3", {}, "How words are chosen, in this story"), samplers(),
        h("div", { class: "two" },
          number("seed", "Seed", "Empty: new each time.", { empty: null }),
          own("no_copy", "No copying", "Steers off so many tokens repeated from lore; 0 is off.",
            { min: 0, max: 100, step: 1, required: true }))),
      h("div", { class: "group" }, trim()),
      h("div", { class: "group" }, h("h3", {}, "Form and names, in this story"), form(), cast(),
        h("div", { class: "two" },
          text("user", "Your name", "In a chat, and for {{user}} in lore and memory.", "You"),
          text("char", "The character’s", "For {{char}}; speaks where no speakers are named.",
            "the card’s name"))),
      h("div", { class: "group" }, h("h3", {}, "Room, in this story"),
        h("div", { class: "two" },
          number("context_tokens", "Context, tokens", "Empty: all that the model can read."),
          number("budget", "For lore, tokens", "Empty: a quarter of the context."))),
      h("div", { class: "group" }, h("h3", {}, "This page"),
        checkbox("Enter writes on (Shift+Enter is a new line)", habits().enter,
          (enter) => setHabits({ enter }))),
      h("p", { class: "quiet" }, `Model: ${state.info?.model ?? "?"}, context of ${
        state.info?.context_length?.toLocaleString("en") ?? "any number of"} tokens.`),
      otherModels());
  });
}
