// Training: starting it, watching it with live curves, pausing, resuming and stopping.

import * as api from "./api.js";
import { button, count, h, say } from "./dom.js";
import { openBook, refreshPrompts } from "./books.js";
import { labelled, select } from "./fields.js";
import { tell, trying, wrong } from "./messages.js";
import { plot } from "./plots.js";
import { keep, on, recall, set, state } from "./store.js";

const FINISHED = ["done", "stopped", "failed"];
const STATES = {
  waiting: "Waiting for its turn",
  preparing: "Getting ready",
  running: "Training",
  paused: "Paused",
  done: "Trained",
  stopped: "Stopped",
  failed: "It failed",
};
const KINDS = {
  prefix: "Prefix: stronger, seen by new text only",
  embedding: "Embedding: anywhere in the text, for other programs too",
};
const RETRY = 1500; // milliseconds
const MINUTES = { entry: 2, least: 5 }; // that a training takes at most, unless others are chosen
const DRAWN = 24; // curves in a plot, at most; of more entries, the first and the picked one
let watched = null; // the id whose events are read
let picked = "";

function options() {
  const kind = state.info?.training.kind.default;
  const chosen = { kind, n_tokens: "", max_steps: "", minutes: "", ...recall("training", {}) };
  return state.info?.takes_prefix === false ? { ...chosen, kind: "embedding" } : chosen;
}

/** The training settings, which the browser stores. */
export function trainOptions() {
  const inside = h("div", { class: "inside" });
  const change = (name, value) => keep("training", { ...options(), [name]: value });
  const number = (name, label, shown) => {
    const { default: initial, min, max, help } = state.info.training[name];
    return labelled(label, h("input", { type: "number", min, max, placeholder: shown ?? initial,
      value: options()[name],
      oninput: (event) => change(name, event.target.value && Number(event.target.value)) }), help);
  };
  on("info", () => inside.replaceChildren(
    labelled("Kind of soft prompt", kinds(options().kind, (kind) => change("kind", kind))),
    h("div", { class: "two" }, number("n_tokens", "Tokens"), number("max_steps", "Steps at most"),
      number("minutes", "Minutes at most", `${MINUTES.entry} an entry`)),
    labelled("Entries without pairs are taught by", styles(options().style, (style) =>
      change("style", style)))));
  return h("details", {}, h("summary", {}, "How to train"), inside);
}

const STYLES = {
  auto: "Scenes with a fact each, and what the model writes about the text",
  none: "What the model itself writes about the text, alone",
  sentences: "Its sentences, one after another",
  noun: "Its sentences, cut after name and verb",
  pronoun: "The same with “he”, “she” or “it”, after a lead",
  mixed: "Both: by name and by pronoun",
  implicit: "Scenes that lead to it, each followed by a fact",
  cloud: "Its words, in any order",
  bracketed: "Facts in brackets, which the story then leaves out",
};

/** The choice of an authoring style, which makes pairs of an entry's text. */
function styles(style, change) {
  const { choices, default: initial } = state.info.training.style;
  return select(choices.map((name) => [name, STYLES[name] ?? name]), style || initial, change);
}

/** The choice of kinds; some models take one of them only. */
function kinds(kind, change) {
  const list = select(state.info.training.kind.choices.map((name) => [name, KINDS[name] ?? name]),
    kind, change);
  const prefix = list.querySelector("[value=prefix]");
  if (prefix) prefix.disabled = state.info.takes_prefix === false;
  return list;
}

/** Trains entries of the open book; all of them where none is named. */
export const train = trying(async (entries, overwrite = false) => {
  const { kind, n_tokens, max_steps, minutes, style } = options();
  const count = (entries ?? state.book.entries).length;
  const training = await api.post(["trainings"], { book: state.book.name, entries, kind,
    style: style || undefined, n_tokens: n_tokens || undefined, max_steps: max_steps || undefined,
    minutes: minutes || Math.max(MINUTES.least, MINUTES.entry * count),
    overwrite: overwrite || undefined });
  take(training);
  say("Training has started.");
  watch(training.id);
});

/** Shows the training of the last visit: its result, or its progress. */
export async function findTraining() {
  const all = await api.get(["trainings"]);
  const found = all.find((one) => !FINISHED.includes(one.state)) ?? all[0];
  if (!found || recall("training.closed", "") === String(found.id)) return;
  take(await api.get(["trainings", found.id]));
  if (!FINISHED.includes(found.state)) watch(found.id);
}

/** Updates the shown training; without curves, the ones already there stay. */
function take(training) {
  const old = state.training?.id === training.id ? state.training : null;
  set({ training: { ...old, ...training, curves: training.curves ?? old?.curves ?? {} } });
}

async function watch(id) {
  if (watched === id) return;
  watched = id;
  while (watched === id) {
    try {
      for await (const event of api.events("GET", ["trainings", id, "events"])) {
        if (watched !== id) return;
        if (event.name === "training") take(event.data.training ?? event.data);
        if (event.name === "point") addPoint(event.data);
      }
      take(await api.get(["trainings", id]));
    } catch (error) {
      if (error.status >= 400) {
        watched = null;
        wrong(error);
        return;
      }
    }
    if (FINISHED.includes(state.training?.state)) break;
    await new Promise((resolve) => setTimeout(resolve, RETRY)); // the server may be restarting
  }
  if (watched !== id) return;
  watched = null;
  await ended();
}

