// Texts to choose from, side by side: continuations, and sentences written anew.

import { h, newId } from "./dom.js";

/**
 * A dialog of texts. `add(place, piece)` adds to one, `ready()` lets them be picked; `picked` is
 * the place of the picked one, or null; `escaped` says what becomes of the story then.
 */
export function choices(title, many, escaped) {
  const id = newId("choices");
  const texts = [];
  const dialog = h("dialog", { class: "choices", "aria-labelledby": id });
  let settle = null;
  const picked = new Promise((resolve) => (settle = resolve));
  const cards = Array.from({ length: many }, (_, place) => {
    const text = h("span", { class: "written" });
    texts.push(text);
    return h("button", { type: "button", class: "card choice", disabled: true, onclick: () => {
      settle(place);
      dialog.close();
    } }, h("kbd", {}, String(place + 1)), text);
  });
  const status = h("p", { class: "quiet", "aria-live": "polite" }, "The model is writing …");
  dialog.append(h("h2", { id, tabindex: -1, autofocus: true }, title), status,
    h("div", { class: "columns" }, cards));
  dialog.addEventListener("keydown", (event) => {
    const card = cards[Number(event.key) - 1];
    if (!card || card.disabled) return;
    event.preventDefault(); // it would be typed where the focus goes
    card.click();
  });
  dialog.addEventListener("close", () => {
    settle(null);
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
  return {
    picked,
    add: (place, piece) => texts[place]?.append(texts[place].textContent ? piece : piece.trimStart()),
    close: () => dialog.close(),
    ready() {
      cards.forEach((card, place) => {
        card.disabled = !texts[place].textContent;
        card.hidden = card.disabled;
      });
      status.textContent = `Choose one with a click or its number. ${escaped}`;
      cards.find((card) => !card.disabled)?.focus();
    },
  };
}
