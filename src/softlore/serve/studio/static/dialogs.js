// Modal questions: native dialogs, which hold the focus and close by Esc.

import { button, h, newId } from "./dom.js";

/** Shows a dialog; resolves to what `read` gives at "ok", or to null. */
function ask(title, content, { ok = "OK", kind = "main", read = () => true, cancel = "Cancel" }) {
  return new Promise((resolve) => {
    const id = newId("dialog");
    const dialog = h("dialog", { "aria-labelledby": id });
    const form = h("form", { method: "dialog" }, h("h2", { id, tabindex: -1, autofocus: !cancel }, title), content,
      h("div", { class: "row" },
        cancel && button(cancel, () => dialog.close(), { kind: "bare" }),
        h("button", { class: `button ${kind}`, value: "ok" }, ok)));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close("ok");
    });
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "ok" ? read() : null);
      dialog.remove();
    });
    dialog.append(form);
    document.body.append(dialog);
    dialog.showModal();
  });
}

export const confirmed = (title, words, ok, kind = "danger") =>
  ask(title, h("p", {}, words), { ok, kind });

/** A dialog that stays until the page is loaded again; the function returned sets its words. */
export function waiting(title) {
  const id = newId("dialog");
  const seconds = h("span", { class: "quiet" });
  const words = h("p", { role: "status" });
  const dialog = h("dialog", { "aria-labelledby": id, "aria-busy": true },
    h("form", {}, h("h2", { id, tabindex: -1, autofocus: true }, `${title}… `, seconds), words));
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  const start = Date.now();
  setInterval(() => (seconds.textContent = `${Math.round((Date.now() - start) / 1000)} s`), 1000);
  document.body.append(dialog);
  dialog.showModal();
  return (text) => void (words.textContent = text);
}

export const shown = (title, content) => ask(title, content, { ok: "Close", cancel: "" });

/** Asks for one line of text. */
export function asked(title, label, { value = "", ok = "OK", type = "text", help = "" } = {}) {
  const id = newId("asked");
  const input = h("input", { id, type, value, required: true, autocomplete: "off",
    autofocus: true, maxlength: 200 });
  const field = h("div", { class: "field" }, h("label", { for: id }, label), input,
    help && h("p", { class: "help" }, help));
  setTimeout(() => input.select());
  return ask(title, field, { ok, read: () => input.value.trim() || null });
}

/** Asks for the API key, once a session. */
export const askedKey = (again) =>
  asked("This studio is locked", again ? "That key is not right. API key" : "API key", {
    type: "password",
    ok: "Unlock",
    help: "The key that the server was started with. It is kept until this tab is closed.",
  });
