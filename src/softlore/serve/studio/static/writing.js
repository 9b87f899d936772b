// Writing: streaming the model's turns, stopping, retrying, undo and alternatives.

import * as api from "./api.js";
import { $, say } from "./dom.js";
import { caretOffset, read, show } from "./chips.js";
import { choices } from "./choices.js";
import { beginLive, editing, flush, follow, itemOf, turnInHand } from "./editor.js";
import { habits, keep, on, recall, saveWaiting, set, state } from "./store.js";
import { tell, trying, wrong } from "./messages.js";

const JOINS = /^[\s.,;:!?)\]…’]/;
const PATIENCE = 3000;
const SEVERAL = 3; // continuations, or sentences, to choose from
const WHY = {
  stop: "Ended at a stop string.",
  context: "The context is full.",
  timeout: "The time limit was reached; what was written is kept.",
};

const warned = new Set();

/** Names settings that have no effect on this server, each once. */
function warnOnce(warnings = []) {
  const fresh = warnings.filter((warning) => !warned.has(warning));
  fresh.forEach((warning) => warned.add(warning));
  if (fresh.length) tell(`Without effect here: ${fresh.join("; ")}.`);
}

let makeStory = null; // set by the page: makes a story for a first line
export function onFirstLine(fn) {
  makeStory = fn;
}

/** What the writer said as it will stand in the story, until the server has it. */
function asSaid(text) {
  const { chat, settings } = state.story;
  if (!text || settings.form === "prose") return text;
  if (!chat) return `\n\n${text}`;
  const named = [chat.user, ...chat.cast].some((name) => text.startsWith(`${name}:`));
  return `\n${named ? text : `${chat.user}: ${text}`}`;
}

const draftName = () => `draft.${state.story?.name ?? ""}`;
export const keepDraft = () => keep(draftName(), read($("line")));
export const recallDraft = () => show($("line"), recall(draftName(), ""));

/** What was typed, as it joins a story in prose: with a space where words would run together. */
function joined(typed) {
  if (state.story && state.story.settings.form !== "prose") return typed; // the server joins it
  const end = state.story?.turns.map((turn) => turn.text).join("").at(-1);
  return typed && end && /\S/.test(end) && !JOINS.test(typed) ? ` ${typed}` : typed;
}

/** Adds what was typed without letting the model write. */
export const addOnly = trying(async () => {
  const typed = read($("line"));
  if (!typed.trim() || state.writing) return;
  await flush();
  if (!state.story?.turns.length) await makeStory(typed);
  set({ story: await api.post(["stories", state.story.name, "turns"], { text: joined(typed) }) });
  clearLine();
  follow();
});

function clearLine() {
  keep(draftName(), null);
  show($("line"), "");
}

/** Adds what was typed, if anything, and streams the model's turn; or retries its last one. */
export const write = trying(async ({ retry = false } = {}) => {
  if (state.writing) return;
  const typed = retry ? "" : read($("line"));
  if (!retry && !typed.trim() && !state.story?.turns.length) {
    tell("Write a first line for the model to continue.");
    $("line").focus();
    return;
  }
  const aborting = new AbortController();
  set({ writing: { aborting, stop: () => stop(aborting) } });
  try {
    await saveWaiting();
    if (editing()) await saved();
    if (!state.story?.turns.length) {
      keep("draft.", null);
      await makeStory(typed);
      keepDraft();
    }
    const text = typed.trim() ? joined(typed) : "";
    await stream({ text: text || undefined, retry: retry || undefined }, aborting.signal);
  } finally {
    set({ writing: null, place: -1 });
  }
});

async function saved() {
  const { writing } = state;
  state.writing = null; // edits are not saved while the model writes, and this is just before
  try {
    await flush();
  } finally {
    state.writing = writing;
  }
}

