// Messages that stay until they are dismissed, or go by themselves where nothing went wrong.

import { $, button, h, icon } from "./dom.js";

const SHORT = 5000;
const MOST = 3;

/** Shows a message; `act` is `[label, fn]` of a button, for instance one that undoes it. */
export function tell(words, { error = false, act = null } = {}) {
  const message = h("div", { class: `message ${error ? "error" : ""}`,
    role: error ? "alert" : "status" }, h("p", {}, words));
  if (act) {
    message.append(button(act[0], () => {
      message.remove();
      act[1]();
    }, { kind: "bare" }));
  }
  message.append(h("button", { type: "button", class: "button bare icon", "aria-label": "Dismiss",
    onclick: () => message.remove() }, icon("close")));
  for (const old of $("messages").children) {
    if (old.firstChild.textContent === words) old.remove();
  }
  $("messages").append(message);
  while ($("messages").children.length > MOST) $("messages").firstChild.remove();
  if (!error) setTimeout(() => message.remove(), act ? 2 * SHORT : SHORT);
}

/** Shows an error, unless the writer stopped the request. */
export function wrong(error) {
  if (error?.name === "AbortError") return;
  if (!error?.message || !("status" in error)) console.error(error);
  tell(error?.message ?? String(error), { error: true });
}

/** A function that runs `fn` and shows its error; it returns undefined then. */
export function trying(fn) {
  return async (...given) => {
    try {
      return await fn(...given);
    } catch (error) {
      wrong(error);
      return undefined;
    }
  };
}
