// Making elements. Text is always put in as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `h("button", {class: "x", onclick: f, "aria-label": "…"}, "text", child)`. */
export function h(tag, given = {}, ...children) {
  return filled(document.createElement(tag), given, children);
}

/** The same for SVG. */
export function s(tag, given = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), given, children);
}

function filled(element, given, children) {
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (["value", "checked", "disabled", "selected", "hidden"].includes(name)) {
      element[name] = value;
    } else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined
    && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

let last = 0;
export const newId = (what) => `${what}-${(last += 1)}`;

// Drawn on a grid of 24, as strokes.
const DRAWINGS = {
  write: "M4 20l1-4L16.5 4.5a2.1 2.1 0 0 1 3 3L8 19z M14 7l3 3",
  memory: "M6 4h9l3 3v13H6z M9 10h6 M9 14h6",
  lore: "M12 6c-2-1.5-5-2-8-2v14c3 0 6 .5 8 2 2-1.5 5-2 8-2V4c-3 0-6 .5-8 2z M12 6v14",
  compare: "M4 5h4v14H4z M10 5h4v14h-4z M16 5h4v14h-4z",
  prompts: "M12 3l8 4.5-8 4.5-8-4.5z M4 12l8 4.5 8-4.5 M4 16.5L12 21l8-4.5",
  settings: "M4 7h9 M17 7h3 M4 17h3 M11 17h9 M15 5v4 M9 15v4",
  stories: "M5 4h14v16H5z M9 4v16",
  undo: "M8 5L4 9l4 4 M4 9h10a6 6 0 0 1 0 12h-3",
  redo: "M16 5l4 4-4 4 M20 9H10a6 6 0 0 0 0 12h3",
  retry: "M20 12a8 8 0 1 1-2.4-5.7 M20 3v4h-4",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  anew: "M4 7h10 M4 12h6 M4 17h5 M13 19l.7-3L19 10.7a1.5 1.5 0 0 1 2.2 2.2L16 18.2z",
  chances: "M5 20V11 M10 20V4 M15 20v-6 M20 20v-3",
  keep: "M12 4l2.4 5.2 5.6.6-4.2 3.8 1.2 5.6-5-2.9-5 2.9 1.2-5.6L4 9.8l5.6-.6z",
  chip: "M12 3l2 7 7 2-7 2-2 7-2-7-7-2 7-2z",
  stop: "M7 7h10v10H7z",
  close: "M6 6l12 12 M18 6L6 18",
  plus: "M12 5v14 M5 12h14",
  trash: "M5 7h14 M10 7V4h4v3 M7 7l1 13h8l1-13",
  down: "M12 4v11 M7 11l5 5 5-5 M5 20h14",
  up: "M12 16V5 M7 9l5-5 5 5 M5 20h14",
  theme: "M12 4a8 8 0 1 0 0 16z M12 4a8 8 0 0 1 0 16",
  help: "M9 9a3 3 0 1 1 4.2 2.7c-.8.4-1.2 1-1.2 2 M12 17.5v.01 M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
  play: "M8 5l11 7-11 7z",
  pause: "M8 5v14 M16 5v14",
  rename: "M4 20h16 M6 15l9-9 2.5 2.5-9 9H6z",
  cut: "M6 4l12 14 M18 4L6 18 M5 20a2 2 0 1 0 0-.01 M19 20a2 2 0 1 0 0-.01",
};

export function icon(name) {
  return s("svg", { class: "drawn", viewBox: "0 0 24 24", "aria-hidden": "true" },
    s("path", { d: DRAWINGS[name] }));
}

/** A button: with words, with a drawing and words, or with a drawing alone that has a label. */
export function button(words, onclick, { kind = "", draw = "", alone = false, ...more } = {}) {
  const given = { type: "button", class: `button ${kind} ${alone ? "icon" : ""}`, onclick, ...more };
  if (alone) Object.assign(given, { "aria-label": words, title: more.title ?? words });
  return h("button", given, draw && icon(draw), !alone && h("span", {}, words));
}

/** Announces a text to screen readers. */
export function say(words) {
  $("said").append(h("p", {}, words));
  while ($("said").children.length > 12) $("said").firstChild.remove();
}

/** `fn`, once calls have ceased for so long; `now()` does at once what waits. */
export function later(fn, milliseconds) {
  let timer = null;
  let waiting = null;
  const run = () => {
    clearTimeout(timer);
    const given = waiting;
    waiting = timer = null;
    return given ? fn(...given) : undefined;
  };
  const call = (...given) => {
    waiting = given;
    clearTimeout(timer);
    timer = setTimeout(run, milliseconds);
  };
  call.now = run;
  call.waits = () => waiting !== null;
  return call;
}

export const count = (n, one, many = `${one}s`) =>
  `${Number(n).toLocaleString("en")} ${n === 1 ? one : many}`;

/** A loss, such as recall, of a token. */
export const nats = (value) => `${value.toFixed(2)} nats`;

export function bytes(n) {
  return n < 1000 ? `${n} B` : n < 1e6 ? `${Math.round(n / 1000)} KB` : `${(n / 1e6).toFixed(1)} MB`;
}