async function stream(asked, signal) {
  const { name } = state.story;
  const live = beginLive(asSaid(asked.text ?? ""), asked.retry);
  const sentences = speaker();
  let story = null;
  let begun = false;
  try {
    for await (const event of api.events("POST", ["stories", name, "write"],
      { json: { ...asked, ...chosen() }, signal })) {
      if (!begun && event.name !== "error") {
        begun = true;
        if (asked.text) clearLine();
      }
      if (event.name === "plan") set({ plan: event.data.plan ?? event.data });
      if (event.name === "token") {
        live.append(event.data.text);
        sentences.add(event.data.text);
      }
      if (event.name === "done") {
        story = event.data.story;
        set({ reading: event.data.reading ?? null });
        set({ speaker: "" });
        const ends = story.chat && event.data.finish === "stop"; // as every turn of a chat
        if (WHY[event.data.finish] && !ends) tell(WHY[event.data.finish]);
        warnOnce(event.data.warnings);
      }
      if (event.name === "error") throw new api.ApiError(500, event.data.error ?? event.data);
    }
  } catch (error) {
    wrong(error);
  } finally {
    sentences.end();
    story ??= await afterwards(name);
    const settle = live.end();
    if (story && state.story?.name === name) set({ story });
    settle();
  }
}

/** The story after an interrupted stream: the server has saved what was written. */
async function afterwards(name) {
  const before = JSON.stringify(state.story.turns.map((turn) => turn.id));
  let story = null;
  for (let tries = 0; tries < 5; tries += 1) {
    story = await trying(api.get)(["stories", name]);
    if (!story || JSON.stringify(story.turns.map((turn) => turn.id)) !== before) break;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  return story;
}

/** Lets the model write several continuations, of which the writer picks one. All are kept. */
export const writeSeveral = trying(async () => {
  if (state.writing) return;
  const typed = read($("line"));
  if (!typed.trim() && !state.story?.turns.length) {
    await write(); // says what is missing
    return;
  }
  const aborting = new AbortController();
  if (editing()) await flush();
  set({ writing: { aborting, stop: () => stop(aborting) } });
  let list = null;
  let done = null;
  try {
    await saveWaiting();
    if (!state.story?.turns.length) await makeStory(typed);
    const { name } = state.story;
    list = choices("Several ways to go on", SEVERAL,
      "Esc keeps the last one in the story; the others stay as its alternatives.");
    list.picked.then((place) => place === null && !done && state.writing?.stop());
    const asked = { text: typed.trim() ? joined(typed) : undefined, samples: SEVERAL, ...chosen() };
    for await (const { name: event, data } of api.events("POST", ["stories", name, "write"],
      { json: asked, signal: aborting.signal })) {
      if (event === "plan") clearLine();
      if (event === "token") list.add(data.sample, data.text);
      if (event === "done") done = data;
      if (event === "error") throw new api.ApiError(500, data.error ?? data);
    }
  } catch (error) {
    list?.close();
    wrong(error);
  } finally {
    const story = done?.story ?? (state.story && await afterwards(state.story.name));
    set({ writing: null, place: -1, ...(story ? { story } : {}) });
    follow();
  }
  if (!done) return;
  list.ready();
  const place = await list.picked;
  const turn = place === null ? undefined : done.turns[place];
  $("line").focus();
  if (turn) await goTo(turn);
});

/** Has the sentence at the caret written anew, several times, and puts in the one picked. */
export const rewriteSentence = trying(async () => {
  const element = document.activeElement?.closest?.(".turn");
  if (!element || state.writing) {
    if (!element) tell("Put the cursor into a sentence of the story first (Ctrl+↑ goes there).");
    return;
  }
  const at = caretOffset(element);
  await flush();
  const { turn } = itemOf(element);
  const [start, end] = sentenceAt(turn.text, at);
  const { name } = state.story;
  const list = choices("This sentence, written anew", SEVERAL,
    "Esc leaves the sentence as it was.");
  try {
    const sentences = await api.post(["stories", name, "turns", turn.id, "rewrite"],
      { start: [...turn.text.slice(0, start)].length, samples: SEVERAL });
    sentences.forEach((sentence, place) => list.add(place, sentence));
    list.ready();
    const place = await list.picked;
    if (place !== null) {
      const text = turn.text.slice(0, start) + sentences[place] + turn.text.slice(end);
      set({ story: await api.put(["stories", name, "turns", turn.id], { text }) });
      tell("Written anew. The sentence before is kept as a branch.", { act: ["Undo", undo] });
    }
  } catch (error) {
    list.close();
    throw error;
  }
});

/** Where the sentence at a place of a text begins and ends, without the space around it. */
function sentenceAt(text, at) {
  const ends = [0, ...[...text.matchAll(/[.!?…]+["'”’»)]*\s+|\n+/g)].map((found) =>
    found.index + found[0].length), text.length];
  const start = Math.max(0, ...ends.filter((end) => end <= at && end < text.trimEnd().length));
  const end = Math.min(...ends.filter((one) => one > start), text.length);
  const part = text.slice(start, end);
  return [start + part.length - part.trimStart().length, end - part.length + part.trimEnd().length];
}

/** The control codes whose sliders are not off, as the request has them. */
function codes() {
  const known = new Set((state.info?.codes ?? []).map(({ name }) => name));
  const set = Object.entries(habits().codes)
    .filter(([name, strength]) => strength && known.has(name))
    .map(([name, strength]) => ({ name, strength }));
  return set.length ? set : undefined;
}

/** The settings of the request, from the settings panel. */
function chosen() {
  const { tokens, stop: strings, no_copy } = habits();
  return {
    tokens,
    stop: strings.length ? strings : undefined,
    codes: codes(),
    no_copy: no_copy || undefined,
    speaker: state.story?.chat?.cast.includes(state.speaker) ? state.speaker : undefined,
  };
}

/** Stops at the next token; if the server does not react, the connection is closed. */
async function stop(aborting) {
  const dropped = setTimeout(() => aborting.abort(), PATIENCE);
  aborting.signal.addEventListener("abort", () => clearTimeout(dropped));
  try {
    await api.post(["stories", state.story.name, "stop"]);
  } catch {
    aborting.abort();
  }
  say("Stopped.");
}

/** Announces streamed text to screen readers, a sentence at a time. */
function speaker() {
  let held = "";
  return {
    add(piece) {
      held += piece;
      const end = held.search(/[.!?…]["'”’]?\s[^]*$/);
      if (end < 0) return;
      say(held.slice(0, end + 2));
      held = held.slice(end + 2);
    },
    end: () => held.trim() && say(held),
  };
}

// operations -------------------------------------------------------------------------------

/** One operation on the open story, after edits were saved. */
const operation = (ask) => trying(async (...given) => {
  if (!state.story || state.writing) return;
  await flush();
  const story = await ask(state.story, ...given);
  if (story) set({ story });
});

const onStory = (name, what, json) => api.post(["stories", name, what], json);

export const undo = operation((story) => story.undoable && onStory(story.name, "undo"));
export const redo = operation((story) => story.redoable && onStory(story.name, "redo"));
export const goTo = operation((story, turn) => onStory(story.name, "go", { turn }));
export const retry = () => state.story?.turns.at(-1)?.by === "model" && write({ retry: true });

export const keepTurn = operation((story) => {
  const turn = turnInHand();
  return turn && onStory(story.name, "mark", { turn: turn.id, kept: !turn.marked });
});

export const cutTurn = operation(async (story) => {
  const turn = turnInHand();
  if (!turn) return null;
  const cut = await onStory(story.name, "cut", { turn: turn.id });
  tell("Cut. The text is kept as a branch.", { act: ["Undo", undo] });
  return cut;
});

/** Goes to the previous or the next alternative of the turn in hand. */
export const otherTry = operation((story, by) => {
  const turn = turnInHand();
  const tries = Array.isArray(turn?.tries) ? turn.tries : [];
  const to = tries[tries.indexOf(turn?.id) + by];
  return to !== undefined && onStory(story.name, "go", { turn: to });
});

on("story", () => {
  document.title = state.story ? `${state.story.name} · softlore studio` : "softlore studio";
  $("story-title").textContent = state.story?.name ?? "studio";
});