function addPoint({ entry, ...point }) {
  const { curves } = state.training;
  const curve = (curves[entry] ??= { step: [], loss: [], recall: [], drift: [] });
  if (curve.step.at(-1) >= point.step) return; // it came with the curves already
  curve.step.push(point.step);
  for (const name of ["loss", "recall", "drift"]) curve[name].push(point[name] ?? null);
  state.training.step = Math.max(state.training.step ?? 0, point.step);
  set({ training: state.training });
}

async function ended() {
  const { training } = state;
  if (training.state === "failed") tell(training.message ?? "Training failed.", { error: true });
  else if (training.state === "done") tell(`Trained: ${names(training.entries)}.`);
  await refreshPrompts();
  if (state.book?.name === training.book) await openBook(training.book);
  if (state.story) set({ story: await api.get(["stories", state.story.name]) });
}

const act = (what, how = {}) => trying(async () => {
  take(await api.post(["trainings", state.training.id, what], how));
  if (what === "resume") watch(state.training.id);
});

/** The card that shows a training; it stays the same element, so that focus is not lost. */
export function makeTraining() {
  const title = h("h3", { "aria-live": "polite" });
  const figures = h("p", { class: "quiet" });
  const bar = h("progress", { max: 1, "aria-label": "Training" });
  const pause = button("Pause", act("pause"), { draw: "pause" });
  const resume = button("Resume", act("resume"), { draw: "play" });
  const finish = button("Finish now", act("stop", { save: true }),
    { kind: "bare", title: "Saves the soft prompts as they are now" });
  const stop = button("Stop", act("stop"),
    { draw: "stop", kind: "bare", title: "Discards what is not finished" });
  const close = button("Close", () => {
    keep("training.closed", String(state.training.id));
    set({ training: null });
  }, { draw: "close", kind: "bare", alone: true });
  const plots = h("div", { class: "plots" });
  const legend = h("div", { class: "legend", role: "group", "aria-label": "Entries drawn" });
  const curves = h("details", {}, h("summary", {}, "Curves"),
    h("div", { class: "inside" }, plots, legend));
  const buttons = h("div", { class: "row" }, pause, resume, finish, stop);
  const card = h("section", { class: "card training", "aria-label": "Training", hidden: true },
    h("div", { class: "row apart whole" }, title, close), bar, figures, buttons, curves);
  let drawing = 0;
  let shown = ""; // the training and its state, as drawn last
  on("training", () => {
    card.hidden = !state.training;
    cancelAnimationFrame(drawing);
    if (state.training) drawing = requestAnimationFrame(draw);
  });
  function draw() {
    const { training } = state;
    if (!training) return;
    const now = training.state;
    const early = now === "stopped" && training.message?.startsWith("saved:");
    const words = `${early ? "Finished early" : STATES[now] ?? now}: ${names(training.entries)}`;
    if (title.textContent !== words) title.textContent = words;
    bar.hidden = FINISHED.includes(now);
    if (training.done > 0 || now === "paused") bar.value = training.done ?? 0;
    else bar.removeAttribute("value");
    figures.textContent = [training.message, steps(training), training.seconds
      && duration(training.seconds), training.seconds_left && now === "running"
      && `about ${duration(training.seconds_left)} left`].filter(Boolean).join(" · ");
    pause.hidden = now !== "running";
    resume.hidden = now !== "paused";
    finish.hidden = !training.step;
    buttons.hidden = FINISHED.includes(now);
    close.hidden = !buttons.hidden;
    curves.hidden = !Object.keys(training.curves).length;
    if (shown !== training.id + now) curves.open = !FINISHED.includes(now);
    shown = training.id + now;
    drawCurves(training, plots, legend, draw);
  }
  return card;
}

/** Steps so far, of how many there are if no entry stops early. */
function steps({ step, steps: all, state: now }) {
  if (!step) return "";
  return all > step && !FINISHED.includes(now) ? `step ${step} of ${all} at most` : count(step, "step");
}

const duration = (seconds) => (seconds < 100 ? `${Math.round(seconds)} s`
  : `${Math.round(seconds / 60)} min`);

const names = (entries) => (entries.length > 3
  ? `${entries.slice(0, 2).join(", ")} and ${entries.length - 2} more` : entries.join(", "));

function drawCurves(training, plots, legend, draw) {
  const all = Object.keys(training.curves);
  legend.hidden = all.length < 2;
  if (!all.length) return;
  if (!all.includes(picked)) [picked] = all;
  const front = all.slice(0, DRAWN);
  if (!front.includes(picked)) front.push(picked);
  const of = (what) => front.map((name) => ({ name, x: training.curves[name].step,
    y: training.curves[name][what] ?? [] }));
  const end = Math.max(1, ...all.map((name) => training.curves[name].step.at(-1) ?? 1));
  plots.replaceChildren(
    plot("Loss, nats a token", of("loss"), picked, { end }),
    plot("Recall, nats a token", of("recall"), picked, { end }),
    plot("Drift, nats a token", of("drift"), picked, { end }));
  const pick = (name) => {
    picked = name;
    draw();
  };
  if (all.length > DRAWN) {
    if (legend.firstChild?.options?.length !== all.length) {
      const choice = select(all.map((name) => [name, name]), picked, pick);
      choice.setAttribute("aria-label", "Entry in front");
      legend.replaceChildren(choice);
    }
    return;
  }
  if (legend.children.length !== all.length) {
    legend.replaceChildren(...all.map((name) => h("button", { type: "button",
      onclick: () => pick(name) }, name)));
  }
  for (const one of legend.children) {
    one.setAttribute("aria-pressed", String(one.textContent === picked));
  }
}
