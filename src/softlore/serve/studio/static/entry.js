// The form of one entry. What is typed is kept in the browser until it is saved.

import { button, h } from "./dom.js";
import { deleteEntry, saveEntry } from "./books.js";
import { present } from "./changes.js";
import { checkbox, labelled, pairs, select, tags } from "./fields.js";
import { tell, wrong } from "./messages.js";
import { keep, recall, state } from "./store.js";
import { train } from "./training.js";

const USES = [
  ["both", "As text or soft prompt, whichever gains more"],
  ["soft", "As soft prompt only"],
  ["text", "As text only"],
];

/** A form for an entry, or for a new one, which may be `given`; `close()` leaves it. */
export function editEntry(entry, close, given) {
  const kept = `entry.${state.book.name}.${entry?.name ?? ""}`;
  const draft = recall(kept, null);
  const now = structuredClone(given ?? draft ?? entry ?? { name: "" });
  const change = (field) => (value) => {
    now[field] = value;
    keep(kept, now);
    status.textContent = "Not saved yet.";
  };
  const status = h("p", { class: "quiet", "aria-live": "polite" },
    draft && !given ? "Not saved yet, from your last visit." : "");
  const text = (field, tag = "input", more = {}) => h(tag, { value: now[field] ?? "", ...more,
    oninput: (event) => change(field)(event.target.value) });
  const form = h("form", { class: "group entry", novalidate: true, "data-draft": kept },
    h("div", { class: "row" }, button("All entries", close, { draw: "left", kind: "bare" })),
    labelled("Name", text("name", "input", { type: "text", autocomplete: "off" }),
      "The soft prompt is named by it, too.", "name"),
    labelled("Keys", tags(now.keys ?? [], change("keys"), { hint: "Words, by Enter or comma" }),
      "Words that call it up when the story mentions them. None: its name does.", "keys"),
    labelled("Text", text("text", "textarea", { rows: 6 }),
      "What you would tell the model in plain words.", "text"),
    labelled("Pairs", pairs(now.blocks ?? [], change("blocks")),
      "Calls, and responses that may follow. Where a response begins a new word, its space is put "
        + "in; take that out where it goes on inside one.",
      "blocks"),
    more(now, change, text),
    present(entry),
    h("div", { class: "row apart sticky" },
      h("div", { class: "row" }, h("button", { class: "button main", type: "submit",
        title: "Save (Ctrl+S)" }, "Save"), button("Save and train", () => save(true),
        { draw: "play" }), draft && button("Discard changes", () => {
        keep(kept, null);
        close();
      }, { kind: "bare" }), status),
      entry && button("Delete the entry", () => {
        keep(kept, null);
        deleteEntry(entry).then(close);
      }, { kind: "bare danger", draw: "trash", alone: true })));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save(false);
  });
  async function save(trains) {
    clear(form);
    const trained = Boolean(state.book.prompts?.[entry?.name]);
    try {
      await saveEntry(entry?.name, tidied(now));
    } catch (error) {
      point(form, error);
      return;
    }
    keep(kept, null);
    close();
    if (trains) await train([now.name], trained);
    else tell(`“${now.name}” is saved.`);
  }
  return form;
}

function more(now, change, text) {
  const order = text("order", "input", { type: "number", value: now.order ?? 100, step: 1 });
  order.oninput = () => change("order")(order.value === "" ? undefined : Number(order.value));
  const open = Boolean(now.held_out?.length || now.constant || now.enabled === false);
  return h("details", { open }, h("summary", {}, "When it is used, and how it is tested"),
    h("div", { class: "inside" },
      labelled("Enters the story", select(USES, now.use ?? "both", change("use")), "", "use"),
      h("div", {}, checkbox("Enabled", now.enabled !== false, change("enabled")),
        checkbox("Always used, whatever the story mentions", now.constant === true,
          change("constant"))),
      labelled("Order", order, "Highest stands nearest to the story, and is kept when room is short.",
        "order"),
      labelled("Held-out pairs", pairs(now.held_out ?? [], change("held_out")),
        "Other ways to ask for the same, to test with; never trained on.", "held_out")));
}

/** Without responses and pairs that were left empty. */
function tidied(entry) {
  const full = (blocks) => (blocks ?? []).map(({ call, responses }) => ({ call,
    responses: responses.filter((response) => response.trim()) }))
    .filter(({ call, responses }) => call.trim() || responses.length);
  return { ...entry, blocks: full(entry.blocks), held_out: full(entry.held_out) };
}

function clear(form) {
  for (const place of form.querySelectorAll(".wrong")) place.hidden = true;
  for (const control of form.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
}

/** Shows what is wrong at the field that the server names, or as a message. */
function point(form, error) {
  const fields = [...form.querySelectorAll("[data-field]")].filter((one) => one.dataset.field);
  const named = fields.find((one) => one.dataset.field === error.field)
    ?? fields.find((one) => new RegExp(`\\b${one.dataset.field}\\b`).test(error.message ?? ""));
  if (!named) {
    wrong(error);
    return;
  }
  const details = named.closest("details");
  if (details) details.open = true;
  const place = named.querySelector(".wrong");
  place.textContent = error.message;
  place.hidden = false;
  place.setAttribute("role", "alert");
  const control = named.querySelector("input, textarea, select");
  control?.setAttribute("aria-invalid", "true");
  (control ?? named).focus();
  named.scrollIntoView({ block: "center" });
}
