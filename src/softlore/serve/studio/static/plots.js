// Small line plots, drawn as SVG: axes, ticks, a curve an entry, and a summary in words.

import { s } from "./dom.js";

const WIDTH = 360;
const HEIGHT = 128;
const BOX = { left: 38, right: 352, top: 24, bottom: 106 };

const figure = (value) => {
  const size = Math.abs(value);
  if (size >= 10 || Number.isInteger(value)) return String(Math.round(value));
  return value.toFixed(size >= 1 ? 1 : 2);
};

/** Steps of 1, 2 or 5 that make three ticks or so. */
function ticks(low, high) {
  const rough = (high - low) / 3 || 1;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * ten).find((one) => one >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const many = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: many }, (_, n) => (first + n) * step);
}

/**
 * A plot of curves `{name, x: [], y: []}`, the one named `picked` in front.
 * `end` is the last step there is.
 */
export function plot(title, curves, picked, { end = 1 } = {}) {
  const full = curves.map(clean).filter((curve) => curve.x.length);
  const high = Math.max(1e-9, ...full.flatMap((curve) => curve.y)) * 1.05;
  const X = (x) => BOX.left + ((BOX.right - BOX.left) * x) / end;
  const Y = (y) => BOX.bottom - ((BOX.bottom - BOX.top) * Math.min(y, high)) / high;
  const front = [...full].sort((a, b) => (a.name === picked) - (b.name === picked));
  return s("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
    "aria-label": summary(title, full, picked) },
  s("text", { class: "title", x: BOX.left, y: 13 }, title),
  ticks(0, high).map((tick) => [
    s("line", { class: "grid", x1: BOX.left, x2: BOX.right, y1: Y(tick), y2: Y(tick) }),
    s("text", { x: BOX.left - 6, y: Y(tick) + 3.5, "text-anchor": "end" }, figure(tick)),
  ]),
  s("line", { class: "axis", x1: BOX.left, x2: BOX.right, y1: BOX.bottom, y2: BOX.bottom }),
  ticks(0, end).map((tick) => s("text", { x: X(tick), y: HEIGHT - 7,
    "text-anchor": tick ? "middle" : "start" }, figure(tick))),
  s("text", { x: BOX.right, y: 13, "text-anchor": "end" }, last(full, picked)),
  front.map((curve) => drawn(curve, curve.name === picked ? "picked" : "", X, Y)));
}

/** Without the steps at which nothing was measured. */
function clean({ name, x, y }) {
  const there = x.map((_, at) => at).filter((at) => Number.isFinite(y?.[at]));
  return { name, x: there.map((at) => x[at]), y: there.map((at) => y[at]) };
}

function drawn(curve, kind, X, Y) {
  const points = curve.x.map((x, at) => `${X(x).toFixed(1)},${Y(curve.y[at]).toFixed(1)}`);
  return [
    points.length > 1 && s("polyline", { class: `curve ${kind}`, points: points.join(" ") }),
    s("circle", { class: `point ${kind}`, r: kind ? 3 : 2, cx: X(curve.x.at(-1)),
      cy: Y(curve.y.at(-1)) }),
  ];
}

function last(curves, picked) {
  const curve = curves.find((one) => one.name === picked);
  return curve ? `${picked}: ${figure(curve.y.at(-1))}` : "";
}

function summary(title, curves, picked) {
  if (!curves.length) return `${title}: nothing measured yet.`;
  const first = curves.find((one) => one.name === picked) ?? curves[0];
  const summary = `${title} of ${first.name}: from ${figure(first.y[0])} at step ${first.x[0]} to ${
    figure(first.y.at(-1))} at step ${first.x.at(-1)}.`;
  return curves.length > 1 ? `${summary} ${curves.length} entries are drawn.` : summary;
}
