// Lists of any length: rows are made as they come into sight.

import { button, h } from "./dom.js";

const PART = 60; // rows made at once

/**
 * A list whose `show(items, row, what, none)` makes rows of the items, a part at a time, or shows
 * the words `none`. It goes on from where it was scrolled to, unless `what`, a string, says that
 * others are shown.
 */
export function longList(label) {
  const element = h("ul", { class: "list", "aria-label": label });
  let items = [];
  let row = null;
  let made = 0;
  let shown = null;
  const more = h("li", { class: "item more" });
  const seen = new IntersectionObserver((changes) => {
    if (changes.some((change) => change.isIntersecting)) goOn();
  }, { rootMargin: "400px" });

  function goOn() {
    const focused = more.contains(document.activeElement);
    const next = items.slice(made, made + PART).map(row);
    more.remove();
    element.append(...next);
    made += next.length;
    if (made < items.length) {
      more.replaceChildren(button(`Show more of ${items.length}`, goOn, { kind: "bare" }));
      element.append(more);
      // It reports changes only, and there is none where the end is still in sight.
      seen.unobserve(more);
      seen.observe(more);
    }
    if (focused) next[0]?.querySelector("button")?.focus();
  }

  function show(all, makeRow, what, none) {
    const least = what === shown ? made : 0;
    [items, row, made, shown] = [all, makeRow, 0, what];
    element.replaceChildren();
    do goOn(); while (made < Math.min(least, items.length));
    if (!items.length) element.append(h("li", { class: "item quiet" }, none));
  }

  return { element, show };
}
