// Turns are fields of their own; with this the caret goes through them as through one text.

/** Puts the caret at the start or the end of a turn. */
export function enter(turn, end = true) {
  turn.focus();
  const range = document.createRange();
  range.selectNodeContents(turn);
  range.collapse(!end);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

/** For an arrow key at a turn's edge: the turn to go on to and where; null inside of it. */
export function leaving(turn, key) {
  const selection = getSelection();
  if (!selection.isCollapsed || !turn.contains(selection.anchorNode)) return null;
  const range = selection.getRangeAt(0);
  const forward = key === "ArrowRight" || key === "ArrowDown";
  const to = forward ? turn.nextElementSibling : turn.previousElementSibling;
  if (!to?.classList.contains("turn") && to !== null) return null;
  const rest = document.createRange();
  rest.selectNodeContents(turn);
  if (forward) rest.setStart(range.endContainer, range.endOffset);
  else rest.setEnd(range.startContainer, range.startOffset);
  if (key === "ArrowLeft" || key === "ArrowRight") {
    return rest.toString().replaceAll("\u200b", "") === "" ? { to, forward } : null;
  }
  const caret = place(range, turn);
  const rects = [...rest.getClientRects()].filter((rect) => rect.width > 0.5);
  const other = rects.some((rect) => (forward ? rect.top > caret.bottom - 4
    : rect.bottom < caret.top + 4));
  return other ? null : { to, forward, x: caret.left, y: forward ? caret.bottom + 12 : caret.top - 12 };
}

function place(range, turn) {
  const rect = range.getClientRects()[0] ?? range.getBoundingClientRect();
  return rect.height ? rect : turn.getClientRects()[0];
}

/** Goes there: straight up or down where that is in the other turn. */
export function goOn({ to, forward, x, y }) {
  if (!to) return false;
  if (x !== undefined) {
    const found = document.caretRangeFromPoint?.(x, y);
    const turn = found?.startContainer.parentElement?.closest(".turn");
    if (turn && found) {
      turn.focus();
      getSelection().removeAllRanges();
      getSelection().addRange(found);
      return true;
    }
  }
  enter(to, !forward);
  return true;
}
