// The studio: joins its parts, and restores the state of the last visit.

import * as api from "./api.js";
import { $, button } from "./dom.js";
import { firstBook, refreshPrompts } from "./books.js";
import { makeChances } from "./chances.js";
import { makeCompare } from "./compare.js";
import { makeComposer } from "./composer.js";
import { askedKey } from "./dialogs.js";
import { makeDrop } from "./drop.js";
import { onExample } from "./editor.js";
import { help, makeKeys } from "./keys.js";
import { makeLibrary } from "./library.js";
import { makeLore } from "./lore.js";
import { makeMemory } from "./memory.js";
import { tell, trying } from "./messages.js";
import { isTouched, makeTabs, openPanel } from "./panels.js";
import { makeSettings } from "./settings.js";
import { example, makeStories, openStory, refreshStories, storyFor } from "./stories.js";
import { habits, keep, recall, set, state } from "./store.js";
import { findTraining } from "./training.js";
import { switchTheme } from "./theme.js";
import { onFirstLine, recallDraft } from "./writing.js";

function makePage() {
  $("top-tools").append(
    button("Light or dark", switchTheme, { draw: "theme", kind: "bare", alone: true }),
    button("Keys", help, { draw: "help", kind: "bare", alone: true, title: "Keys (?)" }));
  makeTabs();
  makeComposer();
  makeChances();
  makeStories();
  makeMemory();
  makeLore();
  makeCompare();
  makeLibrary();
  makeSettings();
  makeKeys();
  makeDrop();
  onExample(example);
  onFirstLine(storyFor);
  api.onKeyNeeded(askedKey);
}

async function findEverything() {
  const info = await api.get(["info"]);
  set({ info, habits: habits() });
  if (info.notice && recall("notice", "") !== info.run) {
    keep("notice", info.run);
    tell(info.notice, { error: true });
  }
  await Promise.all([refreshStories(), refreshPrompts()]);
  const names = state.stories.map((story) => story.name);
  const last = [recall("story", ""), names[0]].find((name) => names.includes(name));
  if (last) await openStory(last);
  else {
    set({ story: null });
    recallDraft();
  }
  await firstBook();
  if (state.info.book && recall("panel", null) === null) keep("panel", "lore");
  await trying(findTraining)();
}

async function start() {
  makePage();
  try {
    await findEverything();
  } catch (error) {
    set({ story: null });
    tell(error.message, { error: true, act: ["Try again", () => location.reload()] });
  }
  const panel = recall("panel", "");
  openPanel(panel, { focus: false });
  if (!panel && !isTouched()) $("line").focus();
  document.body.dataset.ready = "yes";
}

start();
