// What the page knows, who wants to hear of it, and what the browser keeps for the next visit.

export const state = {
  info: null, // what /info told
  stories: [],
  story: null, // the open one
  plan: null, // what fills its context
  place: -1, // the turn in hand; -1 is the last
  writing: null, // while the model writes: {stop()}
  panel: "",
  books: [],
  book: null, // the lorebook in the lore panel
  prompts: [],
  training: null,
};

const listeners = new Map();

/** Changes what is known, and tells those who listen. */
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

// Storage may be forbidden or full: then the page works and forgets.
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

// How the writer likes to write: kept in this browser, for all stories.
const USUAL = { tokens: 80, stop: [], codes: {}, no_copy: 0, enter: false };

export const habits = () => ({ ...USUAL, ...recall("habits", {}) });

export function setHabits(changes) {
  keep("habits", { ...habits(), ...changes });
  set({ habits: habits() });
}
