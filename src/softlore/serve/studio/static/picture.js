// A comparison as a picture: its columns, drawn on a canvas and saved as PNG.

const WIDTH = 420; // of a column, in CSS pixels
const EDGE = 28;
const LINE = 27;
const SHARP = 2; // device pixels to one of CSS

/** Saves the columns of the compare panel as they are shown, in the colours of the page. */
export function savePicture(element) {
  const columns = [...element.querySelectorAll(".column")].map(read);
  const canvas = document.createElement("canvas");
  const brush = canvas.getContext("2d");
  const style = getComputedStyle(document.body);
  const colours = Object.fromEntries(["paper", "ink", "quiet", "accent", "tint"].map((name) =>
    [name, colour(name)]));
  const serif = style.getPropertyValue("--serif");
  const laid = columns.map((column) => layOut(brush, column, serif));
  const height = Math.max(...laid.map((column) => column.height));
  canvas.width = SHARP * (EDGE + columns.length * (WIDTH + EDGE));
  canvas.height = SHARP * (height + 2 * EDGE);
  brush.scale(SHARP, SHARP);
  brush.fillStyle = colours.paper;
  brush.fillRect(0, 0, canvas.width, canvas.height);
  laid.forEach((column, place) => draw(brush, column, EDGE + place * (WIDTH + EDGE), colours));
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "comparison.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

/** A theme's colour as the browser computes it: variables hold `light-dark(…)`. */
function colour(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** The title, the small print and the runs of text `[words, kind]` of a column. */
function read(column) {
  const runs = [];
  const walk = (node, kind) => {
    if (node.nodeType === Node.TEXT_NODE) runs.push([node.data, kind]);
    else {
      const own = node.nodeName === "MARK" ? "mark" : node.className === "opening" ? "opening" : kind;
      node.childNodes.forEach((child) => walk(child, own));
    }
  };
  const written = column.querySelector(".written");
  if (written) walk(written, "text");
  return { title: column.querySelector("h3").textContent,
    small: [...column.querySelectorAll("p.quiet")].map((p) => p.textContent), runs };
}

/** Breaks a column's text into lines; each piece of one has its place and kind. */
function layOut(brush, { title, small, runs }, serif) {
  const pieces = [];
  let y = 20;
  const put = (text, kind, font, x) => pieces.push({ text, kind, font, x, y });
  put(title, "title", `600 17px ${serif}`, 0);
  y += 8;
  const flow = (words, kind, font, step, from) => {
    let x = from;
    brush.font = font;
    for (const word of words.split(/(\n|(?<=\s)(?=\S))/)) {
      if (!word) continue;
      const width = brush.measureText(word).width;
      if (word === "\n" || (x + width > WIDTH && x > 0)) {
        x = 0;
        y += step;
      }
      if (word !== "\n") {
        put(word, kind, font, x);
        x += width;
      }
    }
    return x;
  };
  for (const line of small) {
    y += 20;
    flow(line, "small", "13px sans-serif", 18, 0);
  }
  y += LINE + 8;
  let x = 0;
  for (const [words, kind] of runs) x = flow(words, kind, `18px ${serif}`, LINE, x);
  return { pieces, height: y };
}

function draw(brush, { pieces }, left, colours) {
  const inks = { title: colours.accent, small: colours.quiet, opening: colours.quiet };
  for (const { text, kind, font, x, y } of pieces) {
    brush.font = font;
    if (kind === "mark") {
      brush.fillStyle = colours.tint;
      brush.fillRect(left + x - 2, EDGE + y - 18, brush.measureText(text.trimEnd()).width + 4, 24);
    }
    brush.fillStyle = inks[kind] ?? (kind === "mark" ? colours.accent : colours.ink);
    brush.fillText(text, left + x, EDGE + y);
  }
}
