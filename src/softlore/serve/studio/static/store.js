// The page's state with its listeners, and what the browser stores for the next visit.

export const state = {
  info: null, // the response of /info
  stories: [],
  story: null, // the open one
  plan: null, // what fills its context
  place: -1, // the turn in hand; -1 is the last
  speaker: "", // of a chat's next turn, where the writer has chosen
  writing: null, // while the model writes: {stop()}
  panel: "",
  books: [],
  book: null, // the lorebook in the lore panel
  prompts: [],
  training: null,
};

const listeners = new Map();

/** Changes the state and calls the listeners of what was changed. */
export function set(changes) {
  Object.assign(state, changes);
  const called = new Set();
  for (const name of Object.keys(changes)) {
    for (const listener of listeners.get(name) ?? []) called.add(listener);
  }
  for (const listener of called) listener(state);
}

/** Calls `listener(state)` when one of `names` (a text with spaces between) was set. */
export function on(names, listener) {
  for (const name of names.split(" ")) {
    listeners.set(name, [...(listeners.get(name) ?? []), listener]);
  }
}

// Storage may be disabled or full: then values last until the page is closed.
const missing = new Map();

export function recall(name, otherwise) {
  try {
    const found = localStorage.getItem(`softlore.${name}`);
    return found === null ? otherwise : JSON.parse(found);
  } catch {
    return missing.get(name) ?? otherwise;
  }
}

export function keep(name, value) {
  try {
    if (value === undefined || value === null || value === "") {
      localStorage.removeItem(`softlore.${name}`);
    } else localStorage.setItem(`softlore.${name}`, JSON.stringify(value));
    missing.delete(name);
  } catch {
    missing.set(name, value);
  }
}

/** Functions that save what waits to be saved; called before the model writes. */
export const beforeWriting = new Set();

export const saveWaiting = () => Promise.all([...beforeWriting].map((save) => save()));

// Preferences for all stories, stored in this browser.
const USUAL = { tokens: 80, stop: [], codes: {}, no_copy: 0, enter: false };

export const habits = () => ({ ...USUAL, ...recall("habits", {}) });

export function setHabits(changes) {
  keep("habits", { ...habits(), ...changes });
  set({ habits: habits() });
}
