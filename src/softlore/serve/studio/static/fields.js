// Fields that several panels use: labelled inputs, tags, pairs, files, formats and sliders.

import { button, h, icon, newId } from "./dom.js";

/** A label, a control, what it is for, and room for what is wrong with it. */
export function labelled(label, control, help = "", name = "") {
  const id = control.id || newId("field");
  control.id = id;
  const wrong = h("p", { class: "wrong", id: `${id}-wrong`, hidden: true });
  const about = help ? h("p", { class: "help", id: `${id}-help` }, help) : "";
  control.setAttribute("aria-describedby", `${help ? `${id}-help ` : ""}${id}-wrong`);
  const tag = control.matches("input, select, textarea")
    ? h("label", { for: id }, label) : h("span", { class: "label", id: `${id}-label` }, label);
  control.input?.setAttribute("aria-label", label);
  if (tag.id) control.setAttribute("aria-labelledby", tag.id);
  return h("div", { class: "field", "data-field": name }, tag, control, about, wrong);
}

export function checkbox(label, checked, onchange) {
  const box = h("input", { type: "checkbox", checked, onchange: () => onchange(box.checked) });
  return h("label", { class: "check" }, box, h("span", {}, label));
}

export function select(options, value, onchange) {
  const made = h("select", { onchange: () => onchange?.(made.value) },
    options.map(([name, words]) => h("option", { value: name, selected: name === value }, words)));
  return made;
}

/** A list of short texts, one a tag. Enter or a comma adds, Backspace in an empty field removes. */
export function tags(values, onchange, { hint = "", comma = true } = {}) {
  const input = h("input", { type: "text", placeholder: hint, autocomplete: "off" });
  const box = h("div", { class: "box tags", role: "group" });
  const change = (next) => {
    values = next;
    draw();
    onchange(values);
  };
  const add = (text) => {
    const found = (comma ? text.split(",") : [text]).map((one) => one.trim()).filter(Boolean);
    if (found.length) change([...values, ...found.filter((one) => !values.includes(one))]);
    input.value = "";
  };
  function draw() {
    input.placeholder = values.length ? "" : hint;
    box.replaceChildren(...values.map((value) => h("span", { class: "tag" }, value,
      h("button", { type: "button", "aria-label": `Take out ${value}`, onclick: () => {
        change(values.filter((one) => one !== value));
        input.focus();
      } }, "×"))), input);
  }
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || (comma && event.key === ",")) {
      if (input.value.trim()) event.preventDefault();
      if (event.key === "Enter") event.preventDefault();
      add(input.value);
      input.focus();
    } else if (event.key === "Backspace" && !input.value && values.length) {
      change(values.slice(0, -1));
      input.focus();
    }
  });
  input.addEventListener("change", () => add(input.value));
  box.addEventListener("click", (event) => event.target === box && input.focus());
  draw();
  box.input = input;
  return box;
}

/** Calls with their responses: `[{call, responses}]`. */
export function pairs(blocks, onchange) {
  let shown = blocks.map((block) => ({ call: block.call, responses: [...block.responses] }));
  const box = h("div", { class: "group pairs" });
  const changed = () => onchange(shown.map(({ call, responses }) => ({ call, responses })));
  const field = (value, label, set, leave) => h("textarea", { rows: 1, value, "aria-label": label,
    oninput: (event) => {
      set(event.target.value);
      changed();
    },
    onblur: (event) => leave?.(event.target) });
  const spaced = new WeakMap(); // block -> responses that got their space: taken out, it stays so
  /** Puts in the space with which a response begins that is a word of its own. */
  function space(block, at, control) {
    const done = spaced.get(block) ?? spaced.set(block, new Set()).get(block);
    const given = block.responses[at];
    if (done.has(at) || !/^[\p{L}\p{N}]/u.test(given) || !/\S$/.test(block.call)) return;
    done.add(at);
    control.value = block.responses[at] = ` ${given}`;
    changed();
  }
  function card(block, place) {
    const which = `of pair ${place + 1}`;
    const out = (label, run) => button(label, () => {
      run();
      changed();
      draw();
    }, { draw: "close", kind: "bare", alone: true });
    return h("div", { class: "pair", role: "group", "aria-label": `Pair ${place + 1}` },
      field(block.call, `Call ${which}`, (text) => (block.call = text)),
      out(`Take out pair ${place + 1}`, () => shown.splice(place, 1)),
      block.responses.flatMap((response, at) => [
        h("div", { class: "says" }, field(response, `Response ${at + 1} ${which}`,
          (text) => (block.responses[at] = text), (control) => space(block, at, control))),
        block.responses.length > 1
          ? out(`Take out response ${at + 1} ${which}`, () => block.responses.splice(at, 1)) : h("i")]),
      h("div", { class: "says" }, button("Another response", () => {
        block.responses.push(" ");
        draw();
        [...box.children[place].querySelectorAll("textarea")].at(-1).focus();
      }, { kind: "bare", draw: "plus" })));
  }
  function draw() {
    box.replaceChildren(...shown.map(card), h("div", {}, button("Add a pair", () => {
      shown = [...shown, { call: "", responses: [" "] }];
      draw();
      box.children[shown.length - 1].querySelector("textarea").focus();
    }, { draw: "plus" })));
  }
  draw();
  return box;
}

/** A button that chooses a file. */
export function filePicker(words, take, accept = "") {
  const input = h("input", { type: "file", class: "unseen", tabindex: -1, "aria-hidden": "true",
    multiple: true, onchange: async () => {
      for (const file of input.files) await take(file);
      input.value = "";
    } });
  if (accept) input.accept = accept;
  return h("span", {}, button(words, () => input.click(), { draw: "up" }), input);
}

/** A drawing with a native list of formats behind it; picking one exports. */
export function formatPicker(label, formats, take) {
  const list = h("select", { class: "cover", "aria-label": label, title: label, onchange: () => {
    take(list.value);
    list.value = "";
  } },
  h("option", { value: "" }, "Export as …"), formats.map((name) => h("option", { value: name }, name)));
  return h("span", { class: "button bare icon covered" }, icon("down"), list);
}

/** A slider with its figure; a double click, Delete or 0 resets it. */
export function slider(label, { value, min, max, step, default: initial, help = "" }, onchange) {
  const id = newId("slider");
  const shown = h("output", { for: id });
  const input = h("input", { id, type: "range", class: min < 0 ? "signed" : null, min, max, step, title: help || null });
  const row = h("div", { class: "slider" }, h("label", { for: id, title: help || label }, label),
    input, shown);
  const draw = () => {
    shown.textContent = String(Number(input.value));
    row.classList.toggle("on", Number(input.value) !== initial);
  };
  const reset = () => {
    input.value = initial;
    draw();
    onchange(initial);
  };
  input.addEventListener("input", () => {
    draw();
    onchange(Number(input.value));
  });
  input.addEventListener("dblclick", reset);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Delete" || event.key === "0") reset();
  });
  input.value = value;
  draw();
  return row;
}
